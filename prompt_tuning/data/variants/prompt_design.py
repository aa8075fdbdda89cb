"""Prompt design (Brown et al., 2020, arXiv 2005.14165): an instruction and demonstrations in text.

The text in front of every input that is evaluated, as blocks separated by a blank line:

    INSTRUCTION

    a training input
    its target

    the input

An empty instruction and absent demonstrations have no block.
"""

import dataclasses
import itertools
import re
import statistics
from collections.abc import Sequence

import numpy as np

from prompt_tuning.data.batches import TaskData
from prompt_tuning.data.files import Row
from prompt_tuning.data.tasks import begin_of
from prompt_tuning.data.variants import few_shot
from prompt_tuning.errors import UserError, whole_number
from prompt_tuning.evaluation.sets import EvalSet

SEPARATOR = "\n\n"


def designed_data(
    data: TaskData, instruction: str = "", demonstrations: int = 0, seed: int = 0
) -> TaskData:
    """`data` with a designed prompt in front of the inputs of its evaluation sets.

    Training batches are unchanged.

    Args:
      data: The task; demonstrations come from its split "train".
      instruction: Text of the first block; `{labels}` stands for the label words, with commas
        between them.
      demonstrations: Number of demonstrations, which take turns over the classes if the task has
        label words.
      seed: Seed of the choice of demonstrations.

    Raises:
      UserError: If `demonstrations` or `seed` is negative.
    """
    return dataclasses.replace(data, transform=Design(instruction, demonstrations, seed))


@dataclasses.dataclass(frozen=True)
class Design:
    """Puts a designed prompt in front of the inputs of an evaluation set.

    Attributes:
      instruction, demonstrations, seed: See `designed_data`.
    """

    instruction: str = ""
    demonstrations: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.instruction, str):
            raise UserError(f"INSTRUCTION = {self.instruction!r}: must be a text")
        whole_number("DEMONSTRATIONS", self.demonstrations, 0)
        whole_number("DEMONSTRATIONS_SEED", self.seed, 0)

    def __call__(self, data: TaskData, eval_set: EvalSet) -> EvalSet:
        """The set with as many demonstrations before each input as fit into its length.

        The first demonstrations are left out first. Inputs are never cut.

        Raises:
          UserError: If an input with the instruction is too long, the task has fewer training
            examples than demonstrations, or it has no label words for "{labels}".
        """
        feature = data.provider.output_features["inputs"]
        encode, begin = feature.vocabulary.encode, begin_of(feature.vocabulary)
        most = data.lengths["inputs"] - feature.add_eos - len(begin)
        end = [feature.vocabulary.eos_id] if feature.add_eos else []
        demonstrated = self._chosen(data)
        heads = self._heads(data, demonstrated)
        head_ids = [encode(head) for head in heads]
        tokens = np.zeros((len(eval_set.inputs), data.lengths["inputs"]), np.int32)
        counts, texts = [], []
        for row, text in zip(tokens, eval_set.inputs, strict=True):
            ids = encode(text)
            fitting = [n for n, head in enumerate(head_ids) if len(head) + len(ids) <= most]
            if not fitting:
                raise UserError(_too_long(data, eval_set, len(head_ids[0]) + len(end)))
            counts.append(fitting[-1])
            texts.append(heads[fitting[-1]] + text)
            ids = [*begin, *head_ids[fitting[-1]], *ids, *end]
            row[: len(ids)] = ids
        notes = (*eval_set.notes, *self._unknown_fields(data))
        if self.demonstrations:
            notes = (
                *notes,
                f"{data.task}, {eval_set.split} split: {statistics.fmean(counts):.1f} of "
                f"{self.demonstrations} demonstrations before an input on average, "
                f"{min(counts)} at least",
                *_warnings(data, eval_set, demonstrated),
            )
        return dataclasses.replace(eval_set, inputs=texts, encoder_input_tokens=tokens, notes=notes)

    def _heads(self, data: TaskData, demonstrated: Sequence[Row]) -> list[str]:
        """The text before an input with 0, 1, 2, ... demonstrations, counted from the last one."""
        blocks = [f"{row.inputs}\n{row.targets}" for row in demonstrated]
        if "{labels}" in self.instruction and not data.labels:
            raise UserError(
                f"INSTRUCTION = {self.instruction!r}: {data.task} has no label words for {{labels}}"
            )
        instruction = self.instruction.replace("{labels}", ", ".join(data.labels))
        first = [instruction] if instruction else []
        return [
            "".join(block + SEPARATOR for block in [*first, *blocks[len(blocks) - n :]])
            for n in range(len(blocks) + 1)
        ]

    def _unknown_fields(self, data: TaskData) -> list[str]:
        """A line on each {name} in the instruction that stands for nothing."""
        names = dict.fromkeys(re.findall(r"{\w*}", self.instruction.replace("{labels}", "")))
        return [
            f"warning: {data.task}: INSTRUCTION has {name}, which stays as it is; {{labels}} alone "
            "stands for something, and the input comes last"
            for name in names
        ]

    def _chosen(self, data: TaskData) -> list[Row]:
        if not self.demonstrations:
            return []
        [task] = data.tasks_with("train")
        rows = few_shot.read_rows(task, "train", data.lengths, data.use_cached)
        if len(rows) < self.demonstrations:
            raise UserError(
                f"DEMONSTRATIONS = {self.demonstrations}: {data.task} has only {len(rows)} "
                "training examples"
            )
        classes = few_shot.by_class([row.targets for row in rows], data.labels, self.seed)
        in_turn = (i for turn in itertools.zip_longest(*classes) for i in turn if i is not None)
        return [rows[i] for i in itertools.islice(in_turn, self.demonstrations)]


def _warnings(data: TaskData, eval_set: EvalSet, demonstrated: Sequence[Row]) -> list[str]:
    """What makes a score with demonstrations another one than it seems to be."""
    where = f"warning: {data.task}, {eval_set.split} split"
    lines = []
    known = {row.inputs for row in demonstrated}
    if count := sum(text in known for text in eval_set.inputs):
        lines.append(f"{where}: {count} inputs are among the demonstrations, with their answers")
    missing = sorted({*data.labels} - {row.targets for row in demonstrated})
    if missing and len(demonstrated) >= len(data.labels):
        lines.append(f"{where}: no demonstration is {' or '.join(map(repr, missing))}")
    return lines


def _too_long(data: TaskData, eval_set: EvalSet, head_length: int) -> str:
    longest = max(len(data.encode(text)) for text in eval_set.inputs) + head_length
    return (
        f'TASK_FEATURE_LENGTHS["inputs"] = {data.lengths["inputs"]}: with the instruction and '
        f"the end token the longest input of {data.task}, {eval_set.split} split, has {longest} "
        "tokens, and a designed prompt does not cut inputs"
    )
