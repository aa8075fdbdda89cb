"""A served model: every row is answered as by its own task alone, whatever else is asked."""

import doctest
import functools
import json
import random
import re
import threading
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy_prompts import BACKBONE, CONFIG, EOS, Alone, D, prompt

import prompt_tuning.serving
from prompt_tuning import Model, Sampling, embedded, sharding
from prompt_tuning.checkpoint import card, prompts
from prompt_tuning.errors import CheckpointError, UserError
from prompt_tuning.serving import Classification, Generation, PromptBank, bank, prompt_folder
from prompt_tuning.serving import model as serving
from prompt_tuning.serving.model import MAX_TOKENS
from prompt_tuning.testing import Numbers
from prompt_tuning.transformer import vocabulary

LABELS = {"a": ("5 6", "7", "9"), "b": ("8", "4 4 4"), "c": ("7", "11", "12", "13", "14"), "d": ()}
LENGTHS = {"a": 3, "b": 1, "c": 6, "d": 0}
# Float32 against float64: log p of a label sums up to four logits' errors of 2e-5 (the tolerance of
# tests/t5/test_numpy_reference.py) and as many of their normalisers; where log p is off by e, a
# probability is off by p (1 - p) 2 e, at most e / 2.
TOLERANCE = {"rtol": 0, "atol": 2 * 4 * 2e-5 / 2}


def text(length: int, seed: int) -> str:
    ids = np.random.default_rng([length, seed]).integers(3, 64, length)
    return " ".join(map(str, ids))


def ids_of(line: str) -> list[int]:
    return Numbers().encode(line)


def empty(length: int = 6, **options) -> Model:
    layout = sharding.layout(devices=jax.devices()[:1])
    room = PromptBank.empty(D, layout.mesh, capacity=8, length=length)
    return Model(CONFIG, BACKBONE, Numbers(), layout, prompts=room, **{"batch_size": 8} | options)


@functools.cache
def four_tasks() -> Model:
    model = empty()
    for task, labels in LABELS.items():
        vectors = prompt(LENGTHS[task]) if LENGTHS[task] else None
        model.add_task(task, vectors, labels)
    return model


def test_labels_in_parts_have_the_same_probabilities():
    line, frugal = text(5, 1), empty(rank_memory_gib=1e-9)
    frugal.add_task("c", prompt(6), LABELS["c"])
    [answer] = frugal.classify([line], "c")
    expected = alone(prompt(6), line, LABELS["c"])
    np.testing.assert_allclose(list(answer.probabilities.values()), expected, **TOLERANCE)
    with pytest.raises(UserError, match="RANK_MEMORY_GIB = 0: must be above 0"):
        empty(rank_memory_gib=0)


def alone(vectors: np.ndarray, line: str, labels: Sequence[str]) -> np.ndarray:
    """Probabilities of the labels, from a row of its own with the prompt in front."""
    return Alone(vectors).probabilities(ids_of(line), [ids_of(label) for label in labels])


ROWS = st.tuples(st.sampled_from("abc"), st.integers(0, 20), st.integers(0, 3))


@pytest.mark.filterwarnings("ignore:some texts are empty")
@given(st.lists(ROWS, min_size=6, max_size=6) | st.lists(ROWS, min_size=14, max_size=14))
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_mixed_batch_answers_as_each_task_alone(rows):
    # Whole batches of two lengths, all with one shape of labels: two programs.
    rows = [*rows, ("b", 2, 0), ("c", 5, 0)]
    texts, names = [text(n, seed) for _, n, seed in rows], [task for task, _, _ in rows]
    answers = four_tasks().classify(texts, names)
    for line, task, answer in zip(texts, names, answers, strict=True):
        expected = alone(prompt(LENGTHS[task]), line, LABELS[task])
        np.testing.assert_allclose(list(answer.probabilities.values()), expected, **TOLERANCE)
        best = expected[LABELS[task].index(answer.label)]
        assert best >= expected.max() - 2 * TOLERANCE["atol"]


