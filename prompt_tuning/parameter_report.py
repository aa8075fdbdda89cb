"""Parameters that each tuning method costs, against model size (Lester et al. 2021, figure 4).

From shapes alone: nothing is allocated, so the largest sizes take no memory.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from prompt_tuning import methods
from prompt_tuning.checkpoint.files import renamed_when_done
from prompt_tuning.methods.base import Method
from prompt_tuning.params import ParamSplit
from prompt_tuning.t5.config import preset

SIZES = ("small", "base", "large", "xl", "xxl")
# Lengths and ranks of methods/*.gin; the prompt of 100 vectors and the prefix network are the
# paper's figure's, WARP and multitask prompts for two labels and one task.
METHODS: Mapping[str, Method] = {
    "prompt_design": methods.PromptDesign(),
    "prompt_tuning": methods.PromptTuning(100),
    "p_tuning": methods.PTuning(20),
    "prefix_tuning": methods.PrefixTuning(20, hidden=512),
    "deep_prompt": methods.DeepPrompt(20),
    "warp": methods.Warp(20, label_ids=(3, 4)),
    "lora": methods.LoRA(),
    "adapter": methods.Adapter(),
    "ia3": methods.IA3(),
    "bitfit": methods.BitFit(),
    "multitask_prompt": methods.MultitaskPrompt(100),
    "model_tuning": methods.ModelTuning(),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """Parameters of a method at a size.

    Attributes:
      method: as its gin file is called.
      size: of `SIZES`, T5 v1.1.
      trained_parameters: while training.
      inference_parameters: that a task brings to the frozen backbone, networks folded away.
      total_parameters: of the whole model while training.
    """

    method: str
    size: str
    trained_parameters: int
    inference_parameters: int
    total_parameters: int


@functools.cache
def rows(sizes: Sequence[str] = SIZES) -> tuple[Row, ...]:
    """Every method at every size."""
    return tuple(_row(name, size) for name in METHODS for size in sizes)


def _row(name: str, size: str) -> Row:
    config, method = preset(f"t5_1_1_{size}"), METHODS[name]
    split = ParamSplit.of(config, method)
    folded = ParamSplit.of(config, method.folded())
    return Row(
        name,
        size,
        split.count(split.trained),
        folded.count(folded.trained),
        split.count(frozenset(split.shapes)),
    )


def table(rows: Sequence[Row]) -> str:
    """A line for each row; shares are of the whole model."""
    head = (
        f"{'method':18} {'size':5} {'trained':>15} {'share':>10} {'at inference':>15} {'share':>10}"
    )
    lines = [
        f"{row.method:18} {row.size:5} "
        f"{row.trained_parameters:15,} {row.trained_parameters / row.total_parameters:10.4%} "
        f"{row.inference_parameters:15,} {row.inference_parameters / row.total_parameters:10.4%}"
        for row in rows
    ]
    return "\n".join([head, "-" * len(head), *lines])


def content(rows: Sequence[Row]) -> dict[str, Any]:
    """What `--json` writes."""
    return {"rows": [dataclasses.asdict(row) for row in rows]}


def plot(path: epath.PathLike, rows: Sequence[Row]) -> None:
    """Draws parameters and their share of the model against model size, as a PNG.

    Solid lines are of training; a dashed line is of inference where it needs fewer.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    colors = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    markers = "osD^v<>ph*X"
    figure, axes = plt.subplots(1, 2, figsize=(11, 5))
    shown = [name for name in METHODS if name != "prompt_design"]  # zero has no logarithm
    for i, name in enumerate(shown):
        own = [row for row in rows if row.method == name]
        sizes = [row.total_parameters for row in own]
        for axis, of_model in zip(axes, (False, True), strict=True):
            trained, kept = (
                [count / (row.total_parameters if of_model else 1) for count, row in pairs]
                for pairs in (
                    [(row.trained_parameters, row) for row in own],
                    [(row.inference_parameters, row) for row in own],
                )
            )
            style = {"color": colors[i], "marker": markers[i], "markersize": 4, "linewidth": 1.2}
            axis.plot(sizes, trained, label=name, **style)
            if kept != trained:
                axis.plot(sizes, kept, linestyle="--", label=f"{name}, inference", **style)
    for axis, what in zip(axes, ("parameters of a task", "share of the model"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="model parameters", ylabel=what)
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1.02, 0.5))
    figure.tight_layout()
    with renamed_when_done(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    plt.close(figure)
