"""An instruction and demonstrations in front of what is evaluated."""

import collections

import numpy as np
import pytest
import seqio

from prompt_tuning.data import tasks
from prompt_tuning.data.batches import TaskData
from prompt_tuning.data.files import Row
from prompt_tuning.data.variants import few_shot, sentinel
from prompt_tuning.data.variants.prompt_design import designed_data
from prompt_tuning.errors import UserError

NAME = "test_prompt_design"
LABELS = ("bad", "good")
WORDS = ("dull", "slow", "loud", "cold", "drab", "grim", "warm", "rich", "wise", "fine")
TRAIN = [Row(f"A {word} film.", "bad" if i < 6 else "good") for i, word in enumerate(WORDS)]
TEST = [Row("I slept.", "bad"), Row("I laughed and cried and laughed again.", "good")]
SAY = "Say what it is."


@pytest.fixture(scope="module", autouse=True)
def registered(vocabulary) -> None:
    rows = {"train": lambda: TRAIN, "test": lambda: TEST}
    tasks.register(NAME, rows, vocabulary, labels=LABELS)


def data(length: int = 200, **design) -> TaskData:
    return designed_data(TaskData(NAME, {"inputs": length, "targets": 4}, 2), **design)


def blocks(text: str) -> list[str]:
    return text.split("\n\n")


def test_the_whole_text(monkeypatch):
    rows = [Row("A dull film.", "bad")]
    monkeypatch.setattr(
        seqio.TaskRegistry.get(NAME).source, "_rows", {"train": lambda: rows, "test": lambda: TEST}
    )
    actual = data(instruction=SAY, demonstrations=1).eval_set("test")
    assert actual.inputs[0] == "Say what it is.\n\nA dull film.\nbad\n\nI slept."
    assert data(demonstrations=1).eval_set("test").inputs[0] == "A dull film.\nbad\n\nI slept."
    assert data(instruction=SAY).eval_set("test").inputs[0] == "Say what it is.\n\nI slept."


def test_label_words_in_the_instruction():
    inputs = data(instruction="Choose {labels}:").eval_set("test").inputs
    assert inputs[0] == "Choose bad, good:\n\nI slept."


def test_without_a_design_it_is_the_task():
    plain = TaskData(NAME, {"inputs": 200, "targets": 4}, 2).eval_set("test")
    actual = data().eval_set("test")
    assert (actual.inputs, actual.targets, actual.labels) == (plain.inputs, plain.targets, LABELS)
    np.testing.assert_array_equal(actual.encoder_input_tokens, plain.encoder_input_tokens)
    assert actual.notes == plain.notes


@pytest.mark.parametrize("k", [1, 2, 5, 8])
def test_classes_take_turns(k):
    [first, *_] = data(demonstrations=k, seed=3).eval_set("test").inputs
    shown = [tuple(block.split("\n")) for block in blocks(first)[:-1]]
    assert [label for _, label in shown] == [LABELS[i % 2] for i in range(k)]
    assert len(set(shown)) == k and {Row(*pair) for pair in shown} <= set(TRAIN)


def test_a_class_that_has_run_out_leaves_its_turns_to_the_others():
    [first, *_] = data(demonstrations=10).eval_set("test").inputs
    labels = [block.split("\n")[1] for block in blocks(first)[:-1]]
    assert labels == ["bad", "good"] * 4 + ["bad", "bad"]


def test_the_choice_is_the_seeds():
    def inputs(seed: int) -> list[str]:
        return list(data(demonstrations=4, seed=seed).eval_set("test").inputs)

    assert inputs(0) == inputs(0)
    assert len({inputs(seed)[0] for seed in range(5)}) > 1
    assert blocks(inputs(1)[0])[:-1] == blocks(inputs(1)[1])[:-1]


