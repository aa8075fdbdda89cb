"""Soft prompt transfer: similarities by hand and by loops, ranking, average, the command."""

import json

import numpy as np
import pytest

from prompt_tuning import transfer
from prompt_tuning.analysis import similarity
from prompt_tuning.analysis.sources import source_files
from prompt_tuning.checkpoint import card, prompts
from prompt_tuning.errors import UserError
from prompt_tuning.methods import Backbone, FromFile
from prompt_tuning.testing import assert_mistake, run_command

BOTH = pytest.mark.parametrize("measure", similarity.MEASURES.values())
# The mean of X is (1, 1), of UP (0, 2): half a right angle. Of the pairs, (2, 0) is at a right
# angle to both vectors of UP, (0, 2) is along both.
X = np.array([[2, 0], [0, 2]], np.float32)
UP = np.array([[0, 1], [0, 3]], np.float32)


def random_prompt(seed: int, length: int = 5, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(length, width)).astype(np.float32)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def test_similarities_by_hand():
    assert similarity.average_tokens(X, UP) == pytest.approx(np.sqrt(0.5))
    assert similarity.per_token_average(X, UP) == pytest.approx(0.5)
    # Four pairs of X with itself: two along, two at right angles.
    assert similarity.average_tokens(X, X) == pytest.approx(1)
    assert similarity.per_token_average(X, X) == pytest.approx(0.5)


@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1.0, 1e20, 1e30])
def test_cosines_do_not_depend_on_the_scale(scale):
    a, b = random_prompt(0), random_prompt(1)
    cosines = similarity.units(np.float32(scale) * a) @ similarity.units(b).T
    expected = [[cosine(x, y) for y in b] for x in a]
    np.testing.assert_allclose(cosines, expected, rtol=0, atol=1e-6)


def test_similarities_by_loops():
    a, b = random_prompt(0, 4), random_prompt(1, 7)
    pairs = [cosine(x, y) for x in a for y in b]
    assert similarity.per_token_average(a, b) == pytest.approx(sum(pairs) / 28, abs=1e-6)
    means = [sum(prompt) / len(prompt) for prompt in (a, b)]
    assert similarity.average_tokens(a, b) == pytest.approx(cosine(*means), abs=1e-6)


@BOTH
def test_similarity_is_symmetric_and_knows_no_scale(measure):
    a, b = random_prompt(0, 4), random_prompt(1, 7)
    assert measure(a, b) == pytest.approx(measure(b, 7 * a))
    assert measure(a, -b) == pytest.approx(-measure(a, b))
    assert measure(a, np.zeros_like(b)) == 0


def test_the_measures_can_disagree():
    sources = {"two ways": np.array([[5, 0], [-4, 0]]), "aslant": np.array([[1, 1]])}
    target = np.array([[1, 0]])
    assert list(similarity.rank(target, sources)) == ["two ways", "aslant"]
    assert list(similarity.rank(target, sources, similarity.per_token_average)) == [
        "aslant",
        "two ways",
    ]


@BOTH
def test_rank_finds_the_nearest_first(measure):
    target, noise = random_prompt(0), random_prompt(1)
    sources = {str(scale): target + scale * noise for scale in (3, 0.1, 30, 1)}
    similarities = similarity.rank(target, sources, measure)
    assert list(similarities) == ["0.1", "1", "3", "30"]
    assert similarities["3"] == measure(target, sources["3"])


def test_other_backbones_prompt_is_refused():
    with pytest.raises(UserError, match=r"^mnli: the prompt is 9 wide, not 8; "):
        similarity.rank(random_prompt(0), {"mnli": random_prompt(1, width=9)})


def test_weights_are_the_share_of_similarity():
    weights = similarity.top_k_weights({"a": 0.6, "b": 0.2, "c": 0.1}, 2)
    assert weights == pytest.approx({"a": 0.75, "b": 0.25})
    sources = {"a": X, "b": UP, "c": 100 * X}
    average = similarity.weighted_average(sources, weights)
    np.testing.assert_allclose(average, [[1.5, 0.25], [0, 2.25]])


def test_the_best_one_alone_is_taken_as_it_is():
    weights = similarity.top_k_weights({"a": 0.3, "b": 0.2}, 1)
    np.testing.assert_array_equal(similarity.weighted_average({"a": X, "b": UP}, weights), X)


@pytest.mark.parametrize(
    ("similarities", "message"),
    [
        ({"a": 0.5, "b": 0.2}, "--top_k=3: there are 2 source prompts"),
        ({"a": 0.5, "b": 0.2, "c": -0.1}, "similarity of c is -0.1000, .* at most 2 source"),
        ({"a": 0.0, "b": -0.2, "c": -0.3}, "similarity of a is 0.0000, .* at most 0 source"),
    ],
)
def test_no_weights(similarities, message):
    with pytest.raises(UserError, match=message):
        similarity.top_k_weights(similarities, 3)


