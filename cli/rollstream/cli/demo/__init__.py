"""The demo: everything on this machine, from nothing to a reward curve that rises."""
