"""MCP servers whose tools a worker offers as its own. What they say is untrusted, wherever they run."""
