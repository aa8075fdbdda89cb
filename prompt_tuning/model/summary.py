"""Summarises a tuned model: parameter counts, and every leaf's shape and placement."""

import jax
from etils import epath

from prompt_tuning.families import init_shapes
from prompt_tuning.methods.base import Method
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.runtime.files import write_json
from prompt_tuning.sharding import Layout, check_batch_size, shardings_of
from prompt_tuning.transformer.config import Config
from prompt_tuning.transformer.paths import flatten


def parameters(split: ParamSplit) -> str:
    """Counts of trained, added, frozen and all parameters, as a table of one line each."""
    total = split.count(frozenset(split.shapes))
    kinds = {"trained": split.trained, "added": split.added, "frozen": split.frozen}
    counts = {kind: split.count(paths) for kind, paths in kinds.items()}
    lines = [
        f"{kind:8} {len(kinds[kind]):5} leaves {count:15,} parameters {count / total:9.4%}"
        for kind, count in counts.items()
    ]
    return "\n".join([*lines, f"{'total':8} {len(split.shapes):5} leaves {total:15,} parameters"])


def plan(
    config: Config,
    method: Method,
    layout: Layout,
    batch_size: int | None = None,
    eval_batch_size: int | None = None,
    num_microbatches: int = 1,
) -> str:
    """Shape, dtype and partition spec of each leaf, and the counts; nothing is allocated.

    Raises:
      ValueError: If `layout` does not divide a batch, in parts or of evaluation, if its size is
        given.
    """
    if batch_size is not None:
        check_batch_size(batch_size, layout, parts=num_microbatches)
    if eval_batch_size is not None:
        check_batch_size(eval_batch_size, layout, "EVAL_BATCH_SIZE")
    split = ParamSplit.of(config, method)
    shardings = flatten(shardings_of(init_shapes(config, method), layout))
    lines = [
        f"{'train' if path in split.trained else 'frozen':6} {path:64} "
        f"{jax.tree.leaves(shape)[0].dtype.name} {shape.shape} {shardings[path].spec}"
        for path, shape in sorted(split.shapes.items())
    ]
    return "\n".join([f"mesh {dict(layout.mesh.shape)}", *lines, parameters(split)])


def write_parameters(folder: epath.Path, split: ParamSplit) -> None:
    """Writes `parameters.json`: {"trained_parameters", "total_parameters"}."""
    counts = {"trained": split.trained, "total": frozenset(split.shapes)}
    numbers = {f"{name}_parameters": split.count(paths) for name, paths in counts.items()}
    write_json(folder / "parameters.json", numbers)
