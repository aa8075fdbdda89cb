"""The error of every checkpoint format."""
