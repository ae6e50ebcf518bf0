"""agent-lightning 1.0, by its HTTP API: trajectories become finished rollouts with their events."""
