"""verl's V1 trainer: prompts of its data loader become tasks, trajectories become rows of its TransferQueue.

In verl's configuration:
``+actor_rollout_ref.rollout.agent.agent_loop_manager_class=rollstream.trainers.adapters.verl.RollStreamManager``.
"""

from rollstream.trainers.adapters.verl.manager import RollStreamManager

__all__ = ["RollStreamManager"]
