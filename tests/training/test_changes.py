"""A run does not resume with other settings, and is not shared, in silence."""

import contextvars
import dataclasses
import functools
import itertools
import re
import threading
import warnings
from collections.abc import Iterator

import jax
import numpy as np
import optax
import pytest
from etils import epath

from prompt_tuning import methods
from prompt_tuning.checkpoint import prompts
from prompt_tuning.errors import CheckpointError, UserError
from prompt_tuning.evaluation.predict import generate, rank_labels
from prompt_tuning.evaluation.sets import EvalSet
from prompt_tuning.methods.base import Backbone
from prompt_tuning.methods.prompt import PROMPT_PATH
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.runtime.lock import only_run
from prompt_tuning.testing import random_batch, tiny_config, tiny_gemma, tiny_model
from prompt_tuning.training import loop, run_settings
from prompt_tuning.training.loss import Loss
from prompt_tuning.training.optim import adafactor
from prompt_tuning.transformer.paths import EMBEDDING, flatten, unflatten

METHOD = methods.PromptTuning(2)
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*which this run does not name", "ignore:.*OPTIMIZER is a function of your own"
)


def batches_of(size: int, packed: bool = False):
    """Batches whose first token says which example a row is."""

    def batches(start: int) -> Iterator[dict[str, np.ndarray]]:
        for step in range(start, 100):
            batch = random_batch(step, batch=size)
            batch["encoder_input_tokens"][:, 0] = 3 + np.arange(step * size, (step + 1) * size) % 60
            yield batch

    return batches


def renamed(rate):
    """An optimizer of the same name, as gin makes of one that it configures."""
    return adafactor(rate, decay_rate=0.5, pretrained_steps=0)


renamed.__name__ = "adafactor"


def fit(folder, steps: int = 2, size: int = 4, method=METHOD, config=None, **settings):
    tuned = tiny_model(method, config)
    batches = settings.pop("batches", batches_of(size))
    return loop.fit(tuned, model_dir=folder, total_steps=steps, batches=batches, **settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    of_data = {"RANDOM_SEED (data)": 0, "CLASS_LABELS": ["a", "b"], "VOCABULARY_FILE": "0f"}
    fit(folder, settings=of_data)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.1}, "LEARNING_RATE = 0.3, now 0.1"),
        ({"learning_rate": optax.linear_schedule(0.3, 0.0, 50)}, "LEARNING_RATE = 0.3, now [0.3"),
        ({"size": 8}, "BATCH_SIZE = 4, now 8"),
        ({"seed": 1}, "RANDOM_SEED (dropout) = 0, now 1"),
        ({"settings": {"RANDOM_SEED (data)": 3}}, "RANDOM_SEED (data) = 0, now 3"),
        ({"settings": {"CLASS_LABELS": ["b", "a"]}}, 'CLASS_LABELS = ["a", "b"], now ["b", "a"]'),
        ({"settings": {"VOCABULARY_FILE": "f0"}}, "VOCABULARY_FILE = 0f, now f0; resume"),
        (
            {"config": tiny_config(relative_max_distance=64)},
            "backbone, relative_max_distance = 128, now 64; resume",
        ),
        (
            {"config": tiny_config(activations=("relu", "linear"))},
            'backbone, activations = ["gelu", "linear"], now ["relu", "linear"]; resume',
        ),
        ({"optimizer": optax.sgd}, "OPTIMIZER = adafactor, now sgd; resume"),
        (
            {"optimizer": functools.partial(adafactor, weight_decay_rate=0.1)},
            "OPTIMIZER = adafactor, now adafactor(weight_decay_rate=0.1); resume",
        ),
        (
            {"optimizer": renamed},
            "OPTIMIZER = adafactor, now adafactor with other hyperparameters; compare config.gin",
        ),
        ({"optimizer": lambda rate: optax.adam(rate)}, "OPTIMIZER = adafactor, now <lambda>"),
        ({"loss": Loss(z_loss=0.1)}, "Loss.z_loss = 0.0001, now 0.1"),
        ({"config": tiny_config(dropout_rate=0.2)}, "DROPOUT_RATE = 0.0, now 0.2"),
        ({"config": tiny_config(frozen_dtype="int8")}, "BACKBONE_DTYPE = float32, now int8"),
        (
            {"method": methods.PromptTuning(2, initializer=methods.Uniform())},
            "PromptTuning.initializer = ",
        ),
        (
            {"learning_rate": 0.1, "size": 2},
            "LEARNING_RATE = 0.3, now 0.1; BATCH_SIZE = 4, now 2; resume",
        ),
    ],
)
@pytest.mark.parametrize("steps", [2, 4], ids=["finished", "unfinished"])
def test_changed_settings_are_listed_and_refused(change, message, steps, folder):
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(CheckpointError) as error:
        fit(folder, steps, **change)
    assert f"this run was trained with {message}" in str(error.value)
    assert "RESUME_WITH_CHANGES" in str(error.value) and "\n" not in str(error.value)
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"logit_cap": None}, "logit_cap"),
        ({"start_token": 0}, "start_token"),
        ({"encoder": dataclasses.replace(tiny_gemma().encoder, window=8)}, "encoder.window"),
        (
            {"decoder": dataclasses.replace(tiny_gemma().decoder, rope_base=1e6)},
            "decoder.rope_base",
        ),
    ],
)
def test_another_configuration_of_the_same_shapes_is_listed(change, field, monkeypatch):
    monkeypatch.setattr(run_settings, "_response", lambda *_: [])  # which compiles
    saved, current = (
        run_settings.of_training(gemma, 0.3, optax.sgd, Loss(), 0)
        for gemma in (tiny_model(METHOD, tiny_gemma(**each)) for each in ({}, change))
    )
    [listed] = run_settings.changes(saved, current)
    assert re.fullmatch(f"backbone, {field} = .*, now .*", listed)


