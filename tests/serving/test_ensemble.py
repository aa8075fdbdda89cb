"""Prompts that vote: the majority of what each answers alone."""

import collections
import dataclasses
import json
from collections.abc import Sequence

import jax
import numpy as np
import pytest

from prompt_tuning import sharding
from prompt_tuning.checkpoint import backbone, prompts
from prompt_tuning.errors import UserError
from prompt_tuning.evaluation.predict import generate, rank_labels
from prompt_tuning.evaluation.sets import EvalSet
from prompt_tuning.methods import FromFile, Method, PromptTuning
from prompt_tuning.model.tuned import initialize
from prompt_tuning.runs import ensemble
from prompt_tuning.t5 import T5Config
from prompt_tuning.t5.paths import flatten

CONFIG = T5Config(64, 16, 2, 8, 32, 2, 1, relative_buckets=8, relative_max_distance=12)
LABELS = ("5", "6 7", "9")
ROWS, LENGTH = 24, 12
VOTERS = 3


class Numbers:
    """A vocabulary whose words are ids."""

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(str(i) for i in ids if i > 1)


def agreement(targets, predictions) -> dict[str, float]:
    return {
        "agreement": float(np.mean([a == b for a, b in zip(targets, predictions, strict=True)]))
    }


@dataclasses.dataclass(frozen=True)
class Texts:
    """Rows of random ids; `runs.data.Data`."""

    labels: tuple[str, ...]
    task: str = "numbers"
    batch_size: int = 16
    splits = ("test",)

    def eval_sets(self, split: str) -> list[EvalSet]:
        rng = np.random.default_rng(5)
        ids = [rng.integers(3, 64, rng.integers(1, LENGTH)).tolist() for _ in range(ROWS)]
        tokens = np.zeros((ROWS, LENGTH), np.int32)
        for row, own in zip(tokens, ids, strict=True):
            row[: len(own) + 1] = [*own, 1]
        words = [[*Numbers().encode(word), 1] for word in self.labels]
        return [
            EvalSet(
                task=self.task,
                split=split,
                inputs=[Numbers().decode(own) for own in ids],
                targets=[LABELS[i % 3] for i in range(ROWS)],
                encoder_input_tokens=tokens,
                labels=self.labels,
                label_tokens=np.array([[*word, 0, 0][:3] for word in words], np.int32),
                target_length=4,
                metric_fns=(agreement,),
                decode=Numbers().decode,
            )
        ]


@pytest.fixture(scope="module")
def layout():
    return sharding.layout(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, layout):
    """With a backbone of large random weights, and prompts that disagree."""
    folder = tmp_path_factory.mktemp("ensemble")
    rng = np.random.default_rng(1)
    random = flatten(initialize(CONFIG, Method(), layout=layout).frozen)
    leaves = {path: rng.normal(0, 0.5, leaf.shape) for path, leaf in sorted(random.items())}
    backbone.save(
        folder / "backbone.safetensors",
        {path: leaf.astype(np.float32) for path, leaf in leaves.items()},
        "float32",
    )
    for i in range(VOTERS):
        prompts.save(folder / f"{i}.npy", rng.normal(0, 3, (i + 2, CONFIG.d_model)))
    return folder


def alone(folder, layout, data: EvalSet, ask) -> list[Sequence[str]]:
    """The answers of each prompt, one model after the other."""
    answers = []
    for i in range(VOTERS):
        method = PromptTuning(i + 2, initializer=FromFile(str(folder / f"{i}.npy")))
        checkpoint = folder / "backbone.safetensors"
        tuned = initialize(CONFIG, method, layout=layout, checkpoint=checkpoint)
        answers.append(ask(tuned, data, 8).texts)
    return answers


def run(folder, layout, output, data: Texts, **settings) -> dict:
    defaults = {"prompt_files": [str(folder / f"{i}.npy") for i in range(VOTERS)]}
    return ensemble.evaluate(
        output_dir=str(output),
        config=CONFIG,
        layout=layout,
        data=data,
        vocabulary=Numbers(),
        initial_checkpoint=str(folder / "backbone.safetensors"),
        **{**defaults, **settings},
    )


@pytest.mark.parametrize(
    ("labels", "ask", "kind"), [(LABELS, rank_labels, "rank"), ((), generate, "generate")]
)
def test_the_majority_answers(folder, layout, tmp_path, labels, ask, kind):
    data = Texts(labels)
    [rows] = data.eval_sets("test")
    answers = alone(folder, layout, rows, ask)
    votes = [collections.Counter(own).most_common() for own in zip(*answers, strict=True)]
    clear = [i for i, own in enumerate(votes) if len(own) == 1 or own[0][1] > own[1][1]]
    split = [i for i in clear if len(votes[i]) > 1]
    assert split, "prompts that always agree show nothing"
    found = run(folder, layout, tmp_path, data)
    lines = (tmp_path / f"numbers-test-{kind}.jsonl").read_text().splitlines()
    given = [json.loads(line)["prediction"] for line in lines]
    assert [given[i] for i in clear] == [votes[i][0][0] for i in clear]
    expected = {f"{kind}/agreement": agreement(rows.targets, given)["agreement"]}
    assert found == {"numbers": expected}
    assert json.loads((tmp_path / "numbers-test-metrics.json").read_text()) == expected


def test_no_prompts(folder, layout, tmp_path):
    with pytest.raises(UserError, match="PROMPT_FILES is empty"):
        run(folder, layout, tmp_path / "out", Texts(LABELS), prompt_files=[])
    assert not (tmp_path / "out").exists()
