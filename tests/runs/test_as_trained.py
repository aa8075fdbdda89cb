"""Trained files are used as they were trained: the card decides, or refuses in one line."""

import contextlib
import dataclasses
import functools
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

import prompt_tuning as prompt_tuning_package
from prompt_tuning import embedded, methods, sharding
from prompt_tuning.analysis import similarity
from prompt_tuning.checkpoint import backbone, card, prompts, trained
from prompt_tuning.checkpoint.fingerprint import Identity
from prompt_tuning.checkpoint.formats import safetensors_file
from prompt_tuning.checkpoint.trained_data import check_text_fields
from prompt_tuning.data import source, tasks
from prompt_tuning.data.batches import TaskData
from prompt_tuning.data.files import TextFiles
from prompt_tuning.errors import CheckpointError, UserError
from prompt_tuning.exchange import adapters, recycling
from prompt_tuning.methods import Method
from prompt_tuning.methods.prompt_file import with_prompt
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.model.tuned import _start_of, initialize, with_trained
from prompt_tuning.runs import ensemble, loading, saving
from prompt_tuning.runs.as_trained import as_trained
from prompt_tuning.runs.eval import evaluate
from prompt_tuning.runs.infer import infer
from prompt_tuning.serving import model as serving
from prompt_tuning.serving import prompt_folder
from prompt_tuning.t5.config import preset
from prompt_tuning.testing import (
    CommandResult,
    assert_mistake,
    clean_registries,
    random_leaves,
    run_command,
    tiny_config,
    tiny_model,
)
from prompt_tuning.training.loop import Fit
from prompt_tuning.transformer.vocabulary import read as read_vocabulary

CONFIG = tiny_config(vocab_size=preset("demo").vocab_size + 100)  # and the sentinels
LABELS = ("negative", "positive", "entity")
SENTINEL = "<extra_id_0>"
P = 3
ONE = sharding.layout(devices=jax.devices()[:1])


@dataclasses.dataclass(frozen=True)
class Numbers:
    """What `as_trained` reads of `runs.data_protocol.Data`."""

    labels: tuple[str, ...] = ("7", "8", "9")
    tasks: tuple[str, ...] = ("a", "b")
    lengths: Mapping[str, int] = dataclasses.field(
        default_factory=lambda: {"inputs": 16, "targets": 4}
    )
    target_prefix: str = ""
    text_fields: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    bare_inputs: tuple[str, ...] = ()
    task: str = "mixture"
    labels_by_number: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    vocabulary_size: int = 0
    vocabulary_fingerprint: str = ""

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def as_trained(self, lengths: Mapping[str, int], target_prefix: str) -> "Numbers":
        return dataclasses.replace(self, lengths=lengths, target_prefix=target_prefix)


def save(folder: Path, method: Method, data: Any = None, config: Any = None) -> Path:
    """Saves the files of a run of random leaves."""
    data = data or Numbers()
    config = config or tiny_config()
    method = method.for_task(data.encode, data.labels, data.tasks)
    tuned = tiny_model(method, config)
    of_run = saving.card_at(
        1,
        {},
        identity=Identity("a_backbone", "0" * 16, {}),
        config=config,
        method=method,
        data=data,
        fit=Fit(total_steps=1),
        settings="",
    )
    saving.save_trained(folder, "best", method, tuned.trained, of_run)
    return folder


UNIFORM = methods.Uniform()


@pytest.mark.parametrize(
    ("trained_on", "now", "message"),
    [
        ((), (), ""),
        (("a",), ("a",), ""),
        (("a", "b"), ("b",), ""),
        (("a",), (), r"was trained on inputs without an end token \(a\), but these have one"),
        ((), ("b",), "with an end token, but those of b have none"),
    ],
)
def test_inputs_end_as_in_training(trained_on, now, message, tmp_path):
    save(tmp_path, prompt_tuning(), Numbers(bare_inputs=trained_on))
    file, data = str(tmp_path / "trained_best.safetensors"), Numbers(bare_inputs=now)
    as_trained(prompt_tuning(), data, file, allow_other_settings=True)
    if not message:
        as_trained(prompt_tuning(), data, file)
        return
    with pytest.raises(UserError, match=message):
        as_trained(prompt_tuning(), data, file)


def prompt_tuning(**fields: Any) -> methods.PromptTuning:
    return methods.PromptTuning(P, initializer=UNIFORM, **fields)


