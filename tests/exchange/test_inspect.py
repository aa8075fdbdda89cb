"""Descriptions of every kind of file; norms by hand, nearest tokens; nothing is unpickled."""

import json
import pickle
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from prompt_tuning import embedded
from prompt_tuning.checkpoint import backbone, prompts, trained
from prompt_tuning.checkpoint.formats import peft
from prompt_tuning.checkpoint.run import RunCheckpoints
from prompt_tuning.errors import CheckpointError
from prompt_tuning.exchange import inspection
from prompt_tuning.testing import assert_mistake, run_command

DATA = Path(__file__).parents[1] / "fixtures"
PROMPT = np.array([[3, 4], [0, 1], [-6, 8]], np.float32)  # norms 5, 1, 10
TABLE = np.array([[1, 0], [0, 2], [-3, 4], [0, 0]], np.float32)


def report(path: Path) -> list[str]:
    return inspection.lines(inspection.contents_of(path))


@pytest.mark.parametrize(
    "name", ["prompt.npy", "encoder.prompt.prompt.prompt", "prompt.safetensors"]
)
def test_prompt_files(tmp_path, name):
    prompts.save(tmp_path / name, PROMPT)
    actual = inspection.contents_of(tmp_path / name)
    assert actual.kind.startswith("prompt (")
    np.testing.assert_array_equal(actual.prompt(), PROMPT)
    assert inspection.lines(actual)[1:] == ["leaves: 1, 24 bytes", "  prompt  float32  3 x 2  24"]


def test_prompt_lines_by_hand():
    norms, finite = inspection.prompt_lines(PROMPT)
    assert norms == "row norms: min 1, median 5, max 10"
    assert finite == "finite: all values"
    assert (
        inspection.prompt_lines(np.array([[1, np.nan], [np.inf, 2]]))[1] == "finite: 2 of 4 values"
    )


def test_trained_leaves_and_backbone(tmp_path):
    leaves = {"encoder/layers_0/attention/lora_query/a": np.ones((4, 2), np.float32)}
    trained.save(tmp_path / "trained.safetensors", leaves)
    assert report(tmp_path / "trained.safetensors") == [
        "kind: trained leaves",
        "leaves: 1, 32 bytes",
        "  encoder/layers_0/attention/lora_query/a  float32  4 x 2  32",
    ]
    backbone.save(tmp_path / "backbone.safetensors", {"token_embedder/embedding": TABLE})
    kind, total, leaf = report(tmp_path / "backbone.safetensors")
    assert (kind, total) == ("kind: backbone (.safetensors)", "leaves: 1, 16 bytes")
    assert leaf.split() == ["token_embedder/embedding", "bfloat16", "4", "x", "2", "16"]


def test_run_and_its_checkpoint(tmp_path):
    for step in (3, 12):
        checkpoints = RunCheckpoints(tmp_path / "run", keep=2)
        checkpoints.save(step, {"step": jnp.int32(step), "trained": {"prompt": jnp.ones((3, 2))}})
        checkpoints.close()
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    kind, newest, step, _, *leaves = report(tmp_path / "run")
    assert kind == "kind: run, Orbax checkpoint"
    assert newest == "checkpoints: 2; this is checkpoint_12, the newest"
    assert step == "step: 12"
    assert [leaf.split("train_state/")[1].split() for leaf in leaves] == [
        ["step", "int32", "scalar", "4"],
        ["trained/prompt", "float32", "3", "x", "2", "24"],
    ]
    assert "step: 3" in report(tmp_path / "run" / "checkpoint_3")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before


def test_t5x_checkpoint():
    actual = inspection.contents_of(DATA / "t5x_mini_bfloat16" / "checkpoint_0")
    assert (actual.kind, actual.step) == ("T5X checkpoint", 0)
    leaf = actual.leaves["target/token_embedder/embedding"]
    assert np.dtype(leaf.dtype).name == "bfloat16"


def test_hugging_face_checkpoint(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    save_file({"shared.weight": TABLE}, tmp_path / "model.safetensors")
    expected = ["leaves: 1, 32 bytes", "  shared.weight  float32  4 x 2  32"]
    assert report(tmp_path) == ["kind: Hugging Face checkpoint", *expected]
    kind, *rest = report(tmp_path / "model.safetensors")
    assert kind == "kind: weights of a Hugging Face checkpoint"
    assert rest == expected


def test_adapter(tmp_path):
    peft.save_prompt(tmp_path / "adapter", PROMPT)
    actual = inspection.contents_of(tmp_path / "adapter")
    assert actual.kind == "PEFT adapter, PROMPT_TUNING"
    assert actual.facts == ["task_type: SEQ_2_SEQ_LM"]
    np.testing.assert_array_equal(actual.prompt(), PROMPT)


class Planted:
    """Creates a file when unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize(
    "name", ["model.bin", "model.pt", "prompt.npy", "a.safetensors", "checkpoint", "none"]
)
def test_pickles_are_not_read(tmp_path, name):
    mark = tmp_path / "executed"
    (tmp_path / name).write_bytes(pickle.dumps(Planted(mark)))
    with pytest.raises(CheckpointError) as caught:
        inspection.contents_of(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_pickled_array_is_not_read(tmp_path):
    mark = tmp_path / "executed"
    np.save(tmp_path / "prompt.npy", np.array([Planted(mark)], object), allow_pickle=True)
    with pytest.raises(CheckpointError, match=r"prompt.npy: not a whole .npy of numbers"):
        inspection.contents_of(tmp_path / "prompt.npy")
    assert not mark.exists()


def test_nothing_known(tmp_path):
    for path in (tmp_path, tmp_path / "config.txt"):
        if path != tmp_path:
            path.write_text("words")
        with pytest.raises(CheckpointError, match="not a prompt, trained leaves, a backbone"):
            inspection.contents_of(path)
    with pytest.raises(CheckpointError, match="no such file or folder"):
        inspection.contents_of(tmp_path / "absent")


def test_damaged_run(tmp_path):
    step = tmp_path / "checkpoint_5"
    step.mkdir()
    (step / "_CHECKPOINT_METADATA").write_text(json.dumps({}))
    with pytest.raises(CheckpointError, match="checkpoint_5: ") as caught:
        inspection.contents_of(tmp_path)
    assert "\n" not in str(caught.value)


def test_command(tmp_path):
    prompts.save(tmp_path / "prompt.npy", PROMPT)
    backbone.save(tmp_path / "backbone.safetensors", {"token_embedder/embedding": TABLE})
    done = run_command(
        "prompt_tuning.inspect",
        tmp_path / "prompt.npy",
        f"--backbone={tmp_path / 'backbone.safetensors'}",
    )
    assert done.out.splitlines()[-4:] == [
        "nearest tokens, by cosine:",
        "  0: 1 0.800, 0 0.600, 2 0.280",
        "  1: 1 1.000, 2 0.800, 0 0.000",
        "  2: 2 1.000, 1 0.800, 3 0.000",
    ], done.err
    done = run_command(
        "prompt_tuning.inspect",
        tmp_path / "backbone.safetensors",
        "--backbone=backbone.safetensors",
    )
    assert_mistake(done, "--backbone: ")


def test_words_of_the_nearest_tokens():
    word = inspection.token_names(embedded.vocabulary())
    assert (word(1), word(8_191), word(8_099)) == ("'</s>'", "8191", "'▁<extra_id_0>'")
    assert inspection.token_names(None)(7) == "7"
