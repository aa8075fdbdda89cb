"""Counts the parameters of each tuning method against model size (Lester et al. 2021, figure 4).

Counts come from shapes: nothing is allocated, so the largest sizes take no memory.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning import methods
from prompt_tuning.analysis import style
from prompt_tuning.errors import UserError
from prompt_tuning.families import PRESETS, preset
from prompt_tuning.methods.base import Method
from prompt_tuning.model.params import ParamSplit

SIZES = ("small", "base", "large", "xl", "xxl")
# Lengths and ranks are those of methods/*.gin. The prompt of 100 vectors and the prefix network are
# those of the paper's figure; WARP has two labels, multitask prompts one task.
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
LENGTHS = (1, 100)  # the range of the paper's figure


@dataclasses.dataclass(frozen=True)
class Row:
    """Parameters of a method at a size.

    Attributes:
      method: name of the method's gin file.
      size: one of `SIZES` of T5 v1.1, or another preset.
      trained_parameters: parameters that are trained.
      inference_parameters: parameters that a task adds to the frozen backbone, after the networks
        of training are folded.
      total_parameters: parameters of the whole model in training.
    """

    method: str
    size: str
    trained_parameters: int
    inference_parameters: int
    total_parameters: int


def rows(sizes: Sequence[str] = SIZES) -> tuple[Row, ...]:
    """Counts every method at every size.

    Raises:
      UserError: for an unknown size.
    """
    return tuple(_row(name, METHODS[name], size) for name in METHODS for size in sizes)


def paper_rows(sizes: Sequence[str], length: int) -> tuple[Row, ...]:
    """Counts the methods of the paper's figure, with prompts and prefixes of `length` vectors."""
    figure_methods = {
        "model_tuning": methods.ModelTuning(),
        "prefix_tuning": methods.PrefixTuning(length, hidden=512),
        "warp": methods.Warp(length, label_ids=(3, 4)),
        "prompt_tuning": methods.PromptTuning(length),
        "prompt_design": methods.PromptDesign(),
    }
    return tuple(
        _row(name, method, size) for name, method in figure_methods.items() for size in sizes
    )


# For each line of the figure: the method, and the count to draw.
_LINES = {
    "model tuning": ("model_tuning", "trained_parameters"),
    "prefix tuning, training": ("prefix_tuning", "trained_parameters"),
    "prefix tuning, inference": ("prefix_tuning", "inference_parameters"),
    "prompt tuning": ("prompt_tuning", "trained_parameters"),
    "WARP": ("warp", "trained_parameters"),
}


@functools.cache
def _row(name: str, method: Method, size: str) -> Row:
    preset_name = f"t5_1_1_{size}" if size in SIZES else size
    if preset_name not in PRESETS:
        available = ", ".join((*SIZES, *sorted(PRESETS)))
        raise UserError(f"--sizes={size}: unknown size; available: {available}")
    # Scanned layers have the same parameters, and JAX traces one layer per stack. Deep prompts
    # differ by layer, so they cannot be scanned.
    config = preset(preset_name, scan_layers=not isinstance(method, methods.DeepPrompt))
    split = ParamSplit.of(config, method)
    at_inference = method.folded()
    folded = split if at_inference == method else ParamSplit.of(config, at_inference)
    return Row(
        name,
        size,
        split.count(split.trained),
        folded.count(folded.trained),
        split.count(frozenset(split.shapes)),
    )


def table(rows: Sequence[Row]) -> str:
    """Formats one line per row; shares are of the whole model."""
    head = (
        f"{'method':18} {'size':9} {'trained':>15} {'share':>10} {'at inference':>15} {'share':>10}"
    )
    lines = [
        f"{row.method:18} {row.size:9} "
        f"{row.trained_parameters:15,} {row.trained_parameters / row.total_parameters:10.4%} "
        f"{row.inference_parameters:15,} {row.inference_parameters / row.total_parameters:10.4%}"
        for row in rows
    ]
    return "\n".join([head, "-" * len(head), *lines])


def content(sizes: Sequence[str] = SIZES) -> dict[str, Any]:
    """The content of `--json`: rows of every method, and of the paper's figure by length."""
    lengths = {str(length): paper_rows(sizes, length) for length in LENGTHS}
    return {
        "rows": [dataclasses.asdict(row) for row in rows(sizes)],
        "lengths": {
            length: [dataclasses.asdict(row) for row in figure_rows]
            for length, figure_rows in lengths.items()
        },
    }


@style.styled
def figure(sizes: Sequence[str] = SIZES) -> Any:
    """Draws the paper's figure 4, as a matplotlib Figure.

    A task's parameters, and their share of the backbone, against the backbone's parameters. Lines
    show prompts and prefixes of 100 vectors; bands extend down to one vector.
    """
    drawing, [[above], [below]] = style.figure(height=4.6, rows=2, sharex=True)
    short, long = (
        {(row.method, row.size): row for row in paper_rows(sizes, length)} for length in LENGTHS
    )
    backbones = {size: long["model_tuning", size].total_parameters for size in sizes}
    order = sorted(backbones, key=backbones.__getitem__)
    x = np.array([backbones[size] for size in order])
    for i, (label, (method, count)) in enumerate(_LINES.items()):
        low, high = (
            np.array([getattr(by_name[method, size], count) for size in order])
            for by_name in (short, long)
        )
        look = style.line(i)
        for axis, whole in ((above, 1), (below, x / 100)):
            axis.fill_between(x, low / whole, high / whole, color=look["color"], alpha=0.15, lw=0)
            axis.plot(x, high / whole, label=label, **look)
    designed = max(long["prompt_design", size].trained_parameters for size in order)
    above.plot([], [], " ", label=f"prompt design: {designed}")
    above.set(yscale="log", ylabel="parameters of a task")
    below.set(xscale="log", yscale="log", ylabel="share of the backbone (%)")
    below.set_xlabel("parameters of the backbone")
    style.legend(drawing, title="prompts and prefixes of 100 vectors; bands down to 1")
    return drawing
