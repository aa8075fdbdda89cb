"""Reading comprehension: SQuAD v1.1, and the sets of MRQA 2019 that are out of its domain.

SQuAD is from Rajpurkar et al., 2016 (arXiv 1606.05250), MRQA from Fisch et al., 2019 (arXiv
1910.09753). Lester et al., 2021 (arXiv 2104.08691), table 1, train on SQuAD and evaluate on the
others. The names are those of the original code.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from prompt_tuning.data.catalogue import glue_metrics as metrics
from prompt_tuning.data.catalogue import text_task
from prompt_tuning.data.catalogue.text_task import TextTask
from prompt_tuning.data.quiet import seqio, tf
from prompt_tuning.data.readers import records
from prompt_tuning.data.readers.local_files import Fields, LocalFiles
from prompt_tuning.data.readers.records import BadRows
from prompt_tuning.data.tasks import TfExample
from prompt_tuning.errors import UserError

OUT_OF_DOMAIN = ("bio_asq", "drop", "duo_rc", "race", "relation_extraction", "textbook_qa")


@seqio.map_over_dataset
def question_and_context(example: TfExample) -> TfExample:
    """T5's format of SQuAD: spaces around punctuation; the first answer is the target.

    Args:
      example: Fields "question", "context" and "answers", which are texts or {"text": texts}, at
        least one.
    """
    answers = example["answers"]
    answers = _spaced(answers["text"] if isinstance(answers, Mapping) else answers)
    parts = ["question:", _spaced(example["question"]), "context:", _spaced(example["context"])]
    return {
        "inputs": _single_spaces(tf.strings.join(parts, separator=" ")),
        "targets": answers[0],
        "answers": answers,
    }


def all_answers(
    text: str, *, example: Mapping[str, Any], is_target: bool = False
) -> str | list[str]:
    """The predicted answer, or all correct ones."""
    return [answer.decode() for answer in example["answers"]] if is_target else text


def _spaced(text: tf.Tensor) -> tf.Tensor:
    return _single_spaces(tf.strings.regex_replace(text, r"([[:punct:]])", r" \1 "))


def _single_spaces(text: tf.Tensor) -> tf.Tensor:
    return tf.strings.regex_replace(text, r"\s+", " ")


@dataclasses.dataclass(frozen=True)
class MrqaFiles(LocalFiles):
    """Files as MRQA distributes them: a header, then one line per context with its questions."""

    columns: Mapping[str, type | Sequence[str]] = dataclasses.field(default_factory=dict)

    def rows(self, split: str, path: Path, bad_rows: BadRows) -> list[Fields]:
        """Reads the questions, with the fields "qid", "question", "context" and "answers".

        Raises:
          UserError: For the first malformed line that `bad_rows` does not skip; the message names
            file and line.
        """
        contexts = records.read(path, _questions, bad_rows)
        rows = [question for questions in contexts for question in questions]
        if not rows:
            raise UserError(f"{path}: contains no questions")
        return rows


def _questions(fields: dict[str, Any], where: str) -> list[Fields]:
    if "header" in fields:
        return []
    context = _text(fields, "context", where)
    questions = records.field(fields, "qas", where)
    if not isinstance(questions, list) or not all(isinstance(q, dict) for q in questions):
        raise UserError(f"{where}: 'qas' is {records.shown(questions)}, not a list of objects")
    return [_question(question, where) | {"context": context} for question in questions]


def _question(fields: dict[str, Any], where: str) -> Fields:
    answers = records.field(fields, "answers", where)
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) for a in answers):
        raise UserError(f"{where}: 'answers' is {records.shown(answers)}, not a list of texts")
    return {
        "qid": _text(fields, "qid", where),
        "question": _text(fields, "question", where),
        "answers": answers,
    }


def _text(fields: dict[str, Any], name: str, where: str) -> str:
    value = records.field(fields, name, where)
    if not isinstance(value, str):
        raise UserError(f"{where}: {name!r} is {records.shown(value)}, not a text")
    return records.check_text(value, name, where).strip()


def _task(
    name: str, tfds_name: str, folder: str, splits: Sequence[str] | Mapping[str, str]
) -> TextTask:
    return TextTask(
        task=name,
        tfds_name=tfds_name,
        format=question_and_context,
        postprocess=all_answers,
        metrics=(metrics.squad,),
        splits=splits,
        local=MrqaFiles(folder),
    )


SQUAD = _task(
    "squad_v010_allanswers_examples",
    "squad/v1.1:3.0.0",
    "squad",
    ("train", "validation"),
)
MRQA = {
    name: _task(f"mrqa_{name}_v100_examples", f"mrqa/{name}:1.0.0", name, {"validation": "test"})
    for name in OUT_OF_DOMAIN
}
TASKS = (SQUAD, *MRQA.values())


def register_mixtures(registered: Collection[str]) -> tuple[str, ...]:
    """Registers "train on SQuAD, evaluate elsewhere" with those tasks that are registered.

    Returns:
      The names of the mixtures.
    """
    pairs = {f"squad_to_{name}_examples": (SQUAD, task) for name, task in MRQA.items()}
    return text_task.add_equal_mixtures({**pairs, "squad_to_mrqa_examples": TASKS}, registered)
