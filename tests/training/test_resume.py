"""An interrupted run resumes from what is whole, and ends as if it had not been interrupted."""

import contextvars
import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from prompt_tuning import methods, sharding
from prompt_tuning.checkpoint import run
from prompt_tuning.checkpoint.run import RunCheckpoints
from prompt_tuning.errors import CheckpointError, UserError
from prompt_tuning.model.tuned import TunedModel, initialize
from prompt_tuning.runtime import preemption
from prompt_tuning.runtime.lock import only_run
from prompt_tuning.t5.config import preset
from prompt_tuning.training.loop import fit
from prompt_tuning.transformer.paths import flatten

CONFIG = dataclasses.replace(
    preset("nano"), num_encoder_layers=1, num_decoder_layers=1, dropout_rate=0.1
)
PROMPT = methods.PromptTuning(length=4, initializer=methods.Uniform())
STEPS = 7


@functools.cache
def initial(seed: int, method: methods.Method, devices: int) -> TunedModel:
    layout = sharding.layout(devices=jax.devices()[:devices])
    return initialize(CONFIG, method, layout=layout, seed=seed)


def model(seed: int = 0, method: methods.Method = PROMPT, devices: int = 1) -> TunedModel:
    """A run donates its trained leaves."""
    tuned = initial(seed, method, devices)
    return dataclasses.replace(tuned, trained=jax.tree.map(jnp.copy, tuned.trained))


def batches(start: int) -> Iterator[dict[str, np.ndarray]]:
    for step in range(start, 100):
        tokens = np.random.default_rng(step).integers(2, 50, (8, 6)).astype(np.int32)
        yield {
            "encoder_input_tokens": tokens,
            "decoder_input_tokens": np.roll(tokens, 1, axis=1),
            "decoder_target_tokens": tokens,
            "decoder_loss_weights": np.ones((8, 6), np.float32),
        }


def train(folder: Path, tuned: TunedModel | None = None, **settings) -> TunedModel:
    """Checkpoints at 4 and 7, log lines at 3, 4, 6 and 7."""
    defaults = {"total_steps": STEPS, "checkpoint_period": 4, "log_period": 3, "batches": batches}
    return fit(tuned or model(), model_dir=folder, **{**defaults, **settings})


def trained(tuned: TunedModel) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in flatten(tuned.trained).items()}


def log_of(folder: Path) -> list[dict[str, float]]:
    lines = map(json.loads, (folder / "train" / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if not k.startswith("timing/")} for line in lines]


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint_*"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    """A run that nothing stopped: its folder and trained leaves."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, trained(train(folder, keep=2))


def assert_same(folder: Path, actual: TunedModel, whole) -> None:
    assert log_of(folder) == log_of(whole[0])
    assert [line["step"] for line in log_of(folder)] == [3, 4, 6, 7]
    leaves = trained(actual)
    assert all(np.array_equal(leaves[path], leaf) for path, leaf in whole[1].items())


