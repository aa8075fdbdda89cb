"""`t5x.train`, `t5x.eval` and `t5x.infer` as docs/t5x.md types them, on the embedded backbone."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("t5x", reason="T5X is not installed: make t5x")

from prompt_tuning import embedded
from prompt_tuning.checkpoint import card, prompts
from prompt_tuning.exchange.conversion import convert
from prompt_tuning.testing import run_command

CONFIGS = Path(__file__).parents[2] / "configs"
OURS = "prompt_tuning/in_t5x"
LABELS = "--gin.CLASS_LABELS=('negative', 'positive')"
STEPS = ("--gin.TRAIN_STEPS=1008", "--gin.utils.SaveCheckpointConfig.period=2")
RARELY = "--gin.EVAL_PERIOD=8"
NATIVE = "--gin.train.use_orbax=False"
NOT_MEASURED = "--gin.train.infer_eval_dataset_cfg=None"


@contextlib.contextmanager
def started(command, *arguments, devices=1):
    """`python -m t5x.COMMAND`, which is killed if the test ends before it."""
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    words = [sys.executable, "-m", f"t5x.{command}", *map(str, arguments)]
    with (
        tempfile.TemporaryFile("w+") as out,
        subprocess.Popen(words, env=environment, stdout=out, stderr=out) as process,
    ):
        try:
            yield process, out
        finally:
            process.kill()


def run(command, *arguments, status=0, devices=1) -> str:
    with started(command, *arguments, devices=devices) as (process, out):
        process.wait(timeout=600)
        out.seek(0)
        text = out.read()
    assert (process.returncode != 0) == bool(status), text[-4000:]
    return text


def accuracy(folder) -> float:
    """The last accuracy that T5X wrote."""
    lines = (folder / "demo_reviews-metrics.jsonl").read_text().splitlines()
    return json.loads(lines[-1])["accuracy"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("backbone") / "checkpoint_1000"
    convert(embedded.backbone(), str(path), "t5x", "demo", "float32")
    return path


def training(checkpoint, folder, *more, files=("train.gin",)):
    return (
        f"--gin_search_paths={CONFIGS}",
        f"--gin_file={OURS}/demo_finetune.gin",
        *(f"--gin_file={file if '/' in file else f'{OURS}/{file}'}" for file in files),
        f"--gin.INITIAL_CHECKPOINT_PATH='{checkpoint}'",
        f"--gin.MODEL_DIR='{folder}'",
        *STEPS,
        RARELY,
        *more,
    )


PROMPT = ("--gin.PROMPT_LENGTH=5", LABELS)


@pytest.fixture(scope="module")
def trained(checkpoint, tmp_path_factory) -> Path:
    """Eight steps of `t5x.train`, with checkpoints of Orbax."""
    folder = tmp_path_factory.mktemp("run")
    run("train", *training(checkpoint, folder, *PROMPT))
    return folder


def evaluation(kind, output, *more):
    return (
        f"--gin_file={OURS}/demo_model.gin",
        f"--gin_file=t5x/configs/runs/{kind}.gin",
        f"--gin_file={OURS}/{kind}.gin",
        "--gin.DROPOUT_RATE=0.0",
        "--gin.MIXTURE_OR_TASK_NAME='demo_reviews'",
        "--gin.MIXTURE_OR_TASK_MODULE='prompt_tuning.data.tasks'",
        "--gin.utils.DatasetConfig.split='validation'",
        f"--gin.{kind.upper()}_OUTPUT_DIR='{output}'",
        *more,
    )


def test_train_eval_infer_and_ours_agree(checkpoint, trained, tmp_path):
    file = trained / "prompts" / "prompt_1008.npy"
    names = sorted(path.name for path in file.parent.iterdir())
    assert names == sorted(
        f"prompt_{step}{suffix}"
        for step in range(1000, 1009, 2)
        for suffix in (".card.json", ".npy")
    )
    np.testing.assert_array_equal(prompts.load(file), prompts.load(trained / "checkpoint_1008"))
    written = card.read(file)
    assert (written.task, written.steps, written.learning_rate) == ("demo_reviews", 1008, 0.3)
    assert "PROMPT_LENGTH = 5" in written.config
    in_training = accuracy(trained / "inference_eval")

    of_run = f"--gin.CHECKPOINT_PATH='{trained / 'checkpoint_1008'}'"
    run("eval", *evaluation("eval", tmp_path / "eval", of_run))
    assert accuracy(tmp_path / "eval" / "inference_eval") == in_training

    of_backbone = (
        f"--gin.CHECKPOINT_PATH='{checkpoint}'",
        f"--gin.PROMPT_FILE='{file}'",
        "--gin.TASK_FEATURE_LENGTHS={'inputs': 64, 'targets': 8}",
        "--gin.utils.RestoreCheckpointConfig.dtype='float32'",
    )
    run("infer", *evaluation("infer", tmp_path / "infer", *of_backbone))
    (answers,) = (tmp_path / "infer").glob("demo_reviews-predict.jsonl-*-of-00001")
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    right = sum(row["prediction"] == row["inputs"]["targets_pretokenized"] for row in rows)
    assert (len(rows), right / len(rows)) == (320, in_training)

    ours = accuracy_of_ours(tmp_path / "ours", f"--gin.PROMPT_FILE={trained / 'checkpoint_1008'}")
    assert ours == in_training


def accuracy_of_ours(folder: Path, *arguments: str) -> float:
    """The accuracy that `prompt_tuning.eval` finds on the validation split."""
    result = run_command(
        "prompt_tuning.eval",
        "--gin_file=models/demo.gin",
        "--gin_file=runs/eval.gin",
        "--gin.MIXTURE_OR_TASK_NAME=demo_reviews",
        "--gin.SPLIT=validation",
        "--gin.EVAL_METHODS=('generate',)",
        "--gin.TASK_FEATURE_LENGTHS={'inputs': 64, 'targets': 8}",
        f"--gin.EVAL_OUTPUT_DIR={folder}",
        *arguments,
    )
    assert result.status == 0, result.err
    (metrics,) = folder.rglob("*metrics.json")
    return json.loads(metrics.read_text())["generate/accuracy"]


def assert_same_prompts(folder, other):
    for step in range(1000, 1009, 2):
        mine, yours = (prompts.load(f / "prompts" / f"prompt_{step}.npy") for f in (folder, other))
        np.testing.assert_array_equal(mine, yours)


@pytest.mark.parametrize("layout", [(), (NATIVE,)], ids=["orbax", "native"])
def test_a_killed_run_resumes(checkpoint, trained, tmp_path, layout):
    """Killed after its second save, perhaps in the midst of one; both layouts end the same.

    T5X's first checkpoint, before the first step, has data that are one batch ahead.
    """
    arguments = training(checkpoint, tmp_path, *PROMPT, NOT_MEASURED, *layout)
    with started("train", *arguments) as (process, _):
        deadline = time.monotonic() + 600
        seen = [tmp_path / "checkpoint_1002", tmp_path / "prompts" / "prompt_1004.npy"]
        while not all(path.exists() for path in seen):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "prompts" / "prompt_1008.npy").exists()
    run("train", *arguments)
    assert_same_prompts(trained, tmp_path)


def test_a_mesh_agrees_with_one_device(checkpoint, trained, tmp_path):
    mesh = "--gin.partitioning.PjitPartitioner.model_parallel_submesh=(1, 2)"
    run("train", *training(checkpoint, tmp_path, *PROMPT, NOT_MEASURED, mesh), devices=4)
    assert "(None, 'model')" in (tmp_path / "model-info.txt").read_text()
    one, four = (prompts.load(f / "prompts" / "prompt_1002.npy") for f in (trained, tmp_path))
    np.testing.assert_allclose(four, one, rtol=0, atol=1e-5 * np.abs(one).max())


def test_two_processes_write_a_prompt_once(checkpoint, tmp_path):
    """T5X gives each process examples of its own, so that the prompt is not that of one process."""
    with socket.create_server(("localhost", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
    run_of_two = ("--multiprocess_gpu", f"--coordinator_address={address}", "--process_count=2")
    steps = ("--gin.TRAIN_STEPS=1002", "--gin.EVAL_PERIOD=2")
    arguments = training(checkpoint, tmp_path, *PROMPT, NOT_MEASURED, *steps, *run_of_two)
    with started("train", *arguments, "--process_index=1") as (other, _):
        run("train", *arguments, "--process_index=0")
        assert other.wait(timeout=60) == 0
    files = [f"prompt_{step}{suffix}" for step in (1000, 1002) for suffix in (".card.json", ".npy")]
    assert sorted(path.name for path in (tmp_path / "prompts").iterdir()) == files
    np.testing.assert_array_equal(
        prompts.load(tmp_path / "prompts" / "prompt_1002.npy"),
        prompts.load(tmp_path / "checkpoint_1002"),
    )


MISTAKES = {
    "packing": ("--gin.train/utils.DatasetConfig.pack=True", "utils.DatasetConfig.pack = False"),
    "layers": ("--gin.network.T5Config.num_encoder_layers=5", "lacks target/encoder/layers_4/"),
    "width": ("--gin.network.T5Config.emb_dim=128", "the initial value is (5, 256), the network's"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_the_run(checkpoint, tmp_path, name):
    setting, part = MISTAKES[name]
    out = run("train", *training(checkpoint, tmp_path, *PROMPT, setting), status=1)
    assert part in out
    assert not list(tmp_path.glob("checkpoint_*"))


def test_another_method(checkpoint, tmp_path):
    """LoRA in this package's T5: T5X's trainer and `t5x.eval` agree, and ours with its leaves."""
    preset = ("--gin.MODEL_PRESET='demo'", "--gin.ACTIVATION_DTYPE='float32'")
    files = (f"{CONFIGS}/methods/lora.gin", "train_method.gin")
    run("train", *training(checkpoint, tmp_path / "run", *preset, files=files))
    in_training = accuracy(tmp_path / "run" / "inference_eval")
    leaves = tmp_path / "run" / "trained" / "trained_1008.safetensors"
    files = ("--gin_file=methods/lora.gin", f"--gin.TRAINED_FILE={leaves}")
    assert accuracy_of_ours(tmp_path / "ours", *files) == in_training
    arguments = evaluation(
        "eval", tmp_path / "eval", f"--gin.CHECKPOINT_PATH='{tmp_path / 'run' / 'checkpoint_1008'}'"
    )
    method = [word.replace(f"{OURS}/eval.gin", f"{OURS}/method.gin") for word in arguments]
    lora = (f"--gin_search_paths={CONFIGS}", f"--gin_file={CONFIGS}/methods/lora.gin")
    run("eval", *lora, *method, *preset)
    assert accuracy(tmp_path / "eval" / "inference_eval") == in_training
