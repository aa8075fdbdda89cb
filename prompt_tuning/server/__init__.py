"""A server of one backbone and many tasks: over HTTP, a task is a model name (docs/serving.md)."""
