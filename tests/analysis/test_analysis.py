"""Reading prompts: planted neighbours, clusters, labels; similarity; curves; figures' files."""

import dataclasses
import json
import warnings

import matplotlib.colors
import numpy as np
import pytest

from prompt_tuning import embedded
from prompt_tuning.analysis import curves, neighbours, similarity, sources, style
from prompt_tuning.checkpoint import backbone, card, prompts
from prompt_tuning.errors import UserError
from prompt_tuning.methods import ClassLabels
from prompt_tuning.testing import run_command
from prompt_tuning.transformer.vocabulary import SentencePiece

PROMPT = np.array([[3, 4], [0, 1], [-6, 8]], np.float32)
TABLE = np.array([[1, 0], [0, 2], [-3, 4], [0, 0]], np.float32)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_nearest_by_hand():
    ids, cosines = neighbours.nearest(PROMPT, TABLE, 2)
    np.testing.assert_array_equal(ids, [[1, 0], [1, 2], [2, 1]])
    np.testing.assert_allclose(cosines, [[0.8, 0.6], [1, 0.8], [1, 0.8]], rtol=1e-6)
    ids, cosines = neighbours.nearest(PROMPT, TABLE, 2, leave_out={1})
    np.testing.assert_array_equal(ids, [[0, 2], [2, 0], [2, 3]])
    np.testing.assert_allclose(cosines, [[0.6, 0.28], [0.8, 0], [1, 0]], atol=1e-6)


@pytest.mark.parametrize(
    ("width", "count", "message"),
    [
        (3, 2, "3 wide, the prompt 2"),
        (2, 5, "^5 neighbours of each vector: there are only 4 tokens"),
    ],
)
def test_no_neighbours(width, count, message):
    with pytest.raises(UserError, match=message):
        neighbours.nearest(PROMPT, np.ones((4, width)), count)


def test_planted_neighbours_are_found():
    """For vectors of any length; compared with cosines computed one by one."""
    table, chosen = random(300, 16), [7, 250, 31]
    prompt = 40 * table[chosen] + 0.1 * random(3, 16, seed=1)
    ids, cosines = neighbours.nearest(prompt, table, 4)
    np.testing.assert_array_equal(ids[:, 0], chosen)
    for vector, own, values in zip(prompt, ids, cosines, strict=True):
        every = [v @ vector / np.sqrt((v @ v) * (vector @ vector)) for v in table]
        np.testing.assert_array_equal(own, np.argsort(every)[::-1][:4])
        np.testing.assert_allclose(values, np.sort(every)[::-1][:4], rtol=1e-5)


@pytest.mark.parametrize(
    ("a", "b", "alike"),
    [
        ("▁Technology", "technologies", True),
        ("▁false", "▁False", True),
        ("▁a", "a", True),
        ("▁a", "▁an", False),
        ("▁state", "▁station", False),
        ("▁cat", "▁cats", True),
        ("▁in", "▁into", False),
        ("▁movie", "▁film", False),
    ],
)
def test_stems(a, b, alike):
    assert neighbours.share_stem(a, b) == neighbours.share_stem(b, a) == alike


def test_clusters():
    """0 and 1 share a stem, 1 and 2 a direction, so all three are a cluster; so are 4 and 5."""
    pieces = ["▁movies", "▁Movie", "▁film", "▁the", "▁un", "▁Un"]
    table = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 0.1], [0, 0, 1], [1, 1, 1], [-1, 1, 0]])
    actual = neighbours.clusters([3, 0, 4, 2, 5, 1], table, pieces, near=0.95)
    assert [set(group) for group in actual] == [{0, 1, 2}, {4, 5}]


def test_chance_cosine_is_a_quantile_of_random_pairs():
    table = random(2_000, 32)
    rows = table / np.linalg.norm(table, axis=1, keepdims=True)
    every = (rows @ rows.T)[np.triu_indices(len(rows), 1)]
    assert neighbours.chance_cosine(table, 0.9) == pytest.approx(np.quantile(every, 0.9), abs=0.01)