def initialised(folder, kind: str, labels=("7", "8"), seed: int = 0):
    """A model whose prompt starts from label words, at random or from `start.npy` in a folder."""
    initializer = {
        "labels": methods.ClassLabels(),
        "random": methods.Uniform(),
        "file": methods.FromFile(str(folder / "start.npy")),
    }[kind]
    method = methods.PromptTuning(2, initializer=initializer)
    tuned = tiny_model(method)  # as `initialize` makes, which compiles each time
    table = flatten(tuned.frozen)[EMBEDDING]
    values = method.initial_values(Backbone(table, lambda text: [int(text)], labels), seed)
    return dataclasses.replace(
        tuned, trained=unflatten({path: jax.numpy.array(value) for path, value in values.items()})
    )


@pytest.mark.parametrize(
    ("kind", "change", "told"),
    [
        ("labels", {"labels": ("8", "7")}, "other initial values"),
        ("labels", {"labels": ("7", "9")}, "other initial values"),
        ("random", {"seed": 1}, "other initial values"),
        ("file", {"content": np.zeros((2, 16))}, r"content of \S*start.npy = .*; other initial"),
        ("file", {"content": 1 + np.eye(2, 16)}, r"content of \S*start.npy = .*; other initial"),
        ("file", {"labels": ("8", "7"), "seed": 1}, ""),  # which do not matter to it
        ("random", {"labels": ("8", "7")}, ""),
        ("labels", {}, ""),
    ],
)
def test_initial_values_of_another_seed_label_words_or_content(kind, change, told, tmp_path):
    def described(content=np.ones((2, 16)), **change) -> dict:
        prompts.save(tmp_path / "start.npy", content)
        tuned = initialised(tmp_path, kind, **change)
        of_method = run_settings.of_method(tuned)
        # A run that is skipped as finished is compared without its leaves.
        outline = dataclasses.replace(tuned, trained=jax.eval_shape(lambda: tuned.trained))
        assert run_settings.changes(of_method, run_settings.of_method(outline)) == []
        return of_method

    changes = "; ".join(run_settings.changes(described(), described(**change)))
    assert re.search(told, changes) and bool(told) == bool(changes)


def test_the_model_that_a_run_returned_continues_it(tmp_path, capsys):
    def fit(tuned, steps: int):
        return loop.fit(tuned, model_dir=tmp_path / "run", total_steps=steps, batches=batches_of(4))

    tuned = fit(initialised(tmp_path, "random"), 1)
    assert "nothing is left to train" not in capsys.readouterr().out
    again = fit(tuned, 1)
    np.testing.assert_array_equal(*(flatten(each.trained)[PROMPT_PATH] for each in (tuned, again)))
    assert "all 1 steps are taken: nothing is left to train" in capsys.readouterr().out
    fit(tuned, 2)
    with pytest.raises(CheckpointError, match="was trained with other initial values"):
        fit(initialised(tmp_path, "random", seed=1), 2)
    fit(initialised(tmp_path, "random"), 2)  # the first values are still known


