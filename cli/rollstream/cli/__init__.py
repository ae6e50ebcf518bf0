"""The `rollstream` command: one module per command."""