def test_mean_cosine_by_loops():
    ids, table = np.array([[0, 1, 2], [1, 4, 5]]), random(6, 8)
    pairs = [(a, b) for row in ids for i, a in enumerate(row) for b in row[:i]]
    rows = [vector / np.sqrt(vector @ vector) for vector in table]
    expected = np.mean([rows[a] @ rows[b] for a, b in pairs])
    assert neighbours.mean_cosine(ids, table) == pytest.approx(expected, abs=1e-6)


def test_duplicates():
    ids = np.array([[5, 1], [2, 5], [5, 2], [7, 5], [2, 1], [5, 0]])
    assert neighbours.duplicates(ids) == {5: (0, 2, 5), 2: (1, 4)}


def test_persistence():
    ids = np.array([[5, 1], [2, 3], [5, 4]])
    labels = {"yes": [1, 9], "no": [5], "maybe": [8], "beyond": [5]}
    yes, no, maybe = neighbours.persistence(ids, labels)
    assert (yes.position, yes.kept, yes.positions) == (0, (1,), (0,))
    assert (no.position, no.kept, no.positions) == (1, (), (0, 2))
    assert (maybe.kept, maybe.positions) == ((), ())


def test_words_of_the_vocabulary():
    vocabulary = SentencePiece(embedded.vocabulary())
    words, pieces = vocabulary.words, vocabulary.pieces
    assert len(pieces) == 8_100
    assert set(range(8_000)) - set(words) == {0, 1, 2}
    assert all(word < 8_000 for word in words)
    assert pieces[8_099] == "▁<extra_id_0>"


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A prompt beside the tokens of two labels, a sentinel and an unused row, its backbone, and an
    experiment with it.
    """
    folder = tmp_path_factory.mktemp("planted")
    vocabulary, table = SentencePiece(embedded.vocabulary()), random(8_192, 48)
    [good], [bad] = vocabulary.encode("good"), vocabulary.encode("bad")
    backbone.save(folder / "backbone.safetensors", {"token_embedder/embedding": table})
    prompt = table[[bad, good, 8_099, 8_150, good]] + 0.1 * random(5, 48, seed=1)
    prompts.save(folder / "cell/train/prompt_best.npy", prompt)
    words = dict.fromkeys([field.name for field in dataclasses.fields(card.Card)], "")
    numbers = dict.fromkeys(["d_model", "length", "learning_rate", "steps"], 1)
    told = {"backbone": str(folder / "backbone.safetensors"), "initialisation": "ClassLabels()"}
    about = card.Card(**words | numbers | told | {"metric": {}, "trained_with": None})
    card.save(folder / "cell/train/prompt_best.npy", about, prompt)
    cell = {"status": "done", "axes": {"task": "reviews", "seed": "0"}, "cell": "ours"}
    cells = [
        {**cell, "config": "cell/train/config.gin"},
        {**cell, "config": "elsewhere/config.gin", "cell": "no prompt"},
        {**cell, "config": "cell/train/config.gin", "axes": {"task": "other"}, "cell": "other"},
        {"status": "failed", "axes": cell["axes"], "cell": "failed", "config": None},
    ]
    (folder / "table.jsonl").write_text("".join(json.dumps(line) + "\n" for line in cells))
    return folder


def test_neighbours_command(planted):
    """The prompt of the one finished cell of its task, and the backbone that its card names."""
    done = run_command(
        "prompt_tuning.analysis.neighbours",
        f"--experiment={planted}",
        "--where=task:reviews,seed:0",
        f"--vocabulary={embedded.vocabulary()}",
        "--labels=bad,good",
        f"--json={planted / 'found.json'}",
    )
    assert done.status == 0, done.err
    written = json.loads((planted / "found.json").read_text())
    assert set(written) == {"ours"}
    actual = written["ours"]
    assert actual["initialisation"] == "ClassLabels()"
    nearest = [row["tokens"][0] for row in actual["neighbours"]]
    assert nearest[:2] == ["▁bad", "▁good"]
    assert not any("extra_id" in token or token.isdecimal() for token in nearest[2:4])
    assert {"token": "▁good", "positions": [1, 4]} in actual["duplicates"]
    bad, good = actual["labels"]
    assert (bad["own"], bad["positions"]) == (["▁bad"], [0])
    assert (good["own"], good["positions"]) == (["▁good"], [1, 4])
    lines = done.out.splitlines()
    assert lines[0] == "ours, initialised from ClassLabels()"
    assert "  good (▁good): of vector 1: ▁good; vectors that have any: 1, 4" in lines
    assert lines[-1].endswith("2 of 2")


def test_all_rows_may_be_neighbours(planted):
    table = backbone.load_leaf(planted / "backbone.safetensors", "token_embedder/embedding")
    words = neighbours.Words.of(table, SentencePiece(embedded.vocabulary()), all_rows=True)
    actual = neighbours.content(prompts.load(planted / "cell/train/prompt_best.npy"), words)
    tokens = [row["tokens"][0] for row in actual["neighbours"]]
    assert tokens == ["▁bad", "▁good", "▁<extra_id_0>", "8150", "▁good"]


def test_no_prompts_in_an_experiment(planted):
    with pytest.raises(UserError, match=r"--where=task:a,task:b: names an axis twice"):
        sources.selected(None, str(planted), ["task:a", "task:b"])
    with pytest.raises(UserError, match=r"--where=task:none: no finished cell with a prompt"):
        sources.prompts_of(planted, {"task": "none"})
    with pytest.raises(UserError, match=r"--where: unknown axis 'tusk'; available: .*task"):
        sources.prompts_of(planted, {"tusk": "none"})
    with pytest.raises(UserError, match=r"no table.jsonl; `experiments table` writes it"):
        sources.prompts_of(planted / "cell", {})


def test_similarity_matrix():
    of = {name: random(4, 8, seed=i) for i, name in enumerate("abc")}
    actual = similarity.matrix(of, similarity.average_tokens)
    means = [prompt.mean(axis=0) for prompt in of.values()]
    for i, a in enumerate(means):
        for j, b in enumerate(means):
            assert actual[i, j] == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)), abs=1e-6)


def test_names():
    assert similarity.names(["x/a.npy", "y/b.npy"]) == ["a", "b"]
    assert similarity.names(["x/best.npy", "y/best.npy"]) == ["x", "y"]
    paths = ["x/best.npy", "x/best.safetensors"]
    assert similarity.names(paths) == paths


def test_heatmap_shows_the_matrix():
    values = np.array([[1, -0.5], [0.25, 1]])
    figure = similarity.heatmap(values, ["rte", "cb"], "average")
    axis = figure.axes[0]
    np.testing.assert_array_equal(axis.images[0].get_array(), values)
    assert [text.get_text() for text in axis.texts] == ["1.00", "-0.50", "0.25", "1.00"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["rte", "cb"]


def test_ranking_marks_what_is_averaged():
    figure = similarity.ranking(
        {"a.npy": 0.5, "b.npy": 0.2, "c.npy": -0.1}, {"a.npy": 1}, "average"
    )
    bars = figure.axes[0].patches
    assert [bar.get_width() for bar in bars] == [0.5, 0.2, -0.1]
    dark, *others = (matplotlib.colors.to_hex(bar.get_facecolor()) for bar in bars)
    assert dark not in others and len(set(others)) == 1
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b", "c"]


def test_similarity_command(tmp_path):
    a, b = (random(4, 8, seed=i) for i in range(2))
    prompts.save(tmp_path / "prompts/a.npy", a)
    prompts.save(tmp_path / "prompts/b.npy", b)
    flags = (f"--plot={tmp_path / 'map.pdf'}", f"--json={tmp_path / 'map.json'}")
    given = f"--sources={tmp_path / 'prompts'}"
    done = run_command("prompt_tuning.analysis.similarity", given, "--measure=per_token", *flags)
    assert done.status == 0, done.err
    written = json.loads((tmp_path / "map.json").read_text())
    assert written["similarities"][0][1] == pytest.approx(similarity.per_token_average(a, b))
    assert (tmp_path / "map.pdf").read_bytes().startswith(b"%PDF")


def test_similarity_of_cells(planted):
    done = run_command("prompt_tuning.analysis.similarity", f"--experiment={planted}")
    assert done.status == 0, done.err
    assert done.out.splitlines()[0].split() == ["ours", "other"]


def write_run(folder, log: str, name: str, values: dict[int, float]) -> None:
    (folder / log).mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"step": step, name: value}) for step, value in values.items()]
    (folder / log / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def test_curve_of_runs():
    """Over common steps, with the sample standard deviation."""
    curve = curves.mean([{10: 1, 20: 2, 30: 9}, {20: 4, 10: 2}, {10: 3, 20: 9, 40: 0}])
    assert curve.steps == (10, 20) and curve.runs == 3
    assert curve.mean == pytest.approx((2, 5))
    assert curve.sd == pytest.approx((1, np.sqrt(13)))
    assert curves.mean([{5: 3.0}]) == curves.Curve((5,), (3.0,), (0.0,), 1)


def test_a_mixtures_validation_is_the_mean_over_its_tasks(tmp_path):
    write_run(tmp_path, "inference_eval/rte", "rank/accuracy", {0: 0.5, 50: 0.6})
    write_run(tmp_path, "inference_eval/cb", "rank/accuracy", {50: 0.8, 0: 0.1})
    actual = curves.of_run(tmp_path, "validation/rank/accuracy")
    assert actual == pytest.approx({0: 0.3, 50: 0.7})


def test_a_name_that_is_given_twice_is_of_all_its_runs(tmp_path):
    for name, value in {"a": 1.0, "b": 9.0}.items():
        write_run(tmp_path / name, "train", "loss", {0: value})
    (tmp_path / "latest").symlink_to("b")
    words = [f"pt={tmp_path / name}" for name in ("a", "b", "a", "a/../b", "latest", "b/")]
    curve = curves.read_curves(words, "train/loss")["pt"]
    assert (curve.mean, curve.runs) == ((5.0,), 2)


def test_no_curve(tmp_path):
    write_run(tmp_path, "train", "loss", {0: 1})
    for metric, message in {
        "loss": "must be LOG/NAME, with LOG one of train, validation",
        "train/los": r"metrics.jsonl has loss$",
        "validation/rank/accuracy": "no inference_eval/",
    }.items():
        with pytest.raises(UserError, match=message):
            curves.of_run(tmp_path, metric)


def test_curves_are_drawn_as_they_are():
    given = {
        "three": curves.Curve((1, 2), (5.0, 6.0), (0.5, 0.25), 3),
        "one": curves.Curve((1, 3), (7.0, 8.0), (0.0, 0.0), 1),
    }
    [axis] = curves.figure(given, "train/loss").axes
    for line, curve in zip(axis.lines, given.values(), strict=True):
        np.testing.assert_array_equal(line.get_xydata().T, [curve.steps, curve.mean])
    [band] = axis.collections  # of the three alone
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (4.5, 6.25)
    assert [line.get_label() for line in axis.lines] == ["three (n = 3)", "one"]


def test_curves_command(tmp_path):
    for seed, loss in enumerate((1.0, 2.0)):
        write_run(tmp_path / f"run_{seed}", "train", "loss", {1: loss, 2: loss / 2})
    flags = (f"--json={tmp_path / 'c.json'}", f"--plot={tmp_path / 'c.png'}")
    done = run_command(
        "prompt_tuning.analysis.curves", f"ours={tmp_path}/run_*", "--metric=train/loss", *flags
    )
    assert done.out == "ours: 0.7500 ± 0.3536 at step 2, 2 runs\n", done.stderr
    assert json.loads((tmp_path / "c.json").read_text())["curves"]["ours"]["mean"] == [1.5, 0.75]
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("suffix", style.FORMATS)
def test_figures_have_the_same_bytes_each_time(tmp_path, suffix):
    curve = {"ours": curves.Curve((1, 2), (5.0, 6.0), (0.5, 0.25), 3)}
    for name in "ab":
        style.save(curves.figure(curve, "train/loss"), tmp_path / f"{name}.{suffix}")
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_other_formats_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"a.gif: .* must end in one of .png, .pdf, .svg"):
        style.save(curves.figure({}, "train/loss"), tmp_path / "a.gif")


def test_lines_differ():
    looks = {
        (line["color"], line["marker"], line["linestyle"]) for line in map(style.line, range(28))
    }
    assert len(looks) == 28
    assert len({line["marker"] for line in map(style.line, range(7))}) == 7


@pytest.fixture
def with_card(planted, tmp_path):
    """Copies the planted prompt, with a card that says what it was trained with."""

    def saved(initialisation: str = "ClassLabels(labels=())", **fields) -> str:
        source = planted / "cell/train/prompt_best.npy"
        prompt, about = prompts.load(source), card.read(source)
        path = tmp_path / "prompt.npy"
        prompts.save(path, prompt)
        trained_with = card.TrainedWith(**{"labels": ("bad", "good"), **fields})
        card.save(
            path,
            dataclasses.replace(about, trained_with=trained_with, initialisation=initialisation),
            prompt,
        )
        return str(path)

    return saved


@pytest.mark.parametrize(
    ("labels", "fields", "refused"),
    [
        (("bad", "good"), {}, False),
        (("bad",), {}, False),
        (("good", "bad"), {"labels": ()}, False),
        (("good", "bad"), {"initialisation": "ClassLabels(labels=('good', 'bad'))"}, False),
        (("good", "bad"), {}, True),
        (("good",), {}, True),
        (("bad", "fine", "good"), {}, True),
        (("good", "bad"), {"initialisation": "Uniform()"}, True),
        (("bad",), {"initialisation": repr(ClassLabels())}, False),
        (("good", "bad"), {"initialisation": repr(ClassLabels())}, True),
        (("bad)", "good"), {"initialisation": repr(ClassLabels(("bad)", "good")))}, False),
        (
            ("good", "bad"),
            {"initialisation": "ClassLabels(labels=['bad', 'good'], seed=1)", "labels": ("x",)},
            True,
        ),
    ],
)
def test_labels_are_at_the_places_of_the_training(labels, fields, refused, with_card):
    path = with_card(**fields)
    if not refused:
        return neighbours.check_order(labels, card.read(path), path)
    with pytest.raises(UserError, match=r"^--labels=.*was trained on bad,good; label n init"):
        neighbours.analyse({"a": path}, SentencePiece(embedded.vocabulary()), labels)


@pytest.mark.parametrize("words", ["(bad, good)", "('bad'", "['bad', 'good')"])
def test_a_card_whose_labels_are_no_list(words, with_card):
    path = with_card(f"ClassLabels(labels={words})")
    with pytest.raises(
        UserError, match=rf"^{path}: its card has an initialisation whose labels can"
    ):
        neighbours.check_order(("bad",), card.read(path), path)


@pytest.mark.parametrize("labels", [("dull", "fine"), ("bad", "Good")])
def test_labels_that_the_training_did_not_have_are_told(labels, with_card):
    path = with_card()
    with pytest.warns(UserWarning, match=f"{labels[1]}, which initialised no vector of .* bad, go"):
        neighbours.check_order(labels, card.read(path), path)


@pytest.mark.parametrize("command", ["analysis.neighbours", "inspect"])
@pytest.mark.parametrize("case", ["vocabulary", "rows", "backbone"])
def test_words_of_another_backbone(command, case, with_card, planted, tmp_path):
    path = with_card(vocabulary="0" * 16 if case == "vocabulary" else "")
    weights = planted / "backbone.safetensors"
    if case != "vocabulary":
        weights, table = tmp_path / "other.safetensors", random(8_192, 48, seed=2)
        rows = {"rows": 7_000, "backbone": 8_192}[case]
        backbone.save(weights, {"token_embedder/embedding": table[:rows]})
    prompt = [path] if command == "inspect" else [f"--sources={path}"]
    flags = (f"--backbone={weights}", f"--vocabulary={embedded.vocabulary()}")
    message = {
        "vocabulary": f"{path}: was trained with the vocabulary 0000",
        "rows": "the vocabulary has 8,000 pieces, but the backbone's embedding has 7,000 rows",
        "backbone": "",
    }[case]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        done = run_command(f"prompt_tuning.{command}", *prompt, *flags)
    assert (message in done.err, done.status) == (True, 0 if case == "backbone" else 2), done.err
    warned = any(f"--backbone={weights}: {path} was trained on" in str(x.message) for x in caught)
    assert warned == (case != "vocabulary")
