"""Pre-training tasks over C4 or JSON lines: span corruption and prefix language modelling.

Raffel et al., 2020 (arXiv 1910.10683); prefix LM is the objective of LM adaptation (Lester et al.,
2021, arXiv 2104.08691, section 2.2). The names are those of T5's code.
"""

import dataclasses
import functools
import json
from collections.abc import Collection, Iterator
from pathlib import Path

from prompt_tuning.data.catalogue import denoising
from prompt_tuning.data.catalogue.text_task import TextTask
from prompt_tuning.data.quiet import seqio, tf
from prompt_tuning.data.readers.compressed import open_text
from prompt_tuning.data.readers.local_files import Folder
from prompt_tuning.errors import UserError


@dataclasses.dataclass(frozen=True)
class CorpusFiles:
    """JSON lines, {"text": ...}, in any number of files of a folder.

    Files with "validation" in their name belong to that split, as in C4's own JSON files; all
    others belong to the training split.
    """

    folder: str

    def source(self, folder: Folder, splits: Collection[str]) -> seqio.DataSource | None:
        """A source over the existing files of `splits`; None if there are none."""
        paths: dict[str, list[str]] = {}
        for path in sorted((folder.root / self.folder).glob("*.jsonl*")):
            split = "validation" if "validation" in path.name else "train"
            if split in splits:
                paths.setdefault(split, []).append(str(path))
        return seqio.FileDataSource(_read, paths) if paths else None


def _read(path: tf.Tensor) -> tf.data.Dataset:
    return tf.data.Dataset.from_generator(
        _texts, args=(path,), output_signature={"text": tf.TensorSpec([], tf.string)}
    )


def _texts(name: bytes) -> Iterator[dict[str, str]]:
    with open_text(Path(name.decode())) as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield {"text": json.loads(line)["text"]}
            except (ValueError, KeyError, TypeError) as error:
                where = f"{name.decode()}, line {number}"
                raise UserError(f'{where}: expected a JSON object with a "text"') from error


def _task(name: str, objective: denoising.Objective) -> TextTask:
    return TextTask(
        task=f"c4_v220_{name}",
        tfds_name="c4/en:2.2.0",
        format=functools.partial(
            seqio.preprocessors.rekey, key_map={"inputs": None, "targets": "text"}
        ),
        objective=objective,
        splits=("train", "validation"),
        local=CorpusFiles("c4"),
    )


TASKS = (
    _task("span_corruption", denoising.span_corruption),
    _task("prefix_lm", denoising.prefix_lm),
)
