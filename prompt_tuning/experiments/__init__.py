"""Whole experiments: a gin file names a grid, `python -m prompt_tuning.experiments` runs it."""