@pytest.mark.parametrize(
    ("method", "change", "followed"),
    [
        (
            methods.Warp(P, initializer=UNIFORM),
            {"labels": ("9", "7", "8")},
            {"label_ids": (7, 8, 9)},
        ),
        (methods.Warp(P, initializer=UNIFORM), {"labels": ()}, {"label_ids": (7, 8, 9)}),
        (methods.MultitaskPrompt(P), {"tasks": ("b", "a")}, {"tasks": ("a", "b")}),
        (methods.MultitaskPrompt(P), {"tasks": ("b",)}, {"tasks": ("a", "b")}),
        (methods.MultitaskPrompt(P), {"tasks": ()}, {"tasks": ("a", "b")}),
        (methods.LoRA(2), {"lengths": {"inputs": 64, "targets": 4}}, {}),
        (methods.LoRA(2), {"lengths": {"inputs": 8, "targets": 2}}, {}),
    ],
)
def test_the_card_decides(method, change, followed, tmp_path, capsys):
    path = str(save(tmp_path, method) / "trained_best.safetensors")
    data = dataclasses.replace(Numbers(), **change)
    actual, data_found = as_trained(method, data, path)
    assert {name: getattr(actual, name) for name in followed} == followed
    assert data_found.lengths == Numbers().lengths
    assert ("as in training" in capsys.readouterr().out) == ("lengths" in change)
    with_trained(tiny_model(actual), path, allow_other_backbone=True)
    as_given = as_trained(method, data, path, allow_other_settings=True)
    assert as_given == (method, data)


@pytest.mark.filterwarnings("ignore:.*was trained on the label words")
@pytest.mark.parametrize(
    ("method", "labels", "other"),
    [
        (methods.Warp(P, initializer=UNIFORM), ("8", "9"), ""),
        (methods.Warp(P, initializer=UNIFORM), ("7", "8", "9", "10"), "10"),
        (methods.Warp(P, initializer=UNIFORM), ("12", "11"), "12"),
        (methods.LoRA(2), ("12", "11"), ""),
    ],
)
def test_label_words_that_the_method_does_not_know_are_refused(method, labels, other, tmp_path):
    path = str(save(tmp_path, method) / "trained_best.safetensors")
    data = dataclasses.replace(Numbers(), labels=labels)
    if not other:
        as_trained(method, data, path)
        return
    with pytest.raises(UserError, match=f"CLASS_LABELS has '{other}': .* '7', '8', '9' alone"):
        as_trained(method, data, path)


def test_targets_may_be_longer_than_in_training(tmp_path):
    path = str(save(tmp_path, methods.IA3()) / "trained_best.safetensors")
    data = dataclasses.replace(Numbers(), lengths={"inputs": 16, "targets": 9})
    assert as_trained(methods.IA3(), data, path)[1].lengths == data.lengths


@pytest.mark.parametrize(
    ("trained", "used", "message"),
    [
        (methods.LoRA(2), methods.LoRA(2, alpha=4.0), "LoRA.alpha = 16.0, not 4.0"),
        (
            methods.Warp(P, initializer=UNIFORM),
            methods.Warp(P, initializer=UNIFORM, label_ids=(9, 8, 7)),
            "Warp.label_ids = [7, 8, 9], not [9, 8, 7]",
        ),
        (
            methods.MultitaskPrompt(P),
            methods.MultitaskPrompt(P, ("b", "a")),
            "MultitaskPrompt.tasks = ['a', 'b'], not ['b', 'a']",
        ),
        (
            prompt_tuning(placement="suffix"),
            prompt_tuning(),
            "PromptTuning.placement = 'suffix', not 'prefix'",
        ),
        (
            methods.Wayward(P, text="7 8", placement=2),
            methods.Wayward(P, text="9", weight=2.0),
            "Wayward.placement = 2, not 'prefix'; use",
        ),
        (
            methods.Warp(P, placement="suffix", initializer=UNIFORM),
            methods.Warp(P, initializer=UNIFORM),
            "Warp.placement = 'suffix', not 'prefix'; use",
        ),
        (
            methods.Combined([prompt_tuning(), methods.LoRA(2, alpha=2.0)]),
            methods.Combined([prompt_tuning(), methods.LoRA(2)]),
            "methods[1].LoRA.alpha = 2.0, not 16.0",
        ),
        (methods.Adapter(2), methods.IA3(), "METHOD = 'Adapter', not 'IA3'"),
        (
            methods.PrefixTuning(P, gated=True),
            methods.PrefixTuning(P),
            "PrefixTuning.gated = True, not False",
        ),
    ],
)
def test_leaves_under_other_settings_of_the_method_are_refused(trained, used, message, tmp_path):
    path = str(save(tmp_path, trained) / "trained_best.safetensors")
    method, _ = as_trained(used, Numbers(), path)
    with pytest.raises(CheckpointError) as error:
        with_trained(tiny_model(method), path, allow_other_backbone=True)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("allowed", [False, True])
