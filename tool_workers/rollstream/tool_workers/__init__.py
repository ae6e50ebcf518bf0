"""Tool workers: tool calls in, results out; model-written code runs only in sandboxes."""
