"""Prompts that vote: the majority of the answers that each gives alone."""

import collections
import contextlib
import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from numpy_prompts import CONFIG, Alone

from prompt_tuning import embedded, sharding
from prompt_tuning.checkpoint import backbone, prompts
from prompt_tuning.data import tasks as data_tasks
from prompt_tuning.errors import UserError
from prompt_tuning.evaluation.sets import EvalSet
from prompt_tuning.runs import ensemble
from prompt_tuning.testing import Numbers, tiny_model
from prompt_tuning.transformer.paths import flatten, unflatten
from prompt_tuning.transformer.vocabulary import SentencePiece

LABELS = ("5", "6 7", "9")
ROWS, LENGTH = 24, 12
VOTERS = 3
RNG = np.random.default_rng(1)
# A backbone of large weights, so that prompts disagree.
LEAVES = {path: 3 * np.asarray(leaf) for path, leaf in flatten(tiny_model().params).items()}
PROMPTS = [RNG.normal(0, 3, (2, CONFIG.d_model)).astype(np.float32) for _ in range(VOTERS)]


def agreement(targets, predictions) -> dict[str, float]:
    return {
        "agreement": float(np.mean([a == b for a, b in zip(targets, predictions, strict=True)]))
    }


@dataclasses.dataclass(frozen=True)
class Texts:
    """Rows of random ids; a `runs.data_protocol.Data`."""

    labels: tuple[str, ...]
    task: str = "numbers"
    batch_size: int = 16
    splits = ("test",)

    def eval_sets(self, split: str) -> list[EvalSet]:
        rng = np.random.default_rng(5)
        ids = [rng.integers(3, 64, rng.integers(1, LENGTH)).tolist() for _ in range(ROWS)]
        tokens = np.zeros((ROWS, LENGTH), np.int32)
        for row, row_ids in zip(tokens, ids, strict=True):
            row[: len(row_ids) + 1] = [*row_ids, 1]
        words = [[*Numbers().encode(word), 1] for word in self.labels]
        return [
            EvalSet(
                task=self.task,
                split=split,
                inputs=[Numbers().decode(row_ids) for row_ids in ids],
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
def folder(tmp_path_factory):
    """The files of backbone and prompts."""
    folder = tmp_path_factory.mktemp("ensemble")
    backbone.save(folder / "backbone.safetensors", LEAVES, "float32")
    for i, vectors in enumerate(PROMPTS):
        prompts.save(folder / f"{i}.npy", vectors)
    return folder


def alone(data: EvalSet) -> list[list[str]]:
    """The answers of each prompt alone."""
    encode, decode = Numbers().encode, Numbers().decode
    targets = [encode(label) for label in data.labels]
    answers = []
    for vectors in PROMPTS:
        voter, rows = Alone(vectors, unflatten(LEAVES)), [encode(text) for text in data.inputs]
        if data.labels:
            best = [voter.label_scores(ids, targets).argmax() for ids in rows]
            answers.append([data.labels[i] for i in best])
        else:
            answers.append([decode(voter.greedy(ids, data.target_length)) for ids in rows])
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


@pytest.mark.parametrize(("labels", "kind"), [(LABELS, "rank"), ((), "generate")])
def test_the_majority_answers(folder, layout, tmp_path, labels, kind):
    data = Texts(labels)
    [rows] = data.eval_sets("test")
    answers = alone(rows)
    votes = [collections.Counter(texts).most_common() for texts in zip(*answers, strict=True)]
    clear = [i for i, ranks in enumerate(votes) if len(ranks) == 1 or ranks[0][1] > ranks[1][1]]
    split = [i for i in clear if len(votes[i]) > 1]
    assert split, "prompts that always agree show nothing"
    metrics = run(folder, layout, tmp_path, data)
    lines = (tmp_path / f"numbers-test-{kind}.jsonl").read_text().splitlines()
    predictions = [json.loads(line)["prediction"] for line in lines]
    assert [predictions[i] for i in clear] == [votes[i][0][0] for i in clear]
    expected = {f"{kind}/agreement": agreement(rows.targets, predictions)["agreement"]}
    assert metrics == {"numbers": expected}
    written = json.loads((tmp_path / "numbers-test-metrics.json").read_text())
    assert written.items() >= expected.items()
    assert ("majority_class" in written) == bool(labels)


def test_no_prompts(folder, layout, tmp_path):
    with pytest.raises(UserError, match="PROMPT_FILES is empty"):
        run(folder, layout, tmp_path / "out", Texts(LABELS), prompt_files=[])
    assert not (tmp_path / "out").exists()


@dataclasses.dataclass(frozen=True)
class Changed(Texts):
    """Rows whose tokens a preprocessor has changed after the text was kept."""

    place: int = 0
    token: int = 0

    def eval_sets(self, split: str) -> list[EvalSet]:
        [rows] = super().eval_sets(split)
        ids = rows.encoder_input_tokens[5]
        ids[np.flatnonzero(ids)[self.place]] = self.token
        return [rows]


@pytest.mark.parametrize(("place", "token"), [(-1, 0), (-1, 7), (0, 2)])
def test_inputs_that_are_not_their_texts_are_refused(folder, layout, tmp_path, place, token):
    data = Changed(LABELS, place=place, token=token)
    with pytest.raises(UserError, match=r"^numbers: its input 6, .*evaluate each prompt by itself"):
        run(folder, layout, tmp_path / "out", data)
    assert not list(tmp_path.glob("out/*.jsonl"))


@pytest.mark.parametrize("text", ["end..... so", "!!!!!", "Start again.....\\n#feels"])
def test_pieces_that_tensorflow_orders_otherwise_are_the_same_text(text):
    """Both orders of `..` and `...` are equally likely; SeqIO reads data with TensorFlow's."""
    ours = SentencePiece(embedded.vocabulary())
    theirs = data_tasks.vocabulary(embedded.vocabulary()).encode_tf(text).numpy().tolist()
    ids = ours.encode(text)
    assert theirs != ids
    model = SimpleNamespace(vocabulary=ours)
    for tokens, is_same in ((theirs, True), (ids, True), (ids[::-1], False), (ids[:-1], False)):
        row = np.array([[*tokens, 1]], np.int32)
        data = EvalSet(
            "t", "test", [text], ["a"], np.pad(row, ((0, 0), (0, 9))), (), row, 4, (), str
        )
        with contextlib.nullcontext() if is_same else pytest.raises(UserError, match="its input 1"):
            ensemble._check_inputs(model, data)
