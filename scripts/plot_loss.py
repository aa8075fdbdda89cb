"""Draws the training loss of a run, as logged and smoothed, against the step.

python scripts/plot_loss.py --model_dir=RUN --output=loss.png
"""

import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from absl import app, flags

_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Folder of the run.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "The PNG to write.", required=True)
_WINDOW = flags.DEFINE_integer("window", 5, "Log lines that a smoothed point is the mean of.")


def main(argv: Sequence[str]) -> None:
    del argv
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    log = Path(_MODEL_DIR.value, "train", "metrics.jsonl").read_text(encoding="utf-8")
    lines = {
        line["step"]: line for line in map(json.loads, log.splitlines())
    }  # the last one counts
    steps = np.array(sorted(lines))
    loss = np.array([lines[step]["loss_per_nonpadding_target_token"] for step in steps])
    smooth = np.convolve(loss, np.full(_WINDOW.value, 1 / _WINDOW.value), mode="valid")
    figure, axes = plt.subplots(figsize=(6.4, 4.0))
    axes.plot(steps, loss, color="0.75", linewidth=1, label="as logged")
    centre = steps[_WINDOW.value // 2 :][: len(smooth)]
    axes.plot(centre, smooth, color="#0072B2", label=f"mean of {_WINDOW.value} log lines")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per target token, all objectives)")
    axes.legend()
    figure.tight_layout()
    figure.savefig(_OUTPUT.value, dpi=150)


if __name__ == "__main__":
    app.run(main)