def test_other_settings_can_be_allowed(allowed, tmp_path):
    path = save(tmp_path, methods.LoRA(2)) / "trained_best.safetensors"
    tuned = tiny_model(methods.LoRA(2, alpha=4.0))
    options = {"allow_other_backbone": True, "allow_other_settings": allowed}
    if allowed:
        assert with_trained(tuned, path, **options).trained.keys() == tuned.trained.keys()
        return
    with pytest.raises(CheckpointError, match="ALLOW_OTHER_SETTINGS"):
        with_trained(tuned, path, **options)


@pytest.mark.parametrize("kind", ["trained_best.safetensors", "prompt_best.npy"])
@pytest.mark.parametrize("changed", [{}, {"labels": ("9", "8", "7")}, {"target_prefix": SENTINEL}])
def test_a_model_in_python_knows_what_its_file_was_trained_with(kind, changed, tmp_path):
    """Data of another order of labels or another sentinel are then refused, see `EvalSet`."""
    data = dataclasses.replace(Numbers(), **changed)
    path = save(tmp_path, prompt_tuning(), data) / kind

    def read(**options: bool) -> Any:
        if kind == "trained_best.safetensors":
            return with_trained(tiny_model(prompt_tuning()), path, True, **options).trained_with
        start = methods.FromFile(str(path), True)
        return _start_of(methods.Combined([methods.PromptTuning(P, "prefix", start), LORA]))

    said = dataclasses.replace(card.read(path).trained_with, vocabulary="", model={})
    assert read() == said and said.labels == data.labels
    if kind == "trained_best.safetensors":
        assert read(allow_other_settings=True) is None


LORA = methods.LoRA(2)


@pytest.mark.parametrize("placement", ["suffix", 2, "prefix"])
def test_a_prompt_that_stands_elsewhere_than_in_training(placement, tmp_path):
    path = str(save(tmp_path, prompt_tuning(placement=placement)) / "prompt_best.npy")
    start = methods.PromptTuning(P, "prefix", methods.FromFile(path, True))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        tuned = initialize(tiny_config(), start, layout=ONE)
    assert tuned.trained_with == _start_of_quietly(start)
    text = f"{path}: was trained as '{placement}', and stands as 'prefix' here"
    assert [str(each.message) for each in told] == ([] if placement == "prefix" else [text])


def _start_of_quietly(method: Method) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _start_of(method)


PAIR = ("premise", "hypothesis")


@pytest.mark.parametrize(
    ("now", "trained", "told"),
    [
        ({"files": PAIR[::-1]}, {"files": PAIR}, "error"),
        ({"files_16shot_seed3": PAIR[::-1]}, {"files": PAIR}, "error"),
        ({"files": PAIR[::-1]}, {"mail_sentinel": PAIR}, "error"),
        ({"a": PAIR, "b": PAIR[::-1]}, {"a": PAIR, "b": PAIR}, "error"),
        ({"files": ("e\u0301", "a")}, {"files": ("a", "\u00e9")}, "error"),
        ({"files": ("premise",)}, {"files": PAIR}, "warning"),
        ({"files": PAIR}, {"files": ("text",)}, "warning"),
        ({"files": ("question1", "question2")}, {"files": PAIR}, "warning"),
        ({"files": (*PAIR, "idx")}, {"files": PAIR}, "warning"),
        ({"files": PAIR}, {"files": PAIR}, ""),
        ({"files": ("sentence",)}, {"files": ("text",)}, ""),
        ({"files": ("e\u0301", "a")}, {"files": ("\u00e9", "a")}, ""),
        ({"a": PAIR, "b": PAIR[::-1]}, {"a": PAIR, "b": PAIR[::-1]}, ""),
        ({"c": PAIR}, {"a": PAIR, "b": PAIR[::-1]}, ""),  # of no task of the training
        ({"files": PAIR}, {}, ""),
        ({}, {"files": PAIR}, ""),
    ],
)
def test_inputs_are_joined_as_in_training(now, trained, told):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if told == "error":
            with pytest.raises(UserError, match=r"^TEXT_FIELD = \[.* p\.npy was trained on \["):
                check_text_fields(now, trained, "p.npy")
            return
        check_text_fields(now, trained, "p.npy")
    assert len(caught) == (told == "warning")


