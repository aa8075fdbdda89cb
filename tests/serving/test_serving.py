"""A served model: every row is answered as by its own task alone, whatever else is asked."""

import doctest
import functools
import json
import random
import threading
from collections.abc import Sequence

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import prompt_tuning
from prompt_tuning import Model, Sampling, decoding, embedded, sharding
from prompt_tuning.checkpoint import card, prompts
from prompt_tuning.errors import CheckpointError, UserError
from prompt_tuning.methods import PromptTuning
from prompt_tuning.methods.prompt import PROMPT_PATH
from prompt_tuning.model.tuned import initialize
from prompt_tuning.serving import model as serving
from prompt_tuning.serving.answers import Classification, Generation
from prompt_tuning.serving.bank import PromptBank
from prompt_tuning.sharding import Layout
from prompt_tuning.t5 import T5, T5Config
from prompt_tuning.t5.paths import flatten, unflatten

CONFIG = T5Config(64, 16, 2, 8, 32, 2, 1, relative_buckets=8, relative_max_distance=12)
D = CONFIG.d_model
LABELS = {"a": ("5 6", "7", "9"), "b": ("8", "4 4 4"), "c": ("7", "11", "12", "13", "14"), "d": ()}
LENGTHS = {"a": 3, "b": 1, "c": 6, "d": 0}


class Numbers:
    """A vocabulary whose words are ids."""

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(str(i) for i in ids if i > 1)