def test_a_long_prompt_lengthens_only_the_rows_of_long_prompts():
    """Their batches have programs of their own; those of others are as before it was added."""
    model = empty(length=40)
    for task, length in (("a", 3), ("long", 33)):
        model.add_task(task, prompt(length), LABELS["a"])
    lines = [text(n, 3) for n in (5, 9, 2)]
    names, counts = ["a", "long", "a"], []
    for rows in ([0, 2], [1], [0, 1, 2]):
        answers = model.classify([lines[i] for i in rows], [names[i] for i in rows])
        counts.append(model.compile_count)
        for i, answer in zip(rows, answers, strict=True):
            expected = alone(prompt(3 if names[i] == "a" else 33), lines[i], LABELS["a"])
            np.testing.assert_allclose(list(answer.probabilities.values()), expected, **TOLERANCE)
    assert counts == [1, 2, 2]


@pytest.mark.parametrize(
    ("longest", "expected"), [(0, 8), (8, 8), (20, 20), (33, 40), (100, 112), (120, 120)]
)
def test_places_of_a_batch(longest, expected):
    assert bank.places(longest, 120) == expected and bank.places(longest, 4) == 4
    assert (bank.group(longest) == bank.group(20)) == (longest <= 32)


def test_each_shape_is_compiled_once():
    model, counts = empty(batch_size=4), []
    for task in "ab":
        model.add_task(task, prompt(LENGTHS[task]), LABELS[task])
    # With the end token, shapes are 1 x 16, 1 x 32, 2 x 16, 4 x 32, and the last one twice.
    for lengths in ([3], [15], [16], [20], [1, 2], [15, 20, 3], [20] * 4, [17] * 8):
        model.embed([text(n, 0) for n in lengths], (["a", "b"] * 4)[: len(lengths)])
        counts.append(model.compile_count)
    assert counts == [1, 1, 2, 2, 3, 4, 4, 4]


# All calls of four texts below 16 tokens that make up to 8 share one program.
LINES = [text(n, 2) for n in (6, 4, 9, 13)]


def test_greedy_texts_are_those_of_each_task_alone():
    limits = [4, 8, 5, 1]
    answers = four_tasks().generate(LINES, list("abcd"), max_tokens=limits)
    for line, task, limit, answer in zip(LINES, "abcd", limits, answers, strict=True):
        expected = Alone(prompt(LENGTHS[task])).greedy(ids_of(line), limit)
        assert answer.text == Numbers().decode(expected)


def test_the_scores_of_tokens_add_up():
    for answer in four_tasks().generate(LINES, "a", max_tokens=8):
        assert len(answer.tokens) == len(answer.token_scores)
        assert answer.text == Numbers().decode(answer.tokens)
        assert answer.score == pytest.approx(sum(answer.token_scores), abs=1e-5)


def test_stop_tokens_and_beams():
    model = four_tasks()
    words = model.generate(LINES, "a", max_tokens=8)[0].text.split()
    stopped = model.generate(LINES, "a", max_tokens=8, stop=[int(words[2])])
    assert stopped[0].text.split() == words[: words.index(words[2]) + 1]
    reference = Alone(prompt(LENGTHS["a"]))
    answers = model.generate(LINES, "a", max_tokens=8, beams=4, alpha=0.0)
    for line, answer in zip(LINES, answers, strict=True):
        tokens = ids_of(answer.text)
        ended = [EOS] if len(tokens) < 8 else []
        expected = reference.log_p(ids_of(line), [*tokens, *ended])
        # Up to nine logits and as many normalisers, see TOLERANCE.
        assert answer.score == pytest.approx(expected, rel=0, abs=2 * 9 * 2e-5)


def sampled(lines: list[str], seed: int | list[int] = 0) -> list[str]:
    answers = four_tasks().generate(lines, "a", max_tokens=8, sampling=Sampling(2.0), seed=seed)
    return [answer.text for answer in answers]