_VALUES = np.random.default_rng(0).normal(size=(2, 20, 64)).astype(np.float32)


@pytest.mark.parametrize(
    ("other", "alike"),
    [
        (_VALUES, True),
        (_VALUES * (1 + 1e-6), True),
        (np.random.default_rng(1).normal(size=_VALUES.shape), False),
        (_VALUES[::-1], False),
        (np.roll(_VALUES, 1, axis=1), False),
        (np.where(np.arange(20)[:, None] == 7, 0, _VALUES), False),
        (_VALUES * 1.01, False),
        (_VALUES * 0, False),
    ],
)
def test_initial_values_are_compared_by_a_few_numbers(other, alike):
    split = ParamSplit({}, frozenset("ab"), frozenset("abc"))

    def described(values) -> list:
        return run_settings.initial_values(split, {"a": values[0], "b": values[1], "c": values})

    assert len(described(_VALUES)) == 2  # c is the backbone's
    assert run_settings.are_alike(described(_VALUES), described(other)) == alike
    assert not run_settings.are_alike(described(_VALUES)[:1], described(_VALUES))


class Data:
    """Stands for `TaskData`."""

    def __init__(self, **settings: object) -> None:
        self.settings = {"BATCH_SIZE": 4, **settings}

    def train_batches(self, start: int, multiple: int = 1) -> Iterator[dict[str, np.ndarray]]:
        return batches_of(4)(start)


@pytest.mark.parametrize(
    ("settings", "message", "wrapped"),
    [
        ({"RANDOM_SEED (data)": 3}, "RANDOM_SEED (data) = 0, now 3", True),
        ({"training examples": "b"}, "training examples = a, now b", False),
    ],
)
def test_fit_knows_the_settings_of_its_data(settings, message, wrapped, tmp_path):
    def steps(count: int, **changes: object) -> None:
        data = Data(**{"RANDOM_SEED (data)": 0, "training examples": "a", **changes})
        batches = data.train_batches
        fit(tmp_path, count, batches=functools.partial(batches, multiple=2) if wrapped else batches)

    steps(1)
    steps(1)
    with pytest.raises(CheckpointError, match=f"this run was trained with {re.escape(message)}"):
        steps(2, **settings)


@pytest.mark.parametrize(
    "change",
    [{"log_period": 1}, {"checkpoint_period": 1}, {"eval_period": 3}, {"num_microbatches": 2}],
)
def test_what_does_not_change_a_result_may_change(change, folder, tmp_path):
    fit(tmp_path)
    fit(tmp_path, 3, **change)


def test_an_optimizer_is_compared_by_what_it_does():
    tuned = tiny_model(METHOD)

    def described(optimizer) -> dict:
        return run_settings.of_training(tuned, 0.3, optimizer, Loss(), 0)

    plain = described(adafactor)
    given = described(functools.partial(adafactor, decay_rate=0.8))
    earlier = given | {"OPTIMIZER": ["", *given["OPTIMIZER"][1:]]}
    assert run_settings.changes(plain, given) == run_settings.changes(earlier, given) == []
    slow = described(functools.partial(adafactor, momentum=0.5))
    assert run_settings.changes(given, slow) == [
        "OPTIMIZER = adafactor(decay_rate=0.8), now adafactor(momentum=0.5)"
    ]
    assert run_settings.changes(earlier, slow) == [
        "OPTIMIZER = a function, now adafactor(momentum=0.5)"
    ]


def test_settings_are_the_same_in_another_process():
    """Functions by their values, not their addresses; numbers within the arithmetic's error."""
    tuned = tiny_model(METHOD)

    def described(scale: float = 1.0) -> dict:
        rate = optax.linear_schedule(0.3 * scale, 0.0, 50)
        return run_settings.of_training(tuned, rate, lambda rate: adafactor(rate), Loss(), 0)

    assert run_settings.changes(described(), described(1 + 1e-6)) == []
    assert len(run_settings.changes(described(), described(1.01))) == 1
    assert not any(" at 0x" in str(value) for value in described().values())


