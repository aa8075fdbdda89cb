"""Prompt tuning inside T5X (github.com/google-research/t5x): docs/t5x.md."""