def test_samples():
    first, second, third, fourth = LINES
    texts = sampled([first, first, second, third])
    assert texts == sampled([first, first, second, third])
    assert texts != sampled([first, first, second, third], seed=1)
    assert texts[0] != texts[1]
    assert sampled([first, second, third, fourth])[0] == texts[0]


def test_each_text_may_have_its_own_seed():
    """A text's sample is that of its seed alone: not of its place, the batch or its neighbours."""
    seeds = [3, 2**32 - 1, 3, 4]
    texts = sampled(LINES, seeds)
    assert sampled(LINES[::-1], seeds[::-1]) == texts[::-1]
    assert sampled([LINES[3], *LINES[:3]], [0, *seeds[:3]])[1:] == texts[:3]
    assert sampled(LINES[:1], seeds[0]) == sampled(LINES[:1], seeds[:1]) == texts[:1]
    assert len(set(sampled([LINES[0]] * 4, seeds))) == 3


def test_settings_of_decoding_compile_nothing():
    model = four_tasks()
    generate = functools.partial(model.generate, LINES, "a", max_tokens=8)
    greedy, beams = generate(), generate(beams=4)
    before = model.compile_count
    for sampling in (Sampling(0.7), Sampling(1.3, 5), Sampling(top_p=0.9)):
        assert generate(sampling=sampling, seed=3) != greedy
    some = generate(sampling=[None, Sampling(2.0), None, None], stop=[7])
    assert some[1].text != greedy[1].text
    assert generate(beams=4, alpha=2.0) != beams
    assert model.compile_count == before


def test_an_ensemble_is_one_call_of_all_its_prompts():
    model, voters = empty(batch_size=16), [prompt(3, 1), prompt(2, 2), prompt(6, 3)]
    model.add_task("all", voters, LABELS["c"])
    texts = [text(n, 5) for n in (4, 9, 2, 7)]
    answers = model.classify(texts, "all")
    assert model.compile_count == 1  # 12 rows in a batch of 16
    for line, answer in zip(texts, answers, strict=True):
        each = np.array([alone(vectors, line, LABELS["c"]) for vectors in voters])
        np.testing.assert_allclose(
            list(answer.probabilities.values()), each.mean(axis=0), **TOLERANCE
        )
        votes = np.bincount(each.argmax(axis=1), minlength=5)
        np.testing.assert_array_equal(list(answer.votes.values()), votes)
        assert answer.votes[answer.label] == votes.max()


def test_the_majority_wins_and_ties_go_to_the_surer():
    unsure = np.log([[0.51, 0.49], [0.51, 0.49], [0.01, 0.99]])
    assert Classification.of(["x", "y"], unsure).label == "x"
    assert Classification.of(["x", "y"], unsure[1:]).label == "y"
    scores, tokens = np.array([-0.1, -2.0, -3.0]), np.array([[3, 1, 0], [7, 0, 1], [7, 1, 0]])
    generation = Generation.of(["p", "q", "q"], scores, tokens, np.array([scores, scores, scores]))
    assert generation == Generation("q", -2.0, (7, 0, 1), tuple(scores))
    nothing = np.zeros((2, 0))
    assert Generation.of(["p", "q"], scores[[2, 1]], tokens[:2], nothing).text == "q"


def test_embeddings_are_means_of_the_encoder_over_the_tokens():
    texts, tasks = [text(n, 4) for n in (3, 20, 7)], ["a", "d", "c"]
    vectors = four_tasks().embed(texts, tasks)
    for line, task, vector in zip(texts, tasks, vectors, strict=True):
        expected = Alone(prompt(LENGTHS[task])).embedding([*ids_of(line)])
        np.testing.assert_allclose(vector, expected, rtol=0, atol=2e-5)