def test_prompts_of_two_lengths_have_no_average():
    sources = {"a": X, "b": np.ones((3, 2))}
    with pytest.raises(UserError, match=r"^b: the prompt has 3 vectors, the most similar one 2"):
        similarity.weighted_average(sources, {"a": 0.5, "b": 0.5})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A target, and a library of three prompts, the nearest one last by name."""
    monkeypatch.chdir(tmp_path)
    target, noise = random_prompt(0), random_prompt(1)
    prompts.save("target.npy", target)
    for name, scale in {"a.npy": 1.0, "b.safetensors": 3.0, "c.npy": 0.1}.items():
        prompts.save(f"library/{name}", target + scale * noise)
    (tmp_path / "library" / "README.md").write_text("Prompts.")
    return tmp_path


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["library"], ["library/a.npy", "library/b.safetensors", "library/c.npy"]),
        (["l*/*.npy"], ["library/a.npy", "library/c.npy"]),
        (["**/*.npy"], ["library/a.npy", "library/c.npy"]),
        (["library/c.npy", "library", "./library/a.npy"], ["c.npy", "./library/a.npy", "b.safe"]),
    ],
)
def test_source_files(folder, patterns, names):
    actual = source_files(patterns, "./target.npy")
    assert len(actual) == len(names)
    assert all(name in path for name, path in zip(names, actual, strict=True))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("absent.npy", "--sources=absent.npy: no such file"),
        (".", "--sources=.: only the prompt itself"),
        ("t*.npy", "only the prompt itself"),
    ],
)
def test_nothing_to_compare_with(folder, pattern, message):
    with pytest.raises(UserError, match=message):
        source_files([pattern], "target.npy")


def test_a_source_that_is_the_prompt_is_named(folder):
    nearly = prompts.load("target.npy") * np.float32(1 + 2**-10)
    prompts.save("library/nearly.npy", nearly)
    done = run_command("prompt_tuning.transfer", "--prompt=target.npy", "--sources=library")
    assert done.status == 0, done.err
    assert "library/nearly.npy: is the prompt itself, and is left out" in done.out


def test_command(folder):
    flags = ("--top_k=2", "--output=start.npy", "--json=table.json", "--plot=ranking.svg")
    done = run_command("prompt_tuning.transfer", "--prompt=target.npy", "--sources=library", *flags)
    assert done.status == 0, done.err
    table = json.loads((folder / "table.json").read_text())
    assert table["measure"] == "average"
    assert "<svg" in (folder / "ranking.svg").read_text()
    rows = table["sources"]
    assert [row["prompt"] for row in rows] == [
        "library/c.npy",
        "library/a.npy",
        "library/b.safetensors",
    ]
    assert [line.split()[-1] for line in done.out.splitlines()[1:]] == [
        row["prompt"] for row in rows
    ]
    target, sources = np.load("target.npy"), [prompts.load(row["prompt"]) for row in rows]
    near, second, _ = by_hand = [cosine(target.mean(0), source.mean(0)) for source in sources]
    assert [row["similarity"] for row in rows] == pytest.approx(by_hand, abs=1e-6)
    assert rows[2]["weight"] is None
    # The average is a prompt that a run can start from.
    backbone = Backbone(np.zeros((9, 8), np.float32))
    start = FromFile("start.npy")(5, backbone, np.random.default_rng(0))
    expected = (near * sources[0] + second * sources[1]) / (near + second)
    np.testing.assert_allclose(start, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("cards", "message"),
    [
        ({"a": "<extra_id_0>", "b": None}, "b.npy: no card says with which target prefix"),
        ({"b": None, "a": "<extra_id_0>"}, "b.npy: no card says with which target prefix"),
        ({"a": "<extra_id_0>", "b": ""}, "b.npy: was trained with the target prefix ''"),
        ({"a": "<extra_id_0>", "b": "unknown"}, "b.npy: no card says with which target prefix"),
        ({"b": "unknown", "a": "<extra_id_0>"}, "b.npy: no card says with which target prefix"),
    ],
)
def test_no_average_with_and_without_a_sentinel(cards, message, tmp_path):
    paths = saved_with_prefixes(tmp_path, cards)
    with pytest.raises(UserError, match=message):
        transfer._card_of_average(paths)


@pytest.mark.parametrize(
    ("cards", "prefix"),
    [
        ({"a": "unknown", "b": ""}, ""),
        ({"a": None, "b": ""}, ""),
        ({"a": "<extra_id_0>", "b": "<extra_id_0>"}, "<extra_id_0>"),
    ],
)
def test_the_card_of_an_average_has_what_any_source_says(cards, prefix, tmp_path):
    of_average = transfer._card_of_average(saved_with_prefixes(tmp_path, cards))
    assert of_average.trained_with.target_prefix == prefix
    assert of_average.trained_with.lengths == {"inputs": 8}


def saved_with_prefixes(folder, cards) -> list[str]:
    """Saves prompts with cards that name a target prefix; None for no card."""
    texts = dict.fromkeys(("backbone", "fingerprint", "method", "placement", "optimizer"), "")
    texts |= dict.fromkeys(("task", "initialisation", "version", "config"), "")
    numbers = {"d_model": 2, "length": 2, "learning_rate": 0.3, "steps": 1, "metric": {}}
    for name, prefix in cards.items():
        prompts.save(folder / f"{name}.npy", X)
        said = card.TrainedWith(lengths={"inputs": 8}, target_prefix=prefix or "")
        of_prompt = card.Card(
            **texts, **numbers, trained_with=None if prefix == "unknown" else said
        )
        card.save(folder / f"{name}.npy", None if prefix is None else of_prompt)
    return [str(folder / f"{name}.npy") for name in cards]


def test_the_output_is_no_source(folder):
    flags = ("--sources=library", "--top_k=1", "--output=library/../library/a.npy")
    before = (folder / "library" / "a.npy").read_bytes()
    done = run_command("prompt_tuning.transfer", "--prompt=target.npy", *flags)
    assert_mistake(done, "is one of the sources; name another file")
    assert (folder / "library" / "a.npy").read_bytes() == before
