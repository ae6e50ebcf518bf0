"""The contract: every message, id, topic and error that crosses a process border. Needs msgspec and numpy only."""