def test_a_call_answers_tasks_with_labels_and_without():
    texts = [text(n, 6) for n in (3, 5, 8)]
    model = four_tasks()
    answers = model(texts, ["a", "d", "b"])
    for i, task in ((0, "a"), (2, "b")):
        best = alone(prompt(LENGTHS[task]), texts[i], LABELS[task]).argmax()
        assert answers[i] == LABELS[task][best]
    greedy = Alone(prompt(0)).greedy(ids_of(texts[1]), MAX_TOKENS)
    assert answers[1] == Numbers().decode(greedy)
    assert model([], "a") == [] and model.embed([], "a").shape == (0, D)


def test_a_snapshot_of_the_tasks_never_changes():
    model = empty()
    model.add_task("a", prompt(2), ["7", "9"])
    before = model.task_set
    model.add_task("a", prompt(3), ["8"], replace=True)
    model.add_task("b", prompt(1))
    model.remove_task("a")
    assert list(before.bank.slots) == ["a"] and before.labels == {"a": ("7", "9")}
    np.testing.assert_array_equal(before.bank.prompts_of("a"), [prompt(2)])
    assert model.tasks == ("b",) and model.task_set.labels == {"b": ()}
    assert model.task_set.model(3) == before.model(3)  # of the same room: nothing is compiled again


def test_tasks_of_a_bank_are_served():
    layout = sharding.layout(devices=jax.devices()[:1])
    prompts = PromptBank.empty(D, layout.mesh).add({"a": [prompt(2)]})
    model = Model(CONFIG, BACKBONE, Numbers(), layout, prompts=prompts)
    assert model.tasks == ("a",) and model.labels("a") == ()


@pytest.mark.filterwarnings("ignore:some texts are empty")
@pytest.mark.parametrize("rows", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_answers_while_tasks_are_added_replaced_and_removed(rows):
    model, kept, labels = empty(), [f"kept{i}" for i in range(4)], LABELS["a"]
    for i, task in enumerate(kept):
        model.add_task(task, prompt(i + 1, 7), labels)
    lines = [text(n, 8) for n in range(8)]
    expected = {
        (task, line): alone(prompt(i + 1, 7), line, labels)
        for i, task in enumerate(kept)
        for line in lines
    }
    rng, stop, changes = random.Random(0), threading.Event(), [0]
    model.classify(lines, kept * 2)  # compiled now
    before = model.compile_count

    def change() -> None:
        added: list[str] = []
        while not stop.is_set():
            action = rng.choice(("add", "replace", "remove"))
            if action == "add" and len(added) < 4:
                added.append(f"other{changes[0]}")
                model.add_task(added[-1], prompt(rng.randint(1, 6), changes[0]), labels)
            elif action == "replace":
                i = rng.randrange(4)  # by the same prompt: the answers must not change
                model.add_task(kept[i], prompt(i + 1, 7), labels, replace=True)
            elif added:
                model.remove_task(added.pop(rng.randrange(len(added))))
            changes[0] += 1
            with pytest.raises(UserError):
                model.add_task("bad", np.full((2, D), np.nan, np.float32), labels)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        draw, answered = random.Random(1), 0
        while answered < rows or (changes[0] <= 20 and thread.is_alive()):
            names = [draw.choice(kept) for _ in range(8)]
            asked = [draw.choice(lines) for _ in range(8)]
            for line, task, answer in zip(asked, names, model.classify(asked, names), strict=True):
                probabilities = list(answer.probabilities.values())
                np.testing.assert_allclose(probabilities, expected[task, line], **TOLERANCE)
            answered += 8
    finally:
        stop.set()
        thread.join()
    assert changes[0] > 20
    assert model.compile_count == before


@pytest.mark.slow
@pytest.mark.parametrize("count", [50, 1_000])
def test_many_tasks_on_the_embedded_backbone(tmp_path, count):
    model = prompt_tuning.load("demo", tasks=count, prompt_length=5, input_length=16)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(count, 5, 256)).astype(np.float32)
    for i, task_vectors in enumerate(vectors):
        np.save(tmp_path / f"task{i}.npy", task_vectors)
    words = {f"task{i}": ["negative", "positive"] for i in range(count)}
    (tmp_path / "labels.json").write_text(json.dumps(words))
    assert len(model.add_tasks(tmp_path)) == count
    texts = ["a dull film", "a great film", "it rained", "no"] * 4
    chosen = rng.choice(count, 16, replace=False)
    answers = model.classify(texts, [f"task{i}" for i in chosen])
    assert len({answer.probabilities["positive"] for answer in answers}) == 16
    encode = vocabulary.read(embedded.vocabulary()).encode
    targets = [encode(word) for word in ("negative", "positive")]
    backbone = model.task_set.backbone
    for line, i, answer in list(zip(texts, chosen, answers, strict=True))[:3]:
        expected = Alone(vectors[i], backbone, model.config).probabilities(encode(line), targets)
        np.testing.assert_allclose(list(answer.probabilities.values()), expected, **TOLERANCE)
    assert model.compile_count == 1


