"""Formats metrics as a plain-text table."""

from collections.abc import Mapping


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Formats rows of metrics by name; a metric that a row does not have is left blank."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    width = max(len(name) for name in rows)
    head = " " * width + "".join(f"  {name:>18}" for name in columns)
    lines = [
        name.ljust(width) + "".join(f"  {row[c]:18.4f}" if c in row else " " * 20 for c in columns)
        for name, row in rows.items()
    ]
    return "\n".join([head, "-" * len(head), *lines])
