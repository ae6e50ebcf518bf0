"""What starts sandboxes: a process beside the worker that holds none of its secrets. Standard library only."""