def saved(folder, fingerprint: str, placement: str = "prefix", name: str = "p", **trained_with):
    path = folder / f"{name}.npy"
    prompts.save(path, prompt(2))
    fields = {"backbone": "other.safetensors", "d_model": D, "task": "t", "length": 2, "steps": 1}
    texts = dict.fromkeys(("method", "initialisation", "optimizer", "version", "config"), "")
    prompt_card = card.Card(
        fingerprint=fingerprint,
        placement=placement,
        learning_rate=0.3,
        metric={},
        trained_with=card.TrainedWith(**trained_with),
        **fields,
        **texts,
    )
    card.save(path, prompt_card)
    return path


def test_a_prompt_of_another_backbone_is_refused(tmp_path):
    model, path = empty(), saved(tmp_path, "0" * 16)
    with pytest.raises(CheckpointError, match=f"{'0' * 16} .*this one is {model.fingerprint}"):
        model.add_task("t", path)
    assert model.tasks == ()
    empty(allow_other_backbone=True).add_task("t", path)
    model.add_task("t", saved(tmp_path, model.fingerprint))
    with pytest.raises(UserError, match="was trained as 'suffix'"):
        model.add_task("u", saved(tmp_path, model.fingerprint, "suffix"))


@pytest.mark.parametrize("wrong", [5, [[0.5] * D], {"a": 1}, b"p.npy"])
def test_what_is_no_prompt_is_one_line(wrong):
    model = empty()
    for empty_prompt in (np.zeros((0, D), np.float32), jax.numpy.zeros((0, D)), np.zeros(0)):
        with pytest.raises(UserError, match=r"of the shape \(0.*must have a vector; give None"):
            model.add_task("t", [prompt(2), empty_prompt])
    with pytest.raises(UserError, match=r"a prompt of type .*: must be a NumPy or JAX array"):
        model.add_task("t", [wrong, prompt(2)])
    with pytest.raises(UserError, match=r"a masked array: give its filled\(\) values"):
        model.add_task("t", np.ma.masked_less(prompt(2), 0))
    nearly = prompt(2) * np.float32(1 + 2**-12)
    with pytest.raises(UserError, match=r"numbers 2 and 3 are the same prompt"):
        model.add_task("t", [prompt(2, 1), prompt(2), nearly])
    assert model.tasks == ()


def test_inputs_are_cut_as_in_training(tmp_path):
    """Each task's own, also in one batch; an array has no card."""
    long, cut = text(9, 1), " ".join(text(9, 1).split()[:3])
    model = empty(allow_other_backbone=True)
    model.add_task("long", prompt(2), ["5", "7"])
    model.add_task("short", saved(tmp_path, "", lengths={"inputs": 4, "targets": 2}), ["5", "7"])
    with pytest.warns(UserWarning, match="texts of more tokens than the input length are cut"):
        answers = model.classify([long, long, cut], ["short", "long", "long"])
    assert answers[0].probabilities == pytest.approx(answers[2].probabilities)
    assert answers[0].probabilities != pytest.approx(answers[1].probabilities, rel=1e-3)


