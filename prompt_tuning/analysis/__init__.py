"""What trained prompts and runs show: nearest words, similarity, learning curves; figures."""
