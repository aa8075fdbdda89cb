"""What a run tells at its end: parameters, the table of scores, the learning curve.

`python -m prompt_tuning.report parameters` compares the tuning methods' parameters.
"""

from collections.abc import Mapping


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Named rows of metrics as a plain-text table; a metric that a row lacks is left blank."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    width = max(len(name) for name in rows)
    head = " " * width + "".join(f"  {name:>18}" for name in columns)
    lines = [
        name.ljust(width) + "".join(f"  {row[c]:18.4f}" if c in row else " " * 20 for c in columns)
        for name, row in rows.items()
    ]
    return "\n".join([head, "-" * len(head), *lines])
