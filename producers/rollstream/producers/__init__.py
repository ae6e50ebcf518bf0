"""Producers: datasets → tasks, at the pace of the trainer."""
