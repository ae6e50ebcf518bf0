"""`rollstream eval`: how good a pinned policy is, measured on the rollout workers that training uses."""
