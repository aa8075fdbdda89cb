"""Draws the learning curve of a single run."""

from collections.abc import Mapping, Sequence

from etils import epath

from prompt_tuning.analysis import style


@style.styled
def learning_curve(
    path: epath.PathLike,
    train: Sequence[Mapping[str, float]],
    validation: Sequence[Mapping[str, float]],
    levels: Mapping[str, float],
) -> None:
    """Draws training loss and validation metrics against the step.

    Args:
      path: figure file; its suffix, such as `.png`, selects the format.
      train: log lines {"step", "loss_per_nonpadding_target_token", ...}.
      validation: log lines {"step", metric: value, ...}.
      levels: heights of horizontal lines by name (majority class, frozen backbone).
    """
    figure, [[above], [below]] = style.figure(5, 4.5, rows=2, sharex=True)
    loss = [line["loss_per_nonpadding_target_token"] for line in train]
    above.plot([line["step"] for line in train], loss, color=style.COLORS[0])
    above.set_ylabel("loss (nats per target token)")
    names = dict.fromkeys(name for line in validation for name in line if name != "step")
    for i, name in enumerate(names, 1):
        points = [(line["step"], line[name]) for line in validation if name in line]
        below.plot(*zip(*points, strict=True), label=name, **style.line(i))
    for dashes, (name, level) in zip((":", "--", "-."), levels.items(), strict=False):
        below.axhline(level, color=style.GRAY, linestyle=dashes, linewidth=1, label=name)
    below.set_xlabel("training step")
    below.set_ylabel("validation")
    style.legend(figure)
    style.save(figure, path)
