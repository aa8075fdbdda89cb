"""Prompt design (Brown et al., 2020, arXiv 2005.14165): an instruction and demonstrations in text.

The text in front of every input that is evaluated, blocks apart by a blank line:

    INSTRUCTION

    a training input
    its target

    the input

What is absent, the instruction or the demonstrations, has no block.
"""

import dataclasses
import itertools
import statistics

import numpy as np

from prompt_tuning.data.batches import TaskData
from prompt_tuning.data.quiet import seqio
from prompt_tuning.data.variants import few_shot
from prompt_tuning.errors import UserError
from prompt_tuning.evaluation.sets import EvalSet

APART = "\n\n"


def designed_data(
    data: TaskData, instruction: str = "", demonstrations: int = 0, seed: int = 0
) -> "DesignedData":
    """`data` with a designed prompt in front of what is evaluated.

    Args:
      data: the task; its split "train" gives the demonstrations.
      instruction: the first block.
      demonstrations: how many, a class in turn where the task has label words.
      seed: of their choice.

    Raises:
      UserError: if `demonstrations` or `seed` is negative.
    """
    if demonstrations < 0 or seed < 0:
        raise UserError(
            f"DEMONSTRATIONS = {demonstrations}, DEMONSTRATIONS_SEED = {seed}: must be 0 or more"
        )
    fields = {field.name: getattr(data, field.name) for field in dataclasses.fields(data)}
    return DesignedData(
        **fields, instruction=instruction, demonstrations=demonstrations, design_seed=seed
    )


@dataclasses.dataclass(frozen=True)
class DesignedData(TaskData):
    """A task whose evaluation sets have a designed prompt in front of each input; training has not.

    Attributes:
      instruction, demonstrations, design_seed: see `designed_data`.
      fitted: for each set read, a line on how many demonstrations fitted.
    """

    instruction: str = ""
    demonstrations: int = 0
    design_seed: int = 0
    fitted: list[str] = dataclasses.field(default_factory=list, compare=False)

    def eval_set(self, split: str) -> EvalSet:
        """The whole of a split; of the demonstrations in front of an input as many as fit into
        `lengths`, without the first ones.

        Raises:
          UserError: as `TaskData.eval_set`; if an input with the instruction is too long, or the
            task has fewer training examples than demonstrations.
        """
        data = super().eval_set(split)
        feature = seqio.get_mixture_or_task(self.task).output_features["inputs"]
        encode, most = feature.vocabulary.encode, self.lengths["inputs"] - feature.add_eos
        end = [feature.vocabulary.eos_id] if feature.add_eos else []
        heads = self._heads()
        head_ids = [encode(head) for head in heads]
        tokens = np.zeros((len(data.inputs), self.lengths["inputs"]), np.int32)
        counts, texts = [], []
        for row, text in zip(tokens, data.inputs, strict=True):
            ids = encode(text)
            fits = [n for n, head in enumerate(head_ids) if len(head) + len(ids) <= most]
            if not fits:
                raise UserError(self._too_long(data, len(head_ids[0]) + len(end)))
            counts.append(fits[-1])
            texts.append(heads[fits[-1]] + text)
            ids = [*head_ids[fits[-1]], *ids, *end]
            row[: len(ids)] = ids
        if self.demonstrations:
            self.fitted.append(
                f"demonstrations in front of an input of {self.task}, {split} split: "
                f"{statistics.fmean(counts):.1f} of {self.demonstrations} on average, "
                f"{min(counts)} at least"
            )
        return dataclasses.replace(data, inputs=texts, encoder_input_tokens=tokens)

    def remarks(self) -> list[str]:
        return [*super().remarks(), *self.fitted]

    def _heads(self) -> list[str]:
        """What stands in front of an input, with no demonstration, with the last one, with two."""
        blocks = [f"{row.inputs}\n{row.targets}" for row in self._chosen()]
        first = [self.instruction] if self.instruction else []
        return [
            "".join(block + APART for block in [*first, *blocks[len(blocks) - n :]])
            for n in range(len(blocks) + 1)
        ]

    def _chosen(self) -> list[few_shot.Row]:
        if not self.demonstrations:
            return []
        [task] = self._tasks("train")
        rows = few_shot.read_rows(task, "train", self.lengths, self.use_cached)
        if len(rows) < self.demonstrations:
            raise UserError(
                f"DEMONSTRATIONS = {self.demonstrations}: {self.task} has only {len(rows)} "
                "training examples"
            )
        classes = few_shot.by_class([row.targets for row in rows], self.labels, self.design_seed)
        in_turn = (i for turn in itertools.zip_longest(*classes) for i in turn if i is not None)
        return [rows[i] for i in itertools.islice(in_turn, self.demonstrations)]

    def _too_long(self, data: EvalSet, more: int) -> str:
        encode = self.encode
        longest = max(len(encode(text)) for text in data.inputs) + more
        return (
            f'TASK_FEATURE_LENGTHS["inputs"] = {self.lengths["inputs"]}: with the instruction and '
            f"the end token the longest input of {data.task}, {data.split} split, has {longest} "
            "tokens, and a designed prompt does not cut inputs"
        )