def test_the_card_has_the_fields_of_the_text(tmp_path):
    def data(*fields: str) -> TaskData:
        file = tmp_path / "rows.csv"
        file.write_text("premise,hypothesis,label\na,b,negative\n")
        return source.task_data(
            task=None,
            files=TextFiles(str(file), str(file), text_field=fields, labels=LABELS[:2]),
            vocabulary=tasks.vocabulary(embedded.vocabulary()),
            lengths={"inputs": 16, "targets": 6},
            batch_size=1,
            few_shot=None,
        )

    with clean_registries():
        path = str(save(tmp_path, prompt_tuning(), data(*PAIR), CONFIG) / "prompt_best.npy")
        assert card.read(path).trained_with.text_fields == {"files": PAIR}
        method = methods.PromptTuning(P, "prefix", methods.FromFile(path))
        as_trained(method, data(*PAIR))
        other = data(*PAIR[::-1])
        with pytest.raises(UserError, match="in this order; give them so, or set ALLOW_OTHER"):
            as_trained(method, other)
        assert as_trained(method, other, allow_other_settings=True) == (method, other)
        with pytest.raises(UserError, match="in this order"):
            ensemble._as_trained(other, [path])
        without = json.loads(card.path_of(path).read_text())
        del without["trained_with"]["text_fields"]
        card.path_of(path).write_text(json.dumps(without))
        as_trained(method, other)


@pytest.mark.parametrize("trained", ["suffix", "suffix_before_eos", 2, "prefix"])
@pytest.mark.parametrize("used", ["prefix", "suffix", 2])
@pytest.mark.parametrize("part", [False, True])
def test_a_prompt_is_measured_where_it_was_trained(trained, used, part, tmp_path):
    path = str(save(tmp_path, prompt_tuning(placement=trained)) / "prompt_best.npy")
    method: Method = methods.PromptTuning(P, used, methods.FromFile(path))
    if part:
        method = methods.Combined([method, methods.PromptDesign()])
    if trained == used:
        assert as_trained(method, Numbers(), "")[0] == method
        return
    with pytest.raises(UserError) as error:
        as_trained(method, Numbers(), "")
    assert f"PROMPT_PLACEMENT = {used!r}: {path} was trained as {trained!r}; set" in str(
        error.value
    )
    assert as_trained(method, Numbers(), "", allow_other_settings=True)[0] == method


@pytest.mark.parametrize(
    ("method", "files"),
    [
        (prompt_tuning(), {"prompt"}),
        (methods.PTuning(P), {"prompt"}),
        (methods.Wayward(P, text="7"), {"prompt"}),
        (methods.MultitaskPrompt(P), {"prompt_a", "prompt_b"}),
        (prompt_tuning(decoder_length=2), set()),
        (methods.PromptTuning(0, decoder_length=2), set()),
        (methods.Wayward(P, text="7", decoder_length=1), set()),
        (methods.Combined([prompt_tuning(), methods.LoRA(2)]), set()),
        (methods.Combined([methods.PTuning(P), methods.BitFit()]), set()),
        (methods.Warp(P), set()),
    ],
)
def test_only_what_stands_alone_is_exported(method, files, tmp_path):
    save(tmp_path, method)
    assert {path.name for path in tmp_path.glob("*.npy")} == {f"{name}_best.npy" for name in files}
    assert (tmp_path / "trained_best.safetensors").exists()


def without_news(folder: Path) -> Path:
    """Turns the cards of a folder into those of an earlier version."""
    for path in folder.glob("*.card.json"):
        fields = json.loads(path.read_text())
        del fields["trained_with"]
        path.write_text(json.dumps(fields))
    return folder


@pytest.mark.parametrize("kind", ["trained_best.safetensors", "prompt_best.npy"])
def test_a_card_of_an_earlier_version_is_taken_with_a_warning(kind, tmp_path):
    path = str(without_news(save(tmp_path, prompt_tuning())) / kind)
    data = dataclasses.replace(Numbers(), lengths={"inputs": 8, "targets": 4})
    method, trained_file = prompt_tuning(), path
    if kind == "prompt_best.npy":
        method, trained_file = methods.PromptTuning(P, "prefix", methods.FromFile(path)), ""
    with pytest.warns(UserWarning, match="of an earlier version") as warned:
        assert as_trained(method, data, trained_file) == (method, data)
    assert len(warned) == 1 and "\n" not in str(warned[0].message)
    if kind == "prompt_best.npy":
        with pytest.warns(UserWarning, match="of an earlier version"):
            assert prompt_folder.trained_with([path], "task 't'") is None


