"""The common style of all figures.

Figures are one column wide, readable by colour-blind readers and in black and white, and have the
same bytes for the same data.
"""

import functools
from collections.abc import Callable
from typing import Any

from etils import epath

from prompt_tuning.errors import UserError
from prompt_tuning.runtime.files import renamed_when_done

COLUMN = 3.3  # inches
FORMATS = ("png", "pdf", "svg")
# Okabe and Ito's colours without yellow, which is too light for lines on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GRAY = "0.45"
_MARKERS = "osD^vPX"
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (6, 1.5, 1.5, 1.5)))
_RC: Any = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 8,
    "font.size": 7,
    "grid.color": "0.9",
    "grid.linewidth": 0.5,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "pdf.fonttype": 42,  # letters stay letters
    "savefig.dpi": 300,
    "svg.hashsalt": "prompt_tuning",
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
}
_METADATA = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}


def styled(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a function that returns a Figure with the fonts, lines and grid of all figures."""

    @functools.wraps(draw)
    def drawn(*arguments: Any, **named: Any) -> Any:
        import matplotlib

        with matplotlib.rc_context(_RC):
            return draw(*arguments, **named)

    return drawn


def figure(
    width: float = COLUMN, height: float = 2.5, rows: int = 1, columns: int = 1, **subplots: Any
) -> tuple[Any, Any]:
    """Creates a matplotlib Figure without a display, and its axes [rows, columns].

    Args:
      width, height: size in inches.
      rows, columns: numbers of axes.
      **subplots: further arguments of matplotlib's `Figure.subplots`.
    """
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(width, height), layout="constrained")
    return drawing, drawing.subplots(rows, columns, squeeze=False, **subplots)


def line(i: int) -> dict[str, Any]:
    """Colour, marker and dashes of line `i`, drawn on top of later ones; 28 lines differ."""
    return {
        "color": COLORS[i % len(COLORS)],
        "marker": _MARKERS[i % len(_MARKERS)],
        "linestyle": _DASHES[i % len(_DASHES)],
        "zorder": 3 - i / 100,
    }


def save(figure: Any, path: epath.PathLike) -> None:
    """Writes a figure, without a date, in the format of the path's suffix.

    Raises:
      UserError: if the suffix is none of `FORMATS`.
    """
    import matplotlib

    suffix = epath.Path(path).suffix.removeprefix(".")
    if suffix not in FORMATS:
        raise UserError(f"{path}: the name of a figure must end in one of .{', .'.join(FORMATS)}")
    with matplotlib.rc_context(_RC), renamed_when_done(path) as temporary:
        figure.savefig(temporary, format=suffix, metadata=_METADATA[suffix])


def legend(figure: Any, **settings: Any) -> None:
    """Adds a legend below the axes, where it hides no data."""
    handles: dict[str, Any] = {}
    for axis in figure.axes:
        handles |= dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(
        handles.values(), handles, **{"loc": "outside lower center", "ncols": 2, **settings}
    )
