"""Backbones, prompts and adapters in other projects' formats, and for other backbones."""
