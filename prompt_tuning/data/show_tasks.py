"""python -m prompt_tuning.data.show_tasks: lists tasks with source, splits, metrics and labels."""

import importlib
import os
from collections.abc import Sequence

from absl import flags

from prompt_tuning import embedded
from prompt_tuning.cli import plain_command
from prompt_tuning.data import tasks
from prompt_tuning.data.catalogue import all_tasks
from prompt_tuning.data.catalogue.text_task import TFDS
from prompt_tuning.data.quiet import seqio
from prompt_tuning.data.readers import local_files
from prompt_tuning.errors import UserError

HEAD = ("task", "source", "splits", "metrics", "labels")


def rows() -> list[tuple[str, ...]]:
    """One row per registered task and mixture, with the columns of `HEAD`, sorted by name."""
    mixtures = [_mixture_row(name) for name in seqio.MixtureRegistry.names()]
    return sorted([_task_row(name) for name in seqio.TaskRegistry.names()] + mixtures)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Formats rows as aligned columns."""
    widths = [max(map(len, column)) for column in zip(HEAD, *rows, strict=True)]
    lines = [HEAD, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _task_row(name: str) -> tuple[str, ...]:
    task = seqio.TaskRegistry.get(name)
    return (
        name,
        _source(task.source),
        " ".join(task.splits),
        " ".join(metric.__name__ for metric in task.predict_metric_fns),
        ", ".join(tasks.labels_of(name)),
    )


def _mixture_row(name: str) -> tuple[str, ...]:
    parts = seqio.MixtureRegistry.get(name).tasks
    splits = sorted({split for task in parts for split in task.splits})
    return name, f"mixture of {len(parts)}", " ".join(splits), "", ""


def _source(source: seqio.DataSource) -> str:
    match source:
        case seqio.TfdsDataSource():
            return f"tfds {source.tfds_dataset.name}"
        case local_files.FolderSource():
            return str(source.folder)
        case seqio.FileDataSource():
            return os.path.dirname(source.list_shards(source.splits[0])[0])
        case tasks.RowSource():
            return "files"
        case _:
            return type(source).__name__


def main(*, data_dir: str | None, module: str | None) -> None:
    vocabulary = tasks.vocabulary(embedded.vocabulary())
    all_tasks.register(vocabulary, data_dir or TFDS)
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(f"--module={module}: cannot be imported ({error})") from error
    print(table(rows()))


def define_flags() -> plain_command.Flags:
    return {
        "data_dir": flags.DEFINE_string(
            "data_dir", None, "Folder of local data sets, instead of TFDS."
        ),
        "module": flags.DEFINE_string("module", None, "Module that registers more tasks."),
    }


if __name__ == "__main__":
    plain_command.main(main, define_flags)