def test_tokens_are_those_of_the_text(vocabulary):
    actual = data(instruction=SAY, demonstrations=6).eval_set("test")
    for text, tokens in zip(actual.inputs, actual.encoder_input_tokens, strict=True):
        ids = [*vocabulary.encode(text), vocabulary.eos_id]
        assert tokens.tolist() == ids + [0] * (200 - len(ids))


@pytest.mark.parametrize("length", [28, 34, 40])
def test_what_does_not_fit_goes_from_the_front(vocabulary, length):
    whole = data(instruction=SAY, demonstrations=6).eval_set("test")
    limited = data(length, instruction=SAY, demonstrations=6)
    actual = limited.eval_set("test")
    fitted = []
    for everything, text, tokens in zip(
        whole.inputs, actual.inputs, actual.encoder_input_tokens, strict=True
    ):
        instruction, *shown, query = blocks(everything)
        longest = max(
            (
                n
                for n in range(7)
                if len(vocabulary.encode("\n\n".join([instruction, *shown[6 - n :], query])))
                < length
            ),
            default=-1,
        )
        fitted.append(longest)
        assert blocks(text) == [instruction, *shown[6 - longest :], query]
        assert tokens.shape == (length,) and vocabulary.eos_id in tokens
    assert fitted[0] > fitted[1]
    *of_the_task, of_the_design = actual.notes
    assert of_the_task == list(data(length).eval_set("test").notes)
    assert of_the_design == (
        f"{NAME}, test split: {np.mean(fitted):.1f} of 6 demonstrations before an input on "
        f"average, {min(fitted)} at least"
    )


def test_an_input_is_never_cut(vocabulary):
    most = max(len(vocabulary.encode(f"{SAY}\n\n{row.inputs}")) for row in TEST) + 1
    assert data(most, instruction=SAY, demonstrations=2).eval_set("test").inputs[1].startswith(SAY)
    with pytest.raises(UserError, match=rf"= {most - 1}: .* has {most} tokens"):
        data(most - 1, instruction=SAY, demonstrations=2).eval_set("test")


def test_training_batches_are_not_designed():
    lengths = {"inputs": 200, "targets": 4}
    plain = next(TaskData(NAME, lengths, 2).train_batches(0))
    actual = next(data(instruction=SAY, demonstrations=2).train_batches(0))
    for name, values in plain.items():
        np.testing.assert_array_equal(actual[name], values)


def test_text_to_text_demonstrations(vocabulary):
    name = f"{NAME}_text"
    rows = [Row(f"{i} and 1", str(i + 1)) for i in range(9)]
    tasks.register(name, {"train": lambda: rows, "test": lambda: rows[:1]}, vocabulary)
    plain = TaskData(name, {"inputs": 99, "targets": 4}, 2)
    [text] = designed_data(plain, demonstrations=4).eval_set("test").inputs
    shown = [Row(*block.split("\n")) for block in blocks(text)[:-1]]
    assert len(set(shown)) == 4 and set(shown) <= set(rows)
    assert len(collections.Counter(row.targets for row in shown)) == 4


def test_mistakes(vocabulary):
    with pytest.raises(UserError, match=r"DEMONSTRATIONS = 11: .* only 10 training examples"):
        data(demonstrations=11).eval_set("test")
    with pytest.raises(UserError, match=r"DEMONSTRATIONS = -1: must be a whole number from 0"):
        data(demonstrations=-1)
    with pytest.raises(UserError, match=r"DEMONSTRATIONS_SEED = -1: must be a whole number from 0"):
        data(seed=-1)
    name = f"{NAME}_test_only"
    tasks.register(name, {"test": lambda: TEST}, vocabulary, labels=LABELS)
    alone = designed_data(TaskData(name, {"inputs": 99, "targets": 4}, 2), demonstrations=1)
    with pytest.raises(UserError, match="no split 'train'"):
        alone.eval_set("test")


