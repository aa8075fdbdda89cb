"""Formats metrics as a plain-text table."""

from collections.abc import Mapping


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Formats rows of metrics by name; a metric that a row does not have is left blank."""
    names = dict.fromkeys(name for row in rows.values() for name in row)
    columns = {name: max(18, len(name)) for name in names}
    width = max(len(name) for name in rows)
    head = " " * width + "".join(f"  {name:>{size}}" for name, size in columns.items())
    lines = [
        name.ljust(width)
        + "".join(
            f"  {row[column]:{size}.4f}" if column in row else " " * (size + 2)
            for column, size in columns.items()
        )
        for name, row in rows.items()
    ]
    return "\n".join([head, "-" * len(head), *lines])