@pytest.fixture(scope="module")
def backbone_file(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("backbone") / "backbone.safetensors"
    shapes = ParamSplit.of(CONFIG, methods.ModelTuning()).shapes
    backbone.save(path, random_leaves(shapes), "float32")
    return str(path)


def texts(folder: Path, labels=LABELS, inputs: int = 16, **settings: Any) -> TaskData:
    file = folder / "test.jsonl"
    rows = [{"text": f"film number {i} of many", "label": LABELS[i % 3]} for i in range(12)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return source.task_data(
        task=None,
        files=TextFiles(test=str(file), labels=labels),
        vocabulary=tasks.vocabulary(embedded.vocabulary()),
        lengths={"inputs": inputs, "targets": 6},
        batch_size=12,
        **settings,
    )


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def run(backbone_file, tmp_path):
    """Runs `eval` or `infer` with a file, and returns the lines that it wrote."""

    def run(command: Any, method: Method, data: TaskData, **settings: Any) -> list[dict]:
        output = tmp_path / f"output_{len(list(tmp_path.iterdir()))}"
        options = {"eval_methods": ["rank"]} if command is evaluate else {"mode": "rank"}
        command(
            output_dir=str(output),
            config=CONFIG,
            method=method,
            layout=ONE,
            data=data,
            initial_checkpoint=backbone_file,
            allow_other_backbone=True,
            **{**options, **settings},
        )
        [path] = output.glob("*.jsonl")
        return lines(path)

    with clean_registries():
        yield run


def test_label_words_in_another_order_give_the_same_scores(run, tmp_path):
    warp = methods.Warp(P, initializer=UNIFORM)
    data = texts(tmp_path)
    path = str(save(tmp_path, warp, data, CONFIG) / "trained_best.safetensors")
    expected = run(infer, warp, data, trained_file=path)
    other = run(infer, warp, texts(tmp_path, LABELS[::-1]), trained_file=path)
    for line, again in zip(expected, other, strict=True):
        assert list(again["scores"]) == list(line["scores"])[::-1]
        assert again["scores"] == pytest.approx(line["scores"])
        assert again["prediction"] == line["prediction"]


@pytest.mark.filterwarnings("ignore:texts of more tokens")
@pytest.mark.parametrize("allowed", [False, True])
def test_an_ensemble_cuts_as_in_training(allowed, backbone_file, tmp_path, capsys):
    with clean_registries():
        trained = texts(tmp_path, inputs=4)
        path = str(save(tmp_path, prompt_tuning(), trained, CONFIG) / "prompt_best.npy")
        other = str(tmp_path / "other.npy")  # of another task
        if allowed:
            prompts.save(other, np.load(path) + 1)
            of_other = dataclasses.replace(card.read(path).trained_with, tasks=("mail",))
            about = dataclasses.replace(card.read(path), trained_with=of_other)
            card.save(other, about, np.load(other))
        ensemble.evaluate(
            output_dir=str(tmp_path / "output"),
            config=CONFIG,
            layout=ONE,
            data=texts(tmp_path, inputs=32),
            vocabulary=embedded.vocabulary(),
            initial_checkpoint=backbone_file,
            prompt_files=[path, other] if allowed else [path],
            allow_other_backbone=True,
            allow_other_settings=allowed,
        )
    cut = "the length of the training cuts 12 of 12 inputs (100 %) to 4 tokens"
    assert (cut in capsys.readouterr().out) != allowed


def test_a_sentinel_is_known_wherever_a_prompt_answers(run, backbone_file, tmp_path):
    """The scores are those of words with the sentinel, under the names of the plain words."""
    data = texts(tmp_path, sentinel_targets=True)
    path = str(save(tmp_path, prompt_tuning(), data, CONFIG) / "prompt_best.npy")
    method = methods.PromptTuning(P, "prefix", methods.FromFile(path, True))
    expected = run(evaluate, method, data)
    assert [*expected[0]["scores"]] == list(LABELS) and SENTINEL not in str(expected)
    plain = texts(tmp_path)
    assert run(evaluate, method, plain, allow_other_settings=True) != expected
    assert run(evaluate, method, plain) == expected
    inferred = run(infer, method, texts(tmp_path, inputs=32))
    assert [line["scores"] for line in inferred] == [line["scores"] for line in expected]
    model = prompt_tuning_package.load(
        CONFIG, backbone_file, embedded.vocabulary(), layout=ONE, allow_other_backbone=True
    )
    model.add_task("t", path, LABELS)
    served = model.classify([line["input"] for line in expected], "t")
    for line, answer in zip(expected, served, strict=True):
        odds = np.exp([line["scores"][word] for word in LABELS])
        probabilities = dict(zip(LABELS, odds / odds.sum(), strict=True))
        assert answer.probabilities == pytest.approx(probabilities, rel=1e-4)


def test_a_sentinel_that_the_training_did_not_have_is_refused(tmp_path):
    path = str(save(tmp_path, methods.IA3()) / "trained_best.safetensors")
    data = dataclasses.replace(Numbers(), target_prefix=SENTINEL)
    with pytest.raises(UserError, match=r"SENTINEL_TARGETS = True: .* was trained without"):
        as_trained(methods.IA3(), data, path)


@pytest.mark.parametrize(
    "method",
    [
        methods.Combined([prompt_tuning(), methods.LoRA(2)]),
        prompt_tuning(decoder_length=2),
        methods.PromptTuning(0, decoder_length=2),
        methods.Warp(P),
        methods.LoRA(2),
    ],
)
def test_a_prompt_file_alone_is_not_taken_for_the_rest_of_a_method(method):
    with pytest.raises(UserError, match=r"PROMPT_FILE = 'p.npy': .* give TRAINED_FILE"):
        with_prompt(method, "p.npy")
    assert with_prompt(method, "", "trained_best.safetensors") == method


def test_two_files_for_one_prompt():
    with pytest.raises(UserError, match=r"PROMPT_FILE = 'p.npy', TRAINED_FILE = .* give one"):
        with_prompt(methods.PromptTuning(3), "p.npy", "trained_best.safetensors")


def nudged(path: Path, amount: float) -> Path:
    """Makes the prompt at a path another one, with its card."""
    about, prompt = card.read(path), np.load(path) + np.float32(amount)
    prompts.save(path, prompt)
    card.save(path, about, prompt)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, ""),
        ({"fingerprint": "f" * 16}, "the backbone 'ffffffffffffffff', .* with '0000000000000000'"),
        ({"placement": "suffix"}, "the placement 'suffix', .* with 'prefix'"),
        ({"placement": ""}, ""),
        ({"fingerprint": ""}, ""),
    ],
)
def test_only_prompts_that_are_alike_are_compared_and_averaged(change, message, tmp_path):
    target = save(tmp_path / "a", prompt_tuning()) / "prompt_best.npy"
    other = nudged(save(tmp_path / "b", prompt_tuning()) / "prompt_best.npy", 0.01)
    card.save(other, dataclasses.replace(card.read(other), **change))
    output = tmp_path / "average.npy"
    arguments = (f"--prompt={target}", f"--sources={other}", "--top_k=1", f"--output={output}")
    result = run_command("prompt_tuning.transfer", *arguments)
    if message:
        assert re.search(f"{other}: was trained with {message}", result.err)
        with pytest.raises(UserError, match=f"{other}: was trained with {message}"):
            similarity.compare({"a": str(target), "b": str(other)}, "average")
        assert (result.status, output.exists()) == (2, False)
        return
    assert result.status == 0, result.err
    average = card.read(output)
    assert (average.task, average.steps) == ("mixture", 0)
    assert average.placement == change.get("placement", "prefix")


