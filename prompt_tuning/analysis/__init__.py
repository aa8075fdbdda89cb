"""Reads trained prompts and runs: nearest words, similarity, learning curves; figures."""
