"""Tasks → episodes → trajectories: the only part that knows vLLM and transformers, and imports them lazily."""