@pytest.mark.parametrize(("size", "first"), [(8, 8), (2, 8), (3, 9), (5, 10)])
def test_the_place_in_the_data_is_kept_in_examples(size, first, tmp_path):
    """Two batches of four are passed; the next one begins at the first whole batch after them."""
    fit(tmp_path)
    seen = []

    def recorded(start: int) -> Iterator[dict[str, np.ndarray]]:
        for batch in batches_of(size)(start):
            seen.append(int(batch["encoder_input_tokens"][0, 0]) - 3)
            yield batch

    trained = []

    class Watched(loop._Loop):
        def _take_step(self, step: int) -> None:
            self._batches = (pair for pair in [next(self._batches)])
            pair = next(self._batches)
            trained.append(int(pair[0]["encoder_input_tokens"][0, 0]) - 3)
            self._batches = (pair for pair in [pair])
            super()._take_step(step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_Loop", Watched)
        fit(tmp_path, 3, batches=recorded, resume_with_changes=True)
    assert trained == [first]


def test_a_checkpoint_without_settings_is_a_warning(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        save = loop.RunCheckpoints.save
        patch.setattr(
            loop.RunCheckpoints, "save", lambda self, *a, about=None, **k: save(self, *a, **k)
        )
        fit(tmp_path)
    with pytest.warns(UserWarning, match="of an earlier version") as warned:
        fit(tmp_path, 3, learning_rate=0.1)
    assert len(warned) == 1 and "\n" not in str(warned[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fit(tmp_path, 4, learning_rate=0.1)


def test_changes_that_were_asked_for_are_kept(tmp_path):
    fit(tmp_path)
    fit(tmp_path, 3, learning_rate=0.1, resume_with_changes=True)
    fit(tmp_path, 4, learning_rate=0.1)
    actual = loop.RunCheckpoints(tmp_path).about
    assert actual["changes"] == ["from step 2: LEARNING_RATE = 0.3, now 0.1"]
    assert actual["examples"] == 16
    with pytest.raises(CheckpointError, match=r"LEARNING_RATE = 0\.1, now 0\.3"):
        fit(tmp_path, 5)


def test_fit_refuses_fewer_steps_than_the_run_has(folder):
    with pytest.raises(UserError, match=r"TRAIN_STEPS = 1: .* is already at step 2"):
        fit(folder, 1, resume_with_changes=True)


def test_a_packed_row_holds_several_examples():
    segments = np.array([[1, 1, 2, 0], [1, 2, 3, 3], [0, 0, 0, 0]])
    batch = {"encoder_input_tokens": segments, "decoder_segment_ids": segments}
    assert loop.examples_in(batch) == 5
    assert loop.examples_in({"encoder_input_tokens": segments}) == 3


@pytest.mark.parametrize("kind", ["threads", "a lock that is held"])
def test_fit_is_alone_in_its_folder(kind, tmp_path):
    folder = tmp_path / "run"
    inside, may_end = threading.Event(), threading.Event()

    def waits(tuned, step: int) -> None:
        inside.set()
        assert may_end.wait(60)

    def second() -> None:
        with pytest.raises(UserError, match="another run is using it"):
            fit(folder)

    if kind == "threads":
        first = threading.Thread(target=fit, args=(folder,), kwargs={"evaluators": [waits]})
        first.start()
        assert inside.wait(60)
        second()
        may_end.set()
        first.join()
    else:
        with only_run(epath.Path(folder)):
            contextvars.Context().run(second)
    fit(folder, 3)  # the lock is free again


def _drop_at(step: int):
    return optax.piecewise_constant_schedule(0.3, {step: 0.1})


@pytest.mark.parametrize(
    ("saved", "current", "steps", "told"),
    [
        (0.3, _drop_at(150), 200, "LEARNING_RATE = 0.3, now [0.3"),
        (_drop_at(150), _drop_at(151), 200, "now another one in steps 144 to 157"),
        (_drop_at(15_000), _drop_at(15_100), 20_000, "now another one in steps"),
        (_drop_at(15_000), _drop_at(15_001), 20_000, "now another one in steps"),
        (optax.linear_schedule(0, 0.3, 3), optax.linear_schedule(0, 0.3, 4), 10, "in step 2"),
        (_drop_at(2), _drop_at(3), 5, "now another one in step 3"),
        (_drop_at(150), 0.3, 100, ""),  # the same as far as the run goes
        (0.3, lambda step: 0.3 + 0 * step, 200, ""),
        (_drop_at(150), _drop_at(150), 200, ""),
    ],
)
def test_schedules_are_compared_at_every_step(saved, current, steps, told):
    def described(rate) -> dict:
        parts = run_settings._parts(rate, steps)
        return {"LEARNING_RATE": run_settings._rates(rate), run_settings._EACH_STEP: parts}

    changes = run_settings.changes(described(saved), described(current))
    assert len(changes) == bool(told) and all(told in change for change in changes)
    # More steps are no change, and neither is a checkpoint that does not say each step.
    more = {**described(saved), run_settings._EACH_STEP: run_settings._parts(saved, 3 * steps)}
    assert run_settings.changes(described(saved), more) == []
    assert run_settings.changes({"LEARNING_RATE": more["LEARNING_RATE"]}, more) == []


def _clipped(threshold: float, optimizer=optax.sgd):
    return lambda rate: optax.chain(optax.clip_by_global_norm(threshold), optimizer(rate))


def _by_path(part: str, factor: float):
    def scaled(updates, params=None):
        def of_leaf(path, update):
            return update * (factor if part in jax.tree_util.keystr(path) else 1.0)

        return jax.tree_util.tree_map_with_path(of_leaf, updates)

    return lambda rate: optax.chain(optax.sgd(rate), optax.stateless(scaled))


@pytest.mark.parametrize(
    ("saved", "current"),
    [
        (optax.sgd, _clipped(1.0)),
        (_clipped(1.0), _clipped(2.0)),
        (_clipped(0.01), _clipped(0.02)),
        (_clipped(300.0), _clipped(400.0)),
        (optax.adamw, _clipped(1.0, optax.adamw)),
        (_clipped(1.0, adafactor), _clipped(2.0, adafactor)),
        (
            lambda rate: optax.chain(optax.clip(0.5), optax.sgd(rate)),
            lambda rate: optax.chain(optax.clip(0.7), optax.sgd(rate)),
        ),
    ],
)
def test_clipping_in_a_function_of_ones_own(saved, current):
    trained = {"prompt": np.zeros((2, 4), np.float32)}
    response, other = (run_settings._response(each, trained) for each in (saved, current))
    same = {"OPTIMIZER": ["", *response]}
    assert run_settings.changes(same, {"OPTIMIZER": ["", *other]})
    # A checkpoint of an earlier version has the first two updates.
    assert not run_settings.changes({"OPTIMIZER": same["OPTIMIZER"][:5]}, same)


def test_an_optimizer_that_treats_leaves_differently():
    leaf = np.zeros((2, 4), np.float32)
    trained = {"layers_0": {"lora_key": leaf, "lora_query": leaf}}

    def described(factor: float) -> dict:
        optimizer = _by_path("lora_query", factor)
        return {"OPTIMIZER": ["", *run_settings._response(optimizer, trained)]}

    assert run_settings.changes(described(1.0), described(0.5))
    assert not run_settings.changes(described(1.0), described(1.0))


@pytest.mark.parametrize(
    ("change", "is_told"),
    [
        ({"seed": 1}, True),
        ({"size": 2}, True),
        ({"length": 9}, True),
        ({"padding": 5}, False),
        ({}, False),
    ],
)
def test_data_that_a_function_hides_are_compared_by_their_first_batch(change, is_told):
    def checksum(seed: int = 0, size: int = 4, length: int = 7, padding: int = 0) -> str:
        rows = np.random.default_rng(seed).integers(3, 60, (size, 12))
        rows[:, length:] = 0
        return run_settings.checksum({"encoder_input_tokens": np.pad(rows, ((0, 0), (0, padding)))})

    [name] = [run_settings.FIRST_BATCH]
    changes = run_settings.changes({name: checksum()}, {name: checksum(**change)})
    assert changes == (["batches that begin with other examples"] if is_told else [])


def test_a_stream_that_begins_with_other_examples(tmp_path):
    """Such as of a file whose content has changed; a warning, since sources may ignore the seed."""

    class Stream(Data):
        first = 0

        def train_batches(self, start: int, multiple: int = 1):
            return batches_of(4)(start + self.first)

    stream = Stream(**{"training examples": "a stream"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(tmp_path, 1, batches=stream.train_batches)
        fit(tmp_path, 1, batches=stream.train_batches)
    for first in (1, 1, 2):  # the warning does not become what is known
        stream.first = first
        with pytest.warns(UserWarning, match="begin with other examples .*: a file has changed"):
            fit(tmp_path, 1, batches=stream.train_batches)


def test_a_function_around_the_batches_does_not_hide_a_sentinel(tmp_path):
    def batches(start: int) -> Iterator[dict[str, np.ndarray]]:
        for batch in batches_of(4)(start):
            batch["decoder_target_tokens"][:, 0] = 63
            yield batch

    for _ in ("from the start", "resumed"):
        tuned = fit(tmp_path, 1, batches=lambda start: batches(start))
        assert tuned.trained_with is None and tuned.first_tokens == {63}


def test_a_lambda_around_the_batches(tmp_path):
    data = Data(**{"RANDOM_SEED (data)": 0})
    fit(tmp_path, 1, batches=lambda start: data.train_batches(start))
    with pytest.raises(CheckpointError, match="trained with batches that begin with other"):
        fit(tmp_path, 2, batches=lambda start: batches_of(4)(start + 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(tmp_path, 1, batches=lambda start: data.train_batches(start))
    fit(tmp_path, 2, batches=data.train_batches)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        fit(
            tmp_path,
            2,
            batches=lambda start: data.train_batches(start),
            optimizer=lambda rate: adafactor(rate),
            resume_with_changes=True,
        )
    told = "".join(str(warning.message) for warning in warned)
    assert "RANDOM_SEED (data), which this run does not name" in told
    assert "OPTIMIZER is a function of your own" in told


@pytest.mark.parametrize("again", [itertools.cycle, iter])
def test_batches_that_do_not_begin_at_their_step_are_refused(again, tmp_path):
    data = [random_batch(seed, batch=4) for seed in range(6)]
    fit(tmp_path, 2, batches=lambda start: again(data))
    with pytest.raises(UserError, match="would train on the first ones again; begin at the step"):
        fit(tmp_path, 4, batches=lambda start: again(data))
    fit(tmp_path, 4, batches=lambda start: iter(data[start:]))


def test_batches_whose_arrays_are_filled_anew(tmp_path):
    """At addresses that JAX shares on CPUs: multiples of 64."""
    data = [random_batch(seed, batch=64, inputs=32) for seed in range(8)]

    def aligned(rows: np.ndarray) -> np.ndarray:
        raw = np.empty(rows.size + 16, rows.dtype)
        first = -raw.ctypes.data // raw.itemsize % 16
        return raw[first : first + rows.size].reshape(rows.shape)

    def refilled(start: int) -> Iterator[dict[str, np.ndarray]]:
        arrays = {name: aligned(rows) for name, rows in data[0].items()}
        for batch in data[start:]:
            for name, rows in batch.items():
                arrays[name][...] = rows
            yield arrays

    leaves = [
        flatten(fit(tmp_path / name, 6, batches=batches).trained)
        for name, batches in {"own": lambda start: iter(data[start:]), "one": refilled}.items()
    ]
    for name, leaf in leaves[0].items():
        np.testing.assert_array_equal(leaf, leaves[1][name])


def test_a_loss_scale_is_no_array_of_a_batch(tmp_path):
    batch = random_batch(0, batch=4)
    batch["loss_scale"] = np.ones_like(batch["decoder_target_tokens"], np.float32)
    with pytest.raises(UserError, match="loss_scale follows from the loss; give decoder_loss_weig"):
        fit(tmp_path, batches=lambda start: iter([batch]))


def test_a_model_is_trained_once(tmp_path):
    tuned = tiny_model(METHOD)
    options = {"total_steps": 1, "batches": batches_of(4)}
    loop.fit(tuned, model_dir=tmp_path / "a", **options)
    with pytest.raises(UserError, match="was given to fit before, which took its trained leaves"):
        loop.fit(tuned, model_dir=tmp_path / "b", **options)
    assert not (tmp_path / "b").exists() or not list((tmp_path / "b").glob("checkpoint_*"))


@pytest.mark.parametrize("answer", [rank_labels, generate])
def test_a_model_that_fit_took_does_not_answer(answer, tmp_path):
    tuned = tiny_model(METHOD)
    loop.fit(tuned, model_dir=tmp_path, total_steps=1, batches=batches_of(4))
    ids = np.full((1, 3), 5, np.int32)
    data = EvalSet("t", "test", ["a"], ["b"], ids, ("b",), ids, 3, (), str)
    with pytest.raises(UserError, match="was given to fit before, which took its trained leaves"):
        answer(tuned, data, 8)
    of_arrays = tiny_model(METHOD)
    of_arrays = dataclasses.replace(of_arrays, trained=jax.tree.map(np.asarray, of_arrays.trained))
    assert len(answer(of_arrays, data, 8).texts) == 1