@pytest.mark.parametrize("longest", [4, 7, 8, 12, None])
def test_longer_inputs_in_training_than_here_are_refused(longest, tmp_path):
    model = empty(allow_other_backbone=True, input_length=longest)
    paths = [saved(tmp_path, "", name="t", lengths={"inputs": 8, "targets": 2})]
    adds = {
        "one": lambda: model.add_task("t", paths[0]),
        "an ensemble": lambda: model.add_task("t", [prompt(3), *paths], replace=True),
        "a folder": lambda: empty(allow_other_backbone=True, input_length=longest).add_tasks(
            tmp_path
        ),
    }
    for add in adds.values():
        if longest in (4, 7):
            with pytest.raises(UserError, match=f"trained on inputs of 8 .* are cut to {longest} "):
                add()
            assert model.tasks == ()
        else:
            add()


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ({"lengths": {"inputs": 8}}, {"lengths": {"inputs": 9}}, "the input length 8, .* with 9"),
        ({"lengths": {"inputs": 8}}, {}, "the input length 8, .* with None"),
        ({"target_prefix": "4"}, {"target_prefix": ""}, "the target prefix '4', .* with ''"),
    ],
)
def test_prompts_that_answer_together_agree(one, other, message, tmp_path):
    paths = [saved(tmp_path, "", name="a", **one), saved(tmp_path, "", name="b", **other)]
    with pytest.raises(UserError, match=f"task 't': .*a.npy was trained with {message}; prompts"):
        empty(allow_other_backbone=True).add_task("t", paths)


@pytest.mark.parametrize(
    ("other", "shown"),
    [(prompt(3), "an array"), (None, "None, the backbone alone"), ("b", "b.npy")],
)
def test_a_prompt_without_a_card_has_no_sentinel_of_others(other, shown, tmp_path):
    model, path = empty(allow_other_backbone=True), saved(tmp_path, "", target_prefix="4")
    if isinstance(other, str):
        other = tmp_path / "b.npy"
        prompts.save(other, prompt(3))
    for together in ([path, other], [other, path]):
        with pytest.raises(UserError, match=f"prefix '4', and no card says so of .*{shown}; leave"):
            model.add_task("t", together, ["5", "7"])
    assert model.tasks == ()
    model.add_task("t", [path, other], ["5", "7"], target_prefix="4")
    assert model.task_set.prefix("t") == "4"


@pytest.mark.parametrize("wrong", [5, b"4", ["4"], True])
def test_a_target_prefix_that_is_no_text(wrong):
    with pytest.raises(UserError, match=r"task 't': target_prefix is .*; must be a text or None"):
        empty().add_task("t", prompt(2), target_prefix=wrong)


def test_a_prefix_of_targets_is_not_part_of_answers(tmp_path):
    """Answers are those of the plain backbone after the prefix, as in training."""
    model, line = empty(allow_other_backbone=True), text(5, 1)
    model.add_task("plain", prompt(2), ["4 5 6", "4 7"])
    model.add_task("card", saved(tmp_path, "", target_prefix="4"), ["5 6", "7"])
    model.add_task("array", prompt(2), ["5 6", "7"], target_prefix="4")
    plain, *prefixed = model.classify([line] * 3, ["plain", "card", "array"])
    for answer in prefixed:
        assert list(answer.probabilities) == ["5 6", "7"]
        assert [*answer.probabilities.values()] == pytest.approx([*plain.probabilities.values()])
    [generated] = model.generate([line], "plain", max_tokens=4)
    first, *rest = generated.text.split()
    model.add_task("first", prompt(2), target_prefix=first)
    [answer] = model.generate([line], "first", max_tokens=3)
    assert (answer.text, answer.score) == (" ".join(rest), pytest.approx(generated.score))
    with pytest.raises(UserError, match=r"target_prefix is '9', but its prompt was .* with '4'"):
        model.add_task("card", tmp_path / "p.npy", target_prefix="9", replace=True)