@pytest.mark.parametrize("at", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_a_run_stopped_by_sigterm_saves_its_step(at, whole, tmp_path, monkeypatch):
    """Log lines at 3 and 6 are means over steps of both processes."""
    before, asked = signal.getsignal(signal.SIGTERM), preemption.Watch.stops

    def stops(watch: preemption.Watch, step: int) -> bool:
        if step == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return asked(watch, step)

    with monkeypatch.context() as patch:
        patch.setattr(preemption.Watch, "stops", stops)
        with pytest.raises(preemption.Preempted):
            train(tmp_path)
    assert checkpoints(tmp_path) == [f"checkpoint_{at}"]
    assert signal.getsignal(signal.SIGTERM) == before
    assert_same(tmp_path, train(tmp_path), whole)


def test_sigterm_does_not_wait_for_an_evaluation(whole, tmp_path):
    began, ended = [], []

    def evaluator(tuned: TunedModel, step: int) -> None:
        began.append(step)
        if began == [0, 2]:
            os.kill(os.getpid(), signal.SIGTERM)
        ended.append(step)

    with pytest.raises(preemption.Preempted):
        train(tmp_path, evaluators=[evaluator], eval_period=2)
    assert checkpoints(tmp_path) == ["checkpoint_2"]
    actual = train(tmp_path, evaluators=[evaluator], eval_period=2)
    assert ended == [0, 2, 4, 6, 7]
    assert_same(tmp_path, actual, whole)


def test_a_whole_checkpoint_is_found_behind_each_damage(whole, tmp_path):
    """Each file of the newest one cut, emptied, changed in a bit, or lost."""
    good = whole[0]
    names = [
        path.relative_to(good) for path in (good / "checkpoint_7").rglob("*") if path.is_file()
    ]
    assert len(names) > 8
    for name in names:
        content = (good / name).read_bytes()
        for damaged in damages(content):
            folder = tmp_path / "run"
            shutil.copytree(good, folder)
            if damaged is None:
                (folder / name).unlink()
            else:
                (folder / name).write_bytes(damaged)
            with pytest.warns(UserWarning, match=r"checkpoint_7: .*; resuming from checkpoint_4"):
                assert RunCheckpoints(folder).latest == 4
            shutil.rmtree(folder / "checkpoint_4")
            with pytest.raises(CheckpointError, match=r"no intact checkpoint: .*_7: ") as error:
                RunCheckpoints(folder).latest  # noqa: B018
            assert "\n" not in str(error.value)
            shutil.rmtree(folder)


def damages(content: bytes) -> Iterator[bytes | None]:
    yield None
    yield content + b"\n"
    if content:
        yield b""
        yield content[:-1]
        for place in {0, len(content) // 2, len(content) - 1}:
            yield content[:place] + bytes([content[place] ^ 1 << 5]) + content[place + 1 :]


def test_a_run_resumes_from_the_whole_checkpoint(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    (folder / "checkpoint_7" / "manifest.json").unlink()
    (folder / "checkpoint_9").mkdir()
    (folder / "checkpoint_9" / "checkpoint").write_bytes(b"of T5X")
    (folder / "checkpoint_8.tmp").mkdir()
    (folder / "checkpoint_notes").write_text("mine")
    with pytest.warns(UserWarning, match="resuming from checkpoint_4") as told:
        actual = train(folder)
    assert [str(one.message).partition(":")[0] for one in told][:2] == [
        str(folder / name) for name in ("checkpoint_9", "checkpoint_7")
    ]
    assert_same(folder, actual, whole)
    assert checkpoints(folder) == ["checkpoint_7", "checkpoint_notes"]


def test_a_checkpoint_of_another_step_is_not_loaded(whole, tmp_path):
    shutil.copytree(whole[0] / "checkpoint_4", tmp_path / "checkpoint_5")
    with pytest.raises(
        CheckpointError, match=r"checkpoint_5: belongs to another run or step \(4\)"
    ):
        RunCheckpoints(tmp_path).latest  # noqa: B018


def test_another_backbone_is_refused(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    with pytest.raises(CheckpointError) as error:
        train(tmp_path / "run", model(seed=1))
    actual = run.manifest.read(tmp_path / "run" / "checkpoint_7")["backbone"]
    assert actual["leaves"]["encoder/layers_*/attention/query/kernel"] == "1 x (16, 16)"
    message = str(error.value)
    assert actual["fingerprint"] in message and "\n" not in message
    assert (
        len({word.strip("();,") for word in message.split() if len(word.strip("();,")) == 16}) == 2
    )


def test_on_another_number_of_devices_the_data_continues_in_order(whole, tmp_path):
    train(tmp_path, total_steps=4)
    seen = []

    def recorded(start: int) -> Iterator[dict[str, np.ndarray]]:
        seen.append(start)
        return batches(start)

    actual = trained(train(tmp_path, model(devices=2), batches=recorded))
    assert seen == [4, 0, 1, 0]  # whether they begin there, and with the same batch
    for path, leaf in whole[1].items():
        np.testing.assert_allclose(actual[path], leaf, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "method",
    [
        methods.PromptTuning(100, initializer=methods.Uniform()),
        methods.LoRA(64),
        pytest.param(methods.BitFit(), marks=pytest.mark.slow),
    ],
    ids=lambda method: type(method).__name__,
)
def test_size(method, tmp_path, caplog):
    """Trained parameters times one and the optimizer's slots, and at most 64 KiB; in silence."""
    tuned = model(method=method)
    values = 4 * tuned.split.count(tuned.split.trained)
    train(tmp_path, tuned, total_steps=1)
    files = (path for path in (tmp_path / "checkpoint_1").rglob("*") if path.is_file())
    assert sum(path.stat().st_size for path in files) <= values * (1 + 1) + 2**16
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_only_the_newest_and_those_asked_for_stay(tmp_path):
    saved = RunCheckpoints(tmp_path, keep=2)
    for step in range(1, 6):
        saved.save(step, {"leaf": np.full(3, step)}, also=[1])
    saved.close()
    assert checkpoints(tmp_path) == ["checkpoint_1", "checkpoint_4", "checkpoint_5"]
    assert run.steps(tmp_path) == [1, 4, 5]


def test_a_failed_save_is_told_and_harms_nothing(tmp_path, monkeypatch):
    saved = RunCheckpoints(tmp_path)
    saved.save(1, {"leaf": np.ones(3)})
    saved.wait()

    def full(*arguments) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(run.manifest, "write", full)
        saved.save(2, {"leaf": np.ones(3)})
        with pytest.raises(OSError, match="No space left"):
            saved.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert RunCheckpoints(tmp_path).latest == 1
    saved.save(3, {"leaf": np.ones(3)})
    saved.close()
    assert checkpoints(tmp_path) == ["checkpoint_3"]


HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(600)
"""


def test_one_run_in_a_folder_until_it_ends_or_is_killed(tmp_path):
    folder = epath.Path(tmp_path / "run")
    with only_run(folder):
        with only_run(folder):  # a command that calls `fit`
            pass
        with pytest.raises(UserError, match=rf"another run .* {os.getpid()}\)"):
            contextvars.Context().run(only_run(folder).__enter__)  # another thread
    command = [sys.executable, "-c", HOLDER, str(folder / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another run is using it"):
            only_run(folder).__enter__()
        holder.kill()
        holder.wait()
        with only_run(folder):
            assert (folder / "lock").read_text() == f"{os.getpid()}\n"
