"""What a run tells at its end: parameters, the table of scores, the learning curve.

`python -m prompt_tuning.report parameters` compares the tuning methods' parameters.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags
from etils import epath

from prompt_tuning import command
from prompt_tuning.analysis import style
from prompt_tuning.checkpoint.files import renamed_when_done
from prompt_tuning.errors import UserError
from prompt_tuning.methods.base import Method
from prompt_tuning.params import ParamSplit, flatten
from prompt_tuning.sharding import Layout, shardings_of
from prompt_tuning.t5.config import T5Config
from prompt_tuning.t5.network import init_shapes


def parameters(split: ParamSplit) -> str:
    """How many parameters are trained, added and frozen, one line each."""
    total = split.count(frozenset(split.shapes))
    kinds = {"trained": split.trained, "added": split.added, "frozen": split.frozen}
    counts = {kind: split.count(paths) for kind, paths in kinds.items()}
    lines = [
        f"{kind:8} {len(kinds[kind]):5} leaves {count:15,} parameters {count / total:9.4%}"
        for kind, count in counts.items()
    ]
    return "\n".join([*lines, f"{'total':8} {len(split.shapes):5} leaves {total:15,} parameters"])


def plan(config: T5Config, method: Method, layout: Layout) -> str:
    """Parameters, and each leaf's shape, dtype and partition spec: from shapes alone."""
    split = ParamSplit.of(config, method)
    shardings = flatten(shardings_of(init_shapes(config, method), layout))
    lines = [
        f"{'train' if path in split.trained else 'frozen':6} {path:64} "
        f"{jax.tree.leaves(shape)[0].dtype.name} {shape.shape} {shardings[path].spec}"
        for path, shape in sorted(split.shapes.items())
    ]
    return "\n".join([f"mesh {dict(layout.mesh.shape)}", *lines, parameters(split)])


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


def write_json(path: epath.PathLike, content: Mapping[str, Any]) -> None:
    """Writes a JSON file, whole or not at all."""
    with renamed_when_done(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def write_parameters(folder: epath.Path, split: ParamSplit) -> None:
    """Writes `parameters.json`: {"trained_parameters", "total_parameters"}."""
    counts = {"trained": split.trained, "total": frozenset(split.shapes)}
    numbers = {f"{name}_parameters": split.count(paths) for name, paths in counts.items()}
    write_json(folder / "parameters.json", numbers)


@style.styled
def learning_curve(
    path: epath.PathLike,
    train: Sequence[Mapping[str, float]],
    validation: Sequence[Mapping[str, float]],
    levels: Mapping[str, float],
) -> None:
    """Draws training loss and the validation metrics against the step, as a PNG.

    Args:
      path: the file.
      train: lines {"step", "loss_per_nonpadding_target_token", ...}.
      validation: lines {"step", metric: value, ...}.
      levels: horizontal lines by name (majority class, frozen backbone).
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


def main(words: Sequence[str]) -> None:
    from prompt_tuning import parameter_report

    if list(words) != ["parameters"]:
        raise UserError("usage: python -m prompt_tuning.report parameters")
    sizes = flags.FLAGS.sizes
    print(parameter_report.table(parameter_report.rows(sizes)))
    if flags.FLAGS.json:
        write_json(flags.FLAGS.json, parameter_report.content(sizes))
    if flags.FLAGS.plot:
        style.save(parameter_report.figure(sizes), flags.FLAGS.plot)


if __name__ == "__main__":
    from prompt_tuning.parameter_report import SIZES

    # Here, not above: other commands of one process have flags of the same names.
    flags.DEFINE_string("json", None, "File to write the rows to.")
    flags.DEFINE_string("plot", None, "File of the paper's figure 4: .png, .pdf or .svg.")
    flags.DEFINE_list("sizes", list(SIZES), "Sizes of T5 v1.1, and other presets.")
    command.run_with_words(main)