def test_a_prompt_counts_once_in_an_average(tmp_path):
    """A run writes each prompt in two formats; copies are the same prompt too."""
    target, other, third = (
        nudged(save(tmp_path / name, prompt_tuning()) / "prompt_best.npy", ord(name) / 9)
        for name in "abc"
    )
    for path in (target, other):
        prompts.save(path.with_suffix(".safetensors"), np.load(path))
    prompts.save(tmp_path / "copy.npy", np.load(other))
    folders = ",".join(str(path) for path in (target.parent, other.parent, tmp_path / "copy.npy"))
    for path in (target.parent, other.parent):
        (path / "trained_best.safetensors").unlink()
    flags = (f"--prompt={target}", "--top_k=2", f"--output={tmp_path / 'average.npy'}")
    result = run_command("prompt_tuning.transfer", *flags, f"--sources={folders},{third}")
    assert result.status == 0, result.err
    told = [line for line in result.out.splitlines() if line.endswith("and counts once")]
    twice = [str(other.with_suffix(".safetensors")), str(tmp_path / "copy.npy")]
    assert [line.split(":")[0] for line in told] == twice
    rows = [line.split() for line in result.out.splitlines() if line.startswith(" ")]
    assert sorted(row[2] for row in rows) == sorted(map(str, (other, third)))
    alone = run_command("prompt_tuning.transfer", *flags, f"--sources={target.parent}")
    assert_mistake(alone, "only the prompt itself; add others")


@pytest.mark.parametrize("placement", ["suffix", "suffix_before_eos", 2, "prefix"])
@pytest.mark.parametrize("kind", ["prompt_best.npy", "trained_best.safetensors"])
def test_other_formats_take_prefixes_alone(placement, kind, tmp_path):
    path = str(save(tmp_path, prompt_tuning(placement=placement)) / kind)
    if placement == "prefix":
        assert len(adapters.read(path).prompt) == P
        return
    with pytest.raises(UserError, match=f"was trained as '{placement}'; only 'prefix'"):
        adapters.read(path)


