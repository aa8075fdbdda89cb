"""Backbones in each format, a run's own checkpoints, prompts, their cards and fingerprints."""
