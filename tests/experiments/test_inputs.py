"""The files that a cell reads: which ones, and what tells their content apart."""

import dataclasses
import json
from pathlib import Path

import pytest

from prompt_tuning import embedded
from prompt_tuning.checkpoint import card
from prompt_tuning.cli.gin_parsing import configs_folder
from prompt_tuning.experiments import inputs
from prompt_tuning.experiments.grid import Cell, Step

PACKAGE = Path(embedded.__file__).parents[1]
BACKBONE, VOCABULARY = embedded.backbone(), embedded.vocabulary()
LADDER = embedded.ladder("ladder_xs")
CARD = card.Card("", "", 16, "t", "LoRA", 0, "", "", "", 0.3, 1, {}, "0", "")


@pytest.fixture(autouse=True)
def _files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("data/sst2/train.csv", "data/mpqa/train.csv", "own/ladder_s/final.safetensors"):
        Path(name).parent.mkdir(parents=True)
        Path(name).write_text(name)
    Path("prompt.npy").touch()


def names(files: tuple[str, ...], **settings: object) -> set[str]:
    cell = Cell("c", {}, (Step("train", "train", files, settings),), "digest")
    return set(inputs.of_cell(cell, [str(configs_folder())], Path("out")))


def of_package(*paths: str) -> set[str]:
    return {Path(path).relative_to(PACKAGE).as_posix() for path in paths}


@pytest.mark.parametrize(
    ("files", "settings", "expected"),
    [
        ((), {"DATA_DIR": "data", "MIXTURE_OR_TASK_NAME": "sst2"}, {"data/sst2"}),
        ((), {"DATA_DIR": "data", "MIXTURE_OR_TASK_NAME": "all"}, {"data"}),
        ((), {"DATA_DIR": "data"}, {"data"}),
        ((), {"DATA_DIR": "data", "MIXTURE_OR_TASK_NAME": "@mine.task()"}, {"data"}),
        ((), {"INITIAL_CHECKPOINT_PATH": "own/ladder_s"}, {"own/ladder_s"}),
        ((), {"PROMPT_FILE": "prompt.npy"}, {"prompt.npy"}),
        ((), {"PROMPT_FILES": ["prompt.npy", "$cell/0/prompt_best.npy"]}, {"prompt.npy"}),
        ((), {"FromFile.path": "prompt.npy"}, {"prompt.npy"}),
        ((), {"METHOD": "data", "NAME": "own"}, set()),  # words, which folders happen to have
        ((), {"CACHE_DIR": "data", "MODEL_DIR": "own"}, set()),
        ((), {"TRAIN_FILE": "gs://data/sst2", "TEXT": "x" * 5_000, "N": 3}, set()),
        ((), {"DATA_DIR": "nowhere"}, set()),
        (("models/demo.gin",), {}, of_package(BACKBONE, VOCABULARY)),
        (("models/ladder_xs.gin",), {}, of_package(LADDER, VOCABULARY)),
        (
            ("models/ladder_s.gin",),
            {"LADDER_DIR": "own"},
            {"own/ladder_s/final.safetensors", *of_package(VOCABULARY)},
        ),
        (("models/ladder_s.gin",), {"LADDER_STAGE": "lm10"}, of_package(VOCABULARY)),
        (
            (),
            {"DATA_DIR": "data", "MIXTURE_OR_TASK_NAME": "demo_topics"},
            of_package(
                *(embedded.data("demo_topics", split) for split in ("train", "validation", "test"))
            ),
        ),
    ],
)
def test_the_files_that_settings_name(files, settings, expected):
    assert names(files, **settings) == expected


def test_weights_that_a_function_of_ones_own_finds():
    steps = [Step(name, command, (), {}) for name, command in (("a", "train"), ("b", "eval"))]
    for path in (BACKBONE, "own/ladder_s/final.safetensors", "gs://bucket/weights", ""):
        card.save("cell/a/trained_last.safetensors", dataclasses.replace(CARD, backbone=path))
        inputs.record_backbones(Path("cell"), steps, Path("out"))
    expected = {"own/ladder_s/final.safetensors", *of_package(BACKBONE)}
    assert json.loads(Path("cell", inputs.NAME).read_text()).keys() == expected


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (lambda: Path("data/sst2/train.csv").write_text("data/sst2/train.csV"), True),
        (lambda: Path("data/sst2/test.csv").touch(), True),
        (lambda: Path("data/sst2/train.csv").rename("data/sst2/dev.csv"), True),
        (lambda: Path("data/mpqa/train.csv").unlink(), True),
        (lambda: Path("data/sst2/train.csv").touch(), False),
        (lambda: Path("data/sst2/.lock").touch(), False),
        (lambda: Path("data/out").mkdir() or Path("data/out/x").touch(), False),
    ],
)
def test_what_makes_a_folder_another_one(whole, change, differs, monkeypatch):
    if not whole:
        monkeypatch.setattr(inputs, "_MOST_BYTES", 1)
    before = content("data")
    change()
    assert (content("data") != before) == differs


def content(path: str) -> str:
    inputs.digest.cache_clear()
    return inputs.digest(Path(path), Path("data/out"))


@pytest.mark.parametrize("place", [0, 70_000, 2**20 - 1])
def test_large_files_are_read_in_pieces(place, monkeypatch):
    monkeypatch.setattr(inputs, "_MOST_BYTES", 2**19)
    weights = bytearray(2**20)
    Path("weights").write_bytes(weights)
    before = content("weights")
    weights[place : place + 2**17] = b"1" * len(weights[place : place + 2**17])
    Path("weights").write_bytes(weights)
    assert content("weights") != before