def test_another_alpha_of_lora_is_not_written(tmp_path):
    path = str(save(tmp_path, methods.LoRA(2, alpha=4.0)) / "trained_best.safetensors")
    with pytest.raises(UserError, match=r"--lora_alpha=16.0: .* was trained with 4.0; give that"):
        adapters.read(path, lora_alpha=16.0)
    assert adapters.read(path, lora_alpha=4).method == methods.LoRA(2, 4.0, layers=None)


def test_a_recycled_prompt_keeps_what_it_was_trained_with(tmp_path):
    path = save(tmp_path, prompt_tuning(placement="suffix")) / "prompt_best.npy"
    source = str(tmp_path / "backbone.safetensors")
    backbone.save(source, random_leaves(ParamSplit.of(tiny_config(), methods.ModelTuning()).shapes))
    output = str(tmp_path / "recycled.npy")
    with pytest.warns(UserWarning, match=f"--source={source}: {path} was trained on a_backbone"):
        recycling.recycle(str(path), source, source, output, skip=0, tokens=60)
    card.check(output, lambda: 1 / 0)  # the backbone is not known by its fingerprint
    with pytest.raises(UserError, match="was trained as 'suffix'"):
        prompt_folder.read(output)
    said = card.read(path).trained_with
    assert card.read(output).trained_with == dataclasses.replace(said, model={})
    card.save(path, None)
    recycling.recycle(str(path), source, source, output, skip=0, tokens=60)
    assert card.read(output) is None  # not that of the prompt that was there before


@pytest.mark.parametrize(
    ("method", "kind", "form", "output", "alpha"),
    [
        ("prompt", "prompt_best.npy", "prompt", "other.npy", None),
        ("prompt", "prompt_best.safetensors", "peft", "adapter", None),
        ("prompt", "trained_best.safetensors", "prompt", "other.safetensors", None),
        ("prompt", "prompt_best.npy", "trained", "other.safetensors", None),
        ("lora", "trained_best.safetensors", "peft", "adapter", 4.0),
        ("lora", "trained_best.safetensors", "trained", "other.safetensors", 4.0),
    ],
)
def test_other_formats_keep_the_card(method, kind, form, output, alpha, tmp_path):
    trained = {"prompt": prompt_tuning(), "lora": methods.LoRA(2, alpha=4.0)}[method]
    data = Numbers(target_prefix="5")
    path, other = save(tmp_path / "run", trained, data) / kind, tmp_path / output
    adapters.write(str(other), form, adapters.read(str(path), lora_alpha=alpha))
    found, expected = card.read(other), card.read(path)
    length = P if method == "prompt" and form != "trained" else 0
    same = length == expected.length  # else it is the same prompt by another name
    checksum = expected.checksum if same else found.checksum
    assert found == dataclasses.replace(expected, length=length, checksum=checksum)
    assert found.trained_with.target_prefix == "5"
    if form == "peft":
        assert adapters.read(str(other)).card == found
        return
    card.save(path, None)
    adapters.write(str(other), form, adapters.read(str(path), lora_alpha=alpha))
    # Not that of the file that was there before; alpha and the layers are known.
    left = card.read(other)
    said = left and (left.task, left.trained_with.settings)
    known = {"LoRA.alpha": 4.0, "LoRA.layers": [0, 1]}
    assert said == (("", known) if method == "lora" else None)


def test_an_average_is_of_one_target_prefix_and_the_longest_inputs(tmp_path, capsys):
    def prompt(name: str, **changes: Any) -> str:
        path = save(tmp_path / name, prompt_tuning(), Numbers(**changes)) / "prompt_best.npy"
        return str(nudged(path, 0.01 * ord(name)))

    target = prompt("a")
    sources = [prompt("b"), prompt("c", lengths={"inputs": 32, "targets": 2})]
    output = tmp_path / "average.npy"

    def average(*paths: str) -> CommandResult:
        return run_command(
            "prompt_tuning.transfer",
            *(f"--prompt={target}", f"--sources={','.join(paths)}"),
            *(f"--top_k={len(paths)}", f"--output={output}"),
        )

    assert average(*sources).status == 0
    assert card.read(output).trained_with.lengths == {"inputs": 32, "targets": 4}
    for name, labels in (("e", ("9", "8", "7")), ("f", ()), ("g", ("7", "1")), ("h", ("2",))):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            assert average(prompt("b"), prompt(name, labels=labels, tasks=(name,))).status == 0
        assert ("was trained on the label words" in "".join(map(str, told))) == (name in "gh")
        trained_with = card.read(output).trained_with
        assert trained_with.labels == tuple(dict.fromkeys(("7", "8", "9", *labels)))
        assert trained_with.tasks == ("a", "b", name)
    output.unlink()
    assert_mistake(average(*sources, prompt("d", target_prefix="5")), "target prefix")
    assert not output.exists()


