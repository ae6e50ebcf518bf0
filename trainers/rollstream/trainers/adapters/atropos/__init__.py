"""Atropos, by its HTTP API: groups are pushed to its server, or a server of our own answers its trainers."""