@pytest.mark.parametrize(("trained_with", "length"), [({"lengths": {"targets": 3}}, 3), ({}, 32)])
def test_texts_are_as_long_as_the_targets_of_training(tmp_path, trained_with, length):
    model = empty()
    model.add_task("t", saved(tmp_path, model.fingerprint, **trained_with))
    assert model.generate(["4 5"], "t") == model.generate(["4 5"], "t", max_tokens=length)
    assert model.generate(["4 5"], "t") != model.generate(["4 5"], "t", max_tokens=length - 1)
    assert model(["4 5"], "t") == [str(model.generate(["4 5"], "t", max_tokens=length)[0])]


def test_a_folder_holds_tasks_and_ensembles(tmp_path):
    for seed, name in enumerate(("one.npy", "two.safetensors", "many/x.npy", "many/y.npy")):
        prompts.save(tmp_path / name, prompt(2, seed))
    (tmp_path / "labels.json").write_text('{"many": ["4", "5"]}')
    (tmp_path / "notes.txt").write_text("no prompt")
    model = empty()
    assert sorted(model.add_tasks(tmp_path)) == ["many", "one", "two"]
    assert model.labels("many") == ("4", "5") and model.labels("one") == ()
    assert sum(model.classify(["9 9"], "many")[0].votes.values()) == 2


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "contains no prompts"),
        ({"a.npy": 2, "a.safetensors": 2}, "two prompts are named 'a'"),
        ({"a.npy": 2, "labels.json": "{"}, "labels.json: is not valid JSON"),
        ({"a.npy": 2, "labels.json": "[]"}, "must be a JSON object with a list"),
        ({"a.npy": 2, "labels.json": '{"b": ["x"]}'}, "no prompt for the task 'b'"),
        ({"a.npy": 2, "labels.json": '{"a": ["x", "x"]}'}, "must be distinct words"),
        ({"a.npy": 2, "labels.json": '{"a": ["x"], "a": ["y"]}'}, "two lists for the task 'a'"),
        ({"a.npy": 2, "b.npy": "text"}, "b.npy: not a prompt"),
    ],
)
def test_a_folder_is_taken_whole_or_not_at_all(tmp_path, files, message):
    for name, content in files.items():
        if isinstance(content, int):
            prompts.save(tmp_path / name, prompt(content))
        else:
            (tmp_path / name).write_text(content)
    model = empty()
    with pytest.raises(ValueError, match=message):
        model.add_tasks(tmp_path)
    assert model.tasks == ()


def ask(name: str, *arguments, **options):
    return lambda model: getattr(model, name)(*arguments, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (ask("classify", "one text", "a"), "texts is one string"),
        (ask("classify", ["4", 4], "a"), r"texts\[1\] is 4, of type int"),
        (ask("classify", ["4"], ["a", "b"]), "1 texts, but 2 tasks"),
        (ask("classify", ["4"], "x"), "no task 'x'; available: a, b, c, d"),
        (ask("classify", ["4"], "d"), "task 'd': has no labels"),
        (ask("generate", ["4"], "a", max_tokens=[1, 2]), "2 values of max_tokens: give one for"),
        (ask("generate", ["4"], "a", sampling=Sampling(), beams=2), "beams = 2"),
        (ask("generate", ["4"], "a", sampling=[None, None]), "1 texts, but 2 values of sampling"),
        (ask("add_task", "a", None), "task 'a': already exists"),
        (ask("add_task", "e", None, "xy"), "labels = 'xy': must be a list"),
        (ask("add_task", "e", None, None), "labels = None: must be a list"),
        (ask("remove_task", "x"), "no task 'x'"),
    ],
)
def test_mistakes_are_one_line(call, message):
    with pytest.raises(UserError, match=message) as caught:
        call(four_tasks())
    assert "\n" not in str(caught.value)