@pytest.mark.parametrize("kind", ["prompt_best.npy", "trained_best.safetensors"])
def test_leaves_of_another_run_beside_a_card(kind, run, tmp_path):
    data = texts(tmp_path)
    path = save(tmp_path, prompt_tuning(), data, CONFIG) / kind
    leaves = safetensors_file.stored(tmp_path / "trained_best.safetensors")
    [[name, leaf]] = leaves.items()
    if kind.startswith("trained"):
        trained.save(path, {name: np.asarray(leaf) + 1})
        method, file = prompt_tuning(), {"trained_file": str(path)}
    else:
        prompts.save(path, np.asarray(leaf) + 1)
        method, file = methods.PromptTuning(P, "prefix", methods.FromFile(str(path), True)), {}
    for read in (lambda: adapters.read(str(path)), lambda: run(infer, method, data, **file)):
        with pytest.raises(CheckpointError, match=f"{path}: has other values than those that"):
            read()


@pytest.mark.parametrize(
    ("labels", "by_number", "is_refused"),
    [
        (("9", "8", "7"), True, True),
        (("8", "7"), True, True),
        (("7", "9", "8"), True, True),
        (("7", "8", "9"), True, False),
        (("7", "9"), True, False),  # fewer words, in the order of the training
        (("9", "8", "7"), False, False),  # words are not ambiguous
    ],
)
def test_numbers_are_refused_as_labels_in_another_order(labels, by_number, is_refused, tmp_path):
    path = str(save(tmp_path, methods.LoRA(2)) / "trained_best.safetensors")
    numbers = {"files": labels} if by_number else {}
    data = dataclasses.replace(Numbers(), labels=labels, labels_by_number=numbers)
    with (
        contextlib.nullcontext()
        if not is_refused
        else pytest.raises(
            UserError, match=r"was trained on \['7', '8', '9'\], and the files of 'files'"
        )
    ):
        as_trained(methods.LoRA(2), data, path)
    as_trained(methods.LoRA(2), data, path, allow_other_settings=True)


@pytest.mark.parametrize(
    ("rows", "by_number"),
    [
        ('{"text": "x", "label": 1}', True),
        ('{"text": "x", "label": "1"}', True),
        ('{"text": "x", "label": "bad"}', False),
    ],
)
def test_files_say_whether_labels_are_numbers(rows, by_number, tmp_path):
    (tmp_path / "test.jsonl").write_text(rows.replace("1", "0") + "\n" + rows)
    (tmp_path / "validation.jsonl").write_text('{"text": "x", "label": "fine"}')
    with clean_registries():
        data = source.task_data(
            task=None,
            files=TextFiles(
                validation=str(tmp_path / "validation.jsonl"),
                test=str(tmp_path / "test.jsonl"),
                labels=("fine", "bad"),
            ),
            vocabulary=tasks.vocabulary(embedded.vocabulary()),
            lengths={"inputs": 8, "targets": 8},
            batch_size=1,
        )
        assert data.labels_by_number == ({"files": ("fine", "bad")} if by_number else {})
        assert data.vocabulary_fingerprint == read_vocabulary(embedded.vocabulary()).fingerprint


def test_another_vocabulary_is_refused(tmp_path):
    """By a model that serves, and by commands before they load a backbone."""
    data = dataclasses.replace(Numbers(), vocabulary_fingerprint="0f" * 8)
    folder = save(tmp_path, prompt_tuning(), data)
    other = dataclasses.replace(data, vocabulary_fingerprint="f0" * 8)
    load = functools.partial(loading.load, tiny_config(), layout=ONE, checkpoint="none", seed=0)
    for method, file in (
        (prompt_tuning(), str(folder / "trained_best.safetensors")),
        (
            methods.PromptTuning(P, initializer=methods.FromFile(str(folder / "prompt_best.npy"))),
            "",
        ),
    ):
        with pytest.raises(CheckpointError, match=r"with the vocabulary 0f.*, but this one is f0"):
            load(method, other, trained_file=file)
    tuned = tiny_model(Method())
    words = SimpleNamespace(encode=other.encode, decode=str, fingerprint="f0" * 8)
    model = serving.Model(tiny_config(), tuned.frozen, words, ONE)
    said = card.read(folder / "prompt_best.npy").trained_with
    with pytest.raises(CheckpointError, match=r"with the vocabulary 0f.*, but this one is f0"):
        model.add_task("a", np.ones((P, 16), np.float32), trained_with=said)
    words.fingerprint = "0f" * 8
    model.add_task("a", np.ones((P, 16), np.float32), trained_with=said)
