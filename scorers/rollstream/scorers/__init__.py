"""Rewards after the fact: trajectories in, the same trajectories with scores out."""

from rollstream.scorers.scoring import GroupScoreRequest, Score, ScoreRequest, scorer

__all__ = ["GroupScoreRequest", "Score", "ScoreRequest", "scorer"]