def test_load_needs_weights_and_a_vocabulary():
    with pytest.raises(UserError, match="load\\('t5_1_1_base'\\): has no checkpoint"):
        prompt_tuning.load("t5_1_1_base")
    with pytest.raises(UserError, match="has no vocabulary"):
        prompt_tuning.load("t5_1_1_base", checkpoint="x")


def test_public_names_are_imported_on_demand():
    package = prompt_tuning.serving
    assert {getattr(package, name).__name__ for name in package.__all__} == set(package.__all__)
    assert prompt_tuning.Model is package.Model and prompt_tuning.load is package.load
    with pytest.raises(AttributeError, match="has no attribute 'x'"):
        package.x  # noqa: B018


def test_examples_of_the_docstrings():
    results = doctest.testmod(serving)
    assert results.attempted >= 6 and not results.failed


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ((("rte",), ("boolq",)), "was trained with the tasks ['rte'], "),
        ((("rte",), ("rte", "boolq")), "was trained with the tasks ['rte'], "),
        ((("a", "b"), ("b", "a")), "was trained with the tasks ['a', 'b'], "),
        ((("rte_sentinel_16shot_seed0",), ("rte",)), ""),
        ((("rte_16shot_seed0",), ("rte_16shot_seed1",)), ""),
    ],
)
def test_prompts_that_vote_are_of_one_task(tasks, message, tmp_path):
    paths = [saved(tmp_path, "", name=f"p{i}", tasks=names) for i, names in enumerate(tasks)]
    prompts.save(paths[0], prompt(2) + 1)
    if message:
        with pytest.raises(UserError, match=re.escape(message)):
            prompt_folder.trained_with(paths, "PROMPT_FILES")
    else:
        assert prompt_folder.trained_with(paths, "PROMPT_FILES").tasks == tasks[0]


@pytest.mark.parametrize("other", ["{0}", "{1}/../{2}/p.npy", "{1}/link.npy", "{1}/p.safetensors"])
def test_a_prompt_votes_once(other, tmp_path):
    path = Path(saved(tmp_path, ""))
    (tmp_path / "link.npy").symlink_to(path)
    prompts.save(tmp_path / "p.safetensors", prompt(2))
    again = other.format(path, tmp_path, tmp_path.name)
    with pytest.raises(UserError, match=r"^PROMPT_FILES: .* the same prompt, whose vote"):
        prompt_folder.trained_with([path, np.ones((2, 4)), None, again], "PROMPT_FILES")


@pytest.mark.parametrize("prompts_of_task", [[np.ones((2, 4))] * 2, [None, np.ones((2, 4)), None]])
def test_an_array_votes_once(prompts_of_task):
    with pytest.raises(UserError, match=r"^task 't': .* the same prompt, whose vote"):
        prompt_folder.trained_with(prompts_of_task, "task 't'")


def test_a_prompt_of_inputs_without_an_end_is_refused(tmp_path):
    """Texts have one here."""
    model = empty()
    path = saved(tmp_path, model.fingerprint, bare_inputs=["mine"])
    with pytest.raises(UserError, match=r"^task 't': .* without an end token \(mine\)"):
        model.add_task("t", path)
    assert model.tasks == ()


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": ["good", "bad"]}, "label words"),
        ({"text_fields": {"files": ["title", "text"]}}, "text fields"),
    ],
)
def test_every_card_of_an_ensemble_counts(fields, message, first, tmp_path):
    """In whichever order they are given; a card that does not say it agrees with any."""
    said = {"labels": ["bad", "fine"], "text_fields": {"files": ["text", "title"]}}
    paths = [
        saved(tmp_path, "", name=name, **each)
        for name, each in {"a": said, "b": {**said, **fields}, "c": {}}.items()
    ]
    for number, path in enumerate(paths):
        prompts.save(path, np.full((2, D), number))
    if first:
        paths[:2] = paths[1::-1]
    with pytest.raises(UserError, match=f"was trained with the {message}"):
        prompt_folder.trained_with(paths, "PROMPT_FILES")
    assert prompt_folder.trained_with(paths[1:], "PROMPT_FILES") is not None
