"""How messages travel: clients, topics, commits, request/reply, dead letters, the local broker."""
