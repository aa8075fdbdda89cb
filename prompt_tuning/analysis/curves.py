"""python -m prompt_tuning.analysis.curves NAME=RUNS ...: compares learning curves of several runs.

RUNS is a glob of run folders (`MODEL_DIR`s) that differ only in their seed; the curve of a name is
their mean, with the standard deviation.
"""

import dataclasses
import glob
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags
from etils import epath

from prompt_tuning.analysis import style
from prompt_tuning.cli import plain_command
from prompt_tuning.errors import UserError
from prompt_tuning.runtime.files import write_json
from prompt_tuning.training.metrics_writer import read_metrics

LOGS = {"train": "train", "validation": "inference_eval/*"}
LOSS = "train/loss_per_nonpadding_target_token"


@dataclasses.dataclass(frozen=True)
class Curve:
    """A metric over training, averaged over runs that differ in their seed.

    Attributes:
      steps: steps that all runs have.
      mean, sd: mean and sample standard deviation at each step; the latter is 0 for a single run.
      runs: number of runs.
    """

    steps: tuple[int, ...]
    mean: tuple[float, ...]
    sd: tuple[float, ...]
    runs: int


def of_run(folder: epath.PathLike, metric: str) -> dict[int, float]:
    """Reads a run's metric by step; for the validation of a mixture, the mean over its tasks.

    Args:
      folder: the run's `MODEL_DIR`.
      metric: LOG/NAME, such as "train/gradient_norm" or "validation/rank/accuracy".

    Raises:
      UserError: if the run has no such log, or the log has no such metric.
    """
    log, _, name = metric.partition("/")
    if log not in LOGS or not name:
        raise UserError(f"--metric={metric}: must be LOG/NAME, with LOG one of {', '.join(LOGS)}")
    files = sorted(epath.Path(folder).glob(f"{LOGS[log]}/metrics.jsonl"))
    if not files:
        raise UserError(f"{folder}: no {LOGS[log]}/metrics.jsonl; give the folder of a run")
    by_task = []
    for file in files:
        lines = read_metrics(file)
        by_task.append({int(line["step"]): line[name] for line in lines if name in line})
        if not by_task[-1]:
            names = sorted({name for line in lines for name in line} - {"step"})
            raise UserError(f"--metric={metric}: {file} has {', '.join(names) or 'no lines'}")
    steps = _common_steps(by_task)
    return {step: float(np.mean([values[step] for values in by_task])) for step in steps}


def mean(runs: Sequence[Mapping[int, float]]) -> Curve:
    """Averages runs {step: value} over the steps that all of them have."""
    steps = _common_steps(runs)
    values = np.array([[run[step] for step in steps] for run in runs])
    sd = values.std(axis=0, ddof=1) if len(runs) > 1 else np.zeros(len(steps))
    return Curve(tuple(steps), tuple(values.mean(axis=0)), tuple(sd), len(runs))


@style.styled
def figure(curves: Mapping[str, Curve], metric: str) -> Any:
    """Draws curves by name; bands are one standard deviation to each side."""
    drawing, [[axis]] = style.figure()
    for i, (name, curve) in enumerate(curves.items()):
        look = style.line(i)
        values, sd = np.array(curve.mean), np.array(curve.sd)
        if curve.runs > 1:
            band = (values - sd, values + sd)
            axis.fill_between(curve.steps, *band, color=look["color"], alpha=0.2, linewidth=0)
        every = max(1, len(curve.steps) // 8)
        label = f"{name} (n = {curve.runs})" if curve.runs > 1 else name
        axis.plot(curve.steps, values, label=label, markevery=every, **look)
    spread = "\nmean ± sd" if any(curve.runs > 1 for curve in curves.values()) else ""
    axis.set_xlabel("training step")
    axis.set_ylabel(_label(metric) + spread)
    style.legend(drawing)
    return drawing


def read_curves(words: Sequence[str], metric: str) -> dict[str, Curve]:
    """Reads the curves that words NAME=RUNS describe, by name.

    Raises:
      UserError: if a word matches no run, runs have no step in common, or as `of_run`.
    """
    by_name: dict[str, dict[str, str]] = {}  # folders by what they are, so that each counts once
    for word in words:
        name, equals, pattern = word.partition("=")
        folders = sorted(glob.glob(pattern))
        if not equals or not folders:
            raise UserError(f"{word}: must be NAME=RUNS, with RUNS a run folder or a glob of some")
        own = by_name.setdefault(name, {})
        for folder in folders:
            own.setdefault(os.path.realpath(folder), folder)
    curves = {
        name: mean([of_run(f, metric) for f in own.values()]) for name, own in by_name.items()
    }
    if apart := [name for name, curve in curves.items() if not curve.steps]:
        raise UserError(f"{apart[0]}: its runs have no step in common")
    return curves


def main(words: Sequence[str], *, metric: str, json: str | None, plot: str | None) -> None:
    if not words:
        raise UserError("give curves: python -m prompt_tuning.analysis.curves NAME=RUNS ...")
    curves = read_curves(words, metric)
    for name, curve in curves.items():
        last = f"{curve.mean[-1]:.4f} ± {curve.sd[-1]:.4f} at step {curve.steps[-1]}"
        print(f"{name}: {last}, {curve.runs} runs")
    if json:
        content = {name: dataclasses.asdict(curve) for name, curve in curves.items()}
        write_json(json, {"metric": metric, "curves": content})
    if plot:
        style.save(figure(curves, metric), plot)


def _common_steps(runs: Sequence[Mapping[int, float]]) -> list[int]:
    return sorted(set.intersection(*(set(run) for run in runs)))


def _label(metric: str) -> str:
    if metric == LOSS:
        return "training loss\n(nats per target token)"
    log, _, name = metric.partition("/")
    return f"{log} {name.replace('_', ' ')}"


def define_flags() -> plain_command.Flags:
    return {
        "metric": flags.DEFINE_string(
            "metric", LOSS, "LOG/NAME, such as validation/rank/accuracy."
        ),
        "json": flags.DEFINE_string("json", None, "File to write the curves to."),
        "plot": flags.DEFINE_string("plot", None, "File of a figure to draw: .png, .pdf or .svg."),
    }


if __name__ == "__main__":
    plain_command.main(main, define_flags, words=True)