def prompt(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([length, seed]).normal(size=(length, D)).astype(np.float32)


def text(length: int, seed: int) -> str:
    ids = np.random.default_rng([length, seed]).integers(3, 64, length)
    return " ".join(map(str, ids))


@functools.cache
def backbone() -> tuple[dict, Layout]:
    layout = sharding.layout(devices=jax.devices()[:1])
    return initialize(CONFIG, PromptTuning(1), layout=layout, seed=3).frozen, layout


def empty(length: int = 6, **options) -> Model:
    params, layout = backbone()
    room = PromptBank.empty(D, layout.mesh, capacity=8, length=length)
    return Model(CONFIG, params, Numbers(), layout, prompts=room, **{"batch_size": 8} | options)


@functools.cache
def four_tasks() -> Model:
    model = empty()
    for task, labels in LABELS.items():
        model.add_task(task, prompt(LENGTHS[task]), labels)
    return model


def method(vectors: np.ndarray) -> tuple[T5, dict]:
    """The offline model with a prompt."""
    if not len(vectors):
        return T5(CONFIG), backbone()[0]
    leaves = flatten(backbone()[0]) | {PROMPT_PATH: vectors}
    return T5(CONFIG, PromptTuning(len(vectors))), unflatten(leaves)


SCORE = jax.jit(decoding.score, static_argnums=0)
ENCODE = jax.jit(
    lambda model, params, tokens: (
        model.apply({"params": params}, tokens, method=model.encode).states
    ),
    static_argnums=0,
)


def row(line: str, width: int = 24) -> np.ndarray:
    ids = [*Numbers().encode(line), 1]
    return np.pad(np.array(ids, np.int32), (0, width - len(ids)))[None]


def offline(vectors: np.ndarray, line: str, labels: Sequence[str]) -> np.ndarray:
    """Probabilities of the labels, by `PromptTuning` with the prompt, a row of its own."""
    ids = [[*Numbers().encode(label), 1] for label in labels]
    targets = np.zeros((5, 4), np.int32)
    for target, label in zip(targets, ids, strict=False):
        target[: len(label)] = label
    scores = np.asarray(SCORE(*method(vectors), row(line), targets))[0, : len(labels)]
    odds = np.exp(scores.astype(np.float64))
    return odds / odds.sum()


ROWS = st.tuples(st.sampled_from("abc"), st.integers(0, 20), st.integers(0, 3))


@given(st.lists(ROWS, min_size=6, max_size=6) | st.lists(ROWS, min_size=14, max_size=14))
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_mixed_batch_answers_as_each_task_alone(rows):
    rows = [*rows, ("b", 2, 0), ("c", 5, 0)]  # whole batches, of one shape of labels: few compiles
    texts, names = [text(n, seed) for _, n, seed in rows], [task for task, _, _ in rows]
    for line, task, found in zip(texts, names, four_tasks().classify(texts, names), strict=True):
        expected = offline(prompt(LENGTHS[task]), line, LABELS[task])
        np.testing.assert_allclose(list(found.probabilities.values()), expected, atol=1e-5)
        assert expected[LABELS[task].index(found.label)] >= expected.max() - 1e-5


def test_each_shape_is_compiled_once():
    model, counts = empty(), []
    for task in "ab":
        model.add_task(task, prompt(LENGTHS[task]), LABELS[task])
    # With the end token, shapes are 1 x 16, 1 x 32, 2 x 16, 4 x 16, 8 x 32, and the last one twice.
    for lengths in ([3], [15], [16], [20], [1, 2], [9, 9, 9], [15, 3, 3, 3], [20] * 8, [17] * 16):
        tasks = (["a", "b"] * 8)[: len(lengths)]
        model.classify([text(n, 0) for n in lengths], tasks)
        counts.append(model.compile_count)
    assert counts == [1, 1, 2, 2, 3, 4, 4, 5, 5]


def test_greedy_texts_are_those_of_each_task_alone():
    model = four_tasks()
    texts = [text(n, 1) for n in (3, 20, 7, 1, 12)]
    limits = [4, 2, 4, 3, 1]
    found = model.generate(texts, list("abcda"), max_tokens=limits)
    greedy = jax.jit(functools.partial(decoding.greedy, length=4), static_argnums=0)
    for line, task, limit, answer in zip(texts, "abcda", limits, found, strict=True):
        if task in "bc":
            continue  # each prompt length is compiled on its own
        tokens = np.asarray(greedy(*method(prompt(LENGTHS[task])), row(line)))[0, :limit]
        assert answer.text == Numbers().decode(tokens.tolist())


def test_stop_tokens_and_beams():
    model, lines = four_tasks(), [text(6, 2), text(4, 2)]
    free = model.generate(lines, "a", max_tokens=8, stop=[1])
    words = free[0].text.split()
    stopped = model.generate(lines, "a", max_tokens=8, stop=[int(words[2])])
    assert stopped[0].text.split() == words[: words.index(words[2]) + 1]
    wide = model.generate(lines, "a", max_tokens=8, beams=4, alpha=0.0)
    assert all(w.score >= f.score - 1e-5 for w, f in zip(wide, free, strict=True))


def test_samples():
    line, other, third = (text(n, 2) for n in (6, 4, 7))
    draw = functools.partial(four_tasks().generate, task="a", max_tokens=8, sampling=Sampling(2.0))
    found = draw([line, line])
    assert found == draw([line, line]) != draw([line, line], seed=1)
    assert found[0] != found[1]
    assert draw([line, other])[0].text == draw([line, third])[0].text == found[0].text


def test_an_ensemble_is_one_call_of_all_its_prompts():
    model, several = empty(), [prompt(3, 1), prompt(2, 2), prompt(6, 3)]
    model.add_task("all", several, LABELS["c"])
    texts = [text(n, 5) for n in (4, 9, 2, 7)]
    found = model.classify(texts, "all")
    assert model.compile_count == 2  # 12 rows: a batch of 8 and one of 4
    for line, answer in zip(texts, found, strict=True):
        each = np.array([offline(vectors, line, LABELS["c"]) for vectors in several])
        np.testing.assert_allclose(
            list(answer.probabilities.values()), each.mean(axis=0), atol=1e-5
        )
        votes = np.bincount(each.argmax(axis=1), minlength=5)
        np.testing.assert_array_equal(list(answer.votes.values()), votes)
        assert answer.votes[answer.label] == votes.max()


def test_the_majority_wins_and_ties_go_to_the_surer():
    unsure = np.log([[0.51, 0.49], [0.51, 0.49], [0.01, 0.99]])
    assert Classification.of(["x", "y"], unsure).label == "x"
    assert Classification.of(["x", "y"], unsure[1:]).label == "y"
    assert Generation.of(["p", "q", "q"], np.array([-0.1, -2.0, -3.0])) == Generation("q", -2.0)
    assert Generation.of(["p", "q"], np.array([-3.0, -2.0])).text == "q"


def test_embeddings_are_means_of_the_encoder_over_the_tokens():
    texts, tasks = [text(n, 4) for n in (3, 20, 7)], ["a", "d", "c"]
    found = four_tasks().embed(texts, tasks)
    for line, task, vector in zip(texts, tasks, found, strict=True):
        model, params = method(prompt(LENGTHS[task]))
        tokens = row(line)[:, : len(line.split()) + 1]
        states = ENCODE(model, params, tokens)[0]
        np.testing.assert_allclose(vector, states[LENGTHS[task] :].mean(axis=0), atol=1e-5)


def test_a_call_answers_tasks_with_labels_and_without():
    texts = [text(n, 6) for n in (3, 5, 8)]
    model = four_tasks()
    found = model(texts, ["a", "d", "b"])
    assert found[0] == model.classify(texts[:1], "a")[0].label
    assert found[1] == model.generate(texts[1:2], "d")[0].text
    assert found[2] == model.classify(texts[2:], "b")[0].label
    assert model([], "a") == [] and model.embed([], "a").shape == (0, D)


def under_change(rows: int, seed: int) -> None:
    """Answers mixed rows while a thread adds, replaces and removes tasks beside them."""
    model, kept, labels = empty(), [f"kept{i}" for i in range(4)], LABELS["a"]
    for i, task in enumerate(kept):
        model.add_task(task, prompt(i + 1, 7), labels)
    lines = [text(n, 8) for n in range(8)]
    expected = {
        (task, line): offline(prompt(i + 1, 7), line, labels)
        for i, task in enumerate(kept)
        for line in lines
    }
    rng, stop, changes = random.Random(seed), threading.Event(), [0]
    model.classify(lines, kept * 2)  # compiled now
    before = model.compile_count

    def change() -> None:
        mine: list[str] = []
        while not stop.is_set():
            what = rng.choice(("add", "replace", "remove"))
            if what == "add" and len(mine) < 4:
                mine.append(f"other{changes[0]}")
                model.add_task(mine[-1], prompt(rng.randint(1, 6), changes[0]), labels)
            elif what == "replace":
                i = rng.randrange(4)  # by the same prompt: the answers must not change
                model.add_task(kept[i], prompt(i + 1, 7), labels, replace=True)
            elif mine:
                model.remove_task(mine.pop(rng.randrange(len(mine))))
            changes[0] += 1
            with pytest.raises(UserError):
                model.add_task("bad", np.full((2, D), np.nan, np.float32), labels)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        draw = random.Random(seed + 1)
        for _ in range(rows // 8):
            names = [draw.choice(kept) for _ in range(8)]
            asked = [draw.choice(lines) for _ in range(8)]
            for line, task, answer in zip(asked, names, model.classify(asked, names), strict=True):
                found = np.array(list(answer.probabilities.values()))
                np.testing.assert_allclose(found, expected[task, line], atol=1e-5)
    finally:
        stop.set()
        thread.join()
    assert changes[0] > 20
    assert model.compile_count == before


def test_answers_while_tasks_come_and_go():
    under_change(10_000, seed=0)


def test_a_thousand_tasks_on_the_embedded_backbone(tmp_path):
    model = prompt_tuning.load("demo", tasks=1_000, prompt_length=5, input_length=16)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(1_000, 5, 256)).astype(np.float32)
    for i, one in enumerate(vectors):
        np.save(tmp_path / f"task{i}.npy", one)
    words = {f"task{i}": ["negative", "positive"] for i in range(1_000)}
    (tmp_path / "labels.json").write_text(json.dumps(words))
    assert len(model.add_tasks(tmp_path)) == 1_000
    texts = ["a dull film", "a great film", "it rained", "no"] * 4
    chosen = rng.choice(1_000, 16, replace=False)
    found = model.classify(texts, [f"task{i}" for i in chosen])
    assert len({answer.probabilities["positive"] for answer in found}) == 16
    alone = PromptTuning(5)
    params = initialize(
        model.config, alone, layout=backbone()[1], checkpoint=embedded.backbone()
    ).frozen
    vocabulary = serving.read_vocabulary(embedded.vocabulary())
    targets = np.array([[*vocabulary.encode(word), 1] for word in ("negative", "positive")])
    for line, i, answer in list(zip(texts, chosen, found, strict=True))[:3]:
        ids = [*vocabulary.encode(line), 1]
        leaves = unflatten(flatten(params) | {PROMPT_PATH: vectors[i]})
        tokens = np.pad(np.array(ids), (0, 8 - len(ids)))[None]
        scores = np.asarray(SCORE(T5(model.config, alone), leaves, tokens, targets))[0]
        odds = np.exp(scores - scores.max())
        np.testing.assert_allclose(
            list(answer.probabilities.values()), odds / odds.sum(), atol=1e-5
        )
    assert model.compile_count == 1


def saved(folder, fingerprint: str, placement: str = "prefix"):
    path = folder / "p.npy"
    prompts.save(path, prompt(2))
    fields = {"backbone": "other.safetensors", "d_model": D, "task": "t", "length": 2, "steps": 1}
    texts = dict.fromkeys(("method", "initialisation", "optimizer", "version", "config"), "")
    found = card.Card(
        fingerprint=fingerprint,
        placement=placement,
        learning_rate=0.3,
        metric={},
        **fields,
        **texts,
    )
    card.save(path, found)
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


def test_a_folder_holds_tasks_and_ensembles(tmp_path):
    for name in ("one.npy", "two.safetensors", "many/x.npy", "many/y.npy"):
        prompts.save(tmp_path / name, prompt(2, len(name)))
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
        ({"a.npy": 2, "labels.json": '{"a": ["x", "x"]}'}, "must be a list of different words"),
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
        (ask("classify", ["4", 4], "a"), "texts contains 4"),
        (ask("classify", ["4"], ["a", "b"]), "1 texts, but 2 tasks"),
        (ask("classify", ["4"], "x"), "no task 'x'; available: a, b, c, d"),
        (ask("classify", ["4"], "d"), "task 'd': has no labels"),
        (ask("generate", ["4"], "a", max_tokens=0), "max_tokens = 0"),
        (ask("generate", ["4"], "a", max_tokens=[1, 2]), "one for each text"),
        (ask("generate", ["4"], "a", max_tokens=2.5), "max_tokens = 2.5"),
        (ask("generate", ["4"], "a", stop=["x"]), "stop contains 'x'"),
        (ask("generate", ["4"], "a", sampling=Sampling(), beams=2), "beams = 2"),
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


def test_examples_of_the_docstrings():
    found = doctest.testmod(serving)
    assert found.attempted >= 6 and not found.failed
