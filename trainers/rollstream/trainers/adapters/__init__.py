"""Trainers that exist already: each adapter turns groups of trajectories into what its trainer takes."""