@pytest.mark.parametrize("instruction", [None, ["Say."], 3])
def test_an_instruction_is_a_text(instruction):
    with pytest.raises(UserError, match=r"INSTRUCTION = .*: must be a text"):
        data(instruction=instruction)


@pytest.mark.parametrize(
    ("labels", "test", "k", "told"),
    [
        (LABELS, [TRAIN[0], *TEST], 10, "1 inputs are among the demonstrations, with their answ"),
        (LABELS, TRAIN, 10, "10 inputs are among"),
        ((*LABELS, "dull"), TEST, 3, "no demonstration is 'dull'"),
        (("worse", *LABELS, "dull"), TEST, 4, "no demonstration is 'dull' or 'worse'"),
        ((*LABELS, "dull"), TEST, 2, ""),  # fewer than there are words
        (LABELS, TEST, 4, ""),
    ],
)
def test_a_warning_of_demonstrations(labels, test, k, told, vocabulary):
    name = f"{NAME}_warned"
    tasks.register(name, {"train": lambda: TRAIN, "test": lambda: test}, vocabulary, labels=labels)
    plain = TaskData(name, {"inputs": 200, "targets": 4}, 2)
    notes = designed_data(plain, demonstrations=k).eval_set("test").notes
    warned = [note for note in notes if "demonstration" in note and note.startswith("warning: ")]
    assert len(warned) == bool(told) and all(told in note for note in warned)


def test_an_instruction_with_label_words_that_there_are_not(vocabulary):
    name = f"{NAME}_texts"
    tasks.register(name, {"test": lambda: TEST}, vocabulary)
    plain = TaskData(name, {"inputs": 99, "targets": 4}, 2)
    with pytest.raises(
        UserError, match=r"^INSTRUCTION = 'One of {labels}:': .* no label words for"
    ):
        designed_data(plain, "One of {labels}:").eval_set("test")
    for instruction, told in (
        ("One of {these}:", ["{these}"]),
        ("{text} {label}: {text}", ["{text}", "{label}"]),
        ("{} or {0}?", ["{}", "{0}"]),
        ("A set { of words }", []),
    ):
        notes = designed_data(plain, instruction).eval_set("test").notes
        warned = [note for note in notes if "INSTRUCTION has" in note]
        assert len(warned) == len(told)
        assert all(f"has {name}, which stays" in x for name, x in zip(told, warned, strict=True))


@pytest.mark.parametrize("shots", [None, 2])
def test_with_a_sentinel_the_text_has_plain_words(shots):
    """The same demonstrations as without; a sentinel stands before targets alone."""
    names = []
    for name in (NAME, sentinel.register(NAME)):
        chosen = few_shot.FewShot(shots or 4)
        names.append(few_shot.register(name, chosen, {"inputs": 200, "targets": 6}, False))
    plain, actual = (
        designed_data(
            TaskData(name, {"inputs": 200, "targets": 6}, 2),
            instruction="Choose {labels}:",
            demonstrations=4,
        ).eval_set("test")
        for name in names
    )
    assert actual.inputs == plain.inputs and "extra_id" not in actual.inputs[0]
    assert actual.inputs[0].startswith("Choose bad, good:") and actual.labels == LABELS
    assert actual.target_prefix == sentinel.SENTINEL


def test_notes_of_the_task_are_kept(vocabulary):
    rows = {
        "train": lambda: TRAIN,
        "test": lambda: [Row("\u8d1f\u9762", "two\nlines"), Row("a", "b  c"), Row("b", "c")],
    }
    tasks.register(f"{NAME}_notes", rows, vocabulary)
    plain = TaskData(f"{NAME}_notes", {"inputs": 200, "targets": 20}, 2)
    notes = plain.eval_set("test").notes
    assert any("unknown" in note for note in notes) and any("compared as" in x for x in notes)
    for design in ({}, {"instruction": SAY}, {"demonstrations": 2}):
        kept = designed_data(plain, **design).eval_set("test").notes
        assert kept[: len(notes)] == notes
