"""Mutated files of every format: reading them succeeds or raises an error of one line.

`FUZZ_EXAMPLES=5000 pytest tests/test_fuzz.py` looks longer, and at other examples each time.
"""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from prompt_tuning import families
from prompt_tuning.checkpoint import backbone, card, prompts
from prompt_tuning.checkpoint.formats import huggingface, peft, t5x, t5x_orbax
from prompt_tuning.data.files import TextFiles
from prompt_tuning.data.readers.records import BadRows
from prompt_tuning.errors import CheckpointError, UserError
from prompt_tuning.exchange import adapters, inspection, peft_layers
from prompt_tuning.methods import LoRA
from prompt_tuning.t5 import T5Config

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
CONFIG = T5Config(8, 4, 2, 2, 4, 1, 1)
EMBEDDING = "token_embedder/embedding"
LABELS = ("no", "yes")
ROWS = [{"text": f"text {i}", "label": LABELS[i % 2]} for i in range(6)]
# What a damaged or hostile file may say where a number, a name or a kind was.
WORDS = (b"-1", b"0", b"1e999", b"9" * 30, b"null", b"[]", b"{}", b'"', b"\x00", b"\xff", b"../x")


def leaves() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = huggingface.shapes_of(CONFIG)
    return {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}


def lora_leaves() -> dict[str, np.ndarray]:
    blocks = ("encoder/layers_0/attention", "decoder/layers_0/self_attention")
    blocks += ("decoder/layers_0/encoder_decoder_attention",)
    shapes = {"a": (4, 2), "b": (2, 4)}
    return {
        f"{block}/lora_query/{part}": np.ones(shape, np.float32)
        for block in blocks
        for part, shape in shapes.items()
    }


def read_backbone(path: Path) -> None:
    """Reads a backbone as a run, `convert` and `recycle` do."""
    shapes = huggingface.shapes_of(CONFIG)
    attempt(lambda: backbone.load_leaf(path, EMBEDDING))
    wanted = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    attempt(lambda: backbone.load(path, wanted))
    for leaf in backbone.open_leaves(path, shapes).values():
        attempt(lambda leaf=leaf: np.asarray(leaf))


def read_rows(path: Path) -> None:
    for bad_rows in (0, 100):
        attempt(lambda n=bad_rows: TextFiles(train=str(path), labels=LABELS, bad_rows=BadRows(n)))
        files = TextFiles(train=str(path), labels=LABELS, bad_rows=BadRows(bad_rows))
        attempt(lambda files=files: files.rows("train"))


def attempt(function: Callable[[], object]) -> None:
    """Calls a function, which may raise only errors for the user, of one line."""
    message = ""
    try:
        function()
    except (CheckpointError, UserError) as error:
        message = str(error)
    assert "\n" not in message


def write_files(folder: Path) -> None:
    t5x.write_checkpoint(folder / "t5x", leaves(), step=3)
    t5x_orbax.write_checkpoint(folder / "orbax", leaves(), step=3)
    huggingface.save(folder / "hf", leaves(), CONFIG)
    huggingface.save(folder / "sharded", leaves(), CONFIG, shard_bytes=1000)
    backbone.save(folder / "ours.safetensors", leaves())
    prompts.save(folder / "prompt.npy", np.ones((3, 4)))
    prompts.save(folder / "prompt.safetensors", np.ones((3, 4)))
    peft.save_prompt(folder / "adapter", np.ones((3, 4), np.float32))
    peft_layers.save(folder / "lora", LoRA(2, 2.0, ("query",), None), lora_leaves())
    save_file(lora_leaves(), folder / "trained.safetensors")
    fields = dict.fromkeys(card.Card.__dataclass_fields__, "")
    fields |= {"d_model": 4, "length": 3, "learning_rate": 0.3, "steps": 9, "metric": {"a": 0.5}}
    fields["trained_with"] = card.TrainedWith({"a": 1}, ("b",), ("c",), {"inputs": 8}, "")
    card.save(folder / "prompt.npy", card.Card(**fields))
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (folder / "rows.jsonl").write_text(lines)
    (folder / "packed.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    table = "text,label\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in ROWS)
    (folder / "rows.csv").write_text(table)


def largest(folder: Path) -> Path:
    return max(filter(Path.is_file, folder.rglob("*")), key=lambda path: path.stat().st_size)


# The file to mutate, what reads it, and what that is given.
CASES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "T5X index": ("t5x/checkpoint", read_backbone, "t5x"),
    "T5X array": (f"t5x/target.{EMBEDDING.replace('/', '.')}/.zarray", read_backbone, "t5x"),
    "T5X chunk": (f"t5x/target.{EMBEDDING.replace('/', '.')}/0.0", read_backbone, "t5x"),
    "Orbax tree": ("orbax/state/_METADATA", read_backbone, "orbax"),
    "Orbax manifest": ("orbax/state/manifest.ocdbt", read_backbone, "orbax"),
    "Orbax data": ("orbax/state/d", read_backbone, "orbax"),
    "Hugging Face weights": ("hf/model.safetensors", read_backbone, "hf"),
    "Hugging Face index": ("sharded/model.safetensors.index.json", read_backbone, "sharded"),
    "Hugging Face config": ("hf/config.json", families.read, "hf"),
    "our backbone": ("ours.safetensors", read_backbone, "ours.safetensors"),
    "prompt .npy": ("prompt.npy", prompts.load, "prompt.npy"),
    "prompt .safetensors": ("prompt.safetensors", prompts.load, "prompt.safetensors"),
    "prompt's card": ("prompt.card.json", card.read, "prompt.npy"),
    "adapter's config": ("adapter/adapter_config.json", prompts.load, "adapter"),
    "adapter's weights": ("adapter/adapter_model.safetensors", prompts.load, "adapter"),
    "LoRA's config": ("lora/adapter_config.json", peft_layers.load, "lora"),
    "LoRA's weights": ("lora/adapter_model.safetensors", peft_layers.load, "lora"),
    "trained leaves": (
        "trained.safetensors",
        lambda path: adapters.read(str(path), lora_alpha=2.0),
        "trained.safetensors",
    ),
    "JSON lines": ("rows.jsonl", read_rows, "rows.jsonl"),
    "packed JSON lines": ("packed.jsonl.gz", read_rows, "packed.jsonl.gz"),
    "table": ("rows.csv", read_rows, "rows.csv"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    write_files(folder)
    return folder


@st.composite
def mutated(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` after up to three changes: bytes flipped, removed, inserted, doubled or cut off."""
    for _ in range(draw(st.integers(1, 3))):
        i = draw(st.integers(0, max(0, len(content) - 1)))
        j = i + draw(st.integers(1, 16))
        match draw(st.sampled_from(["flip", "word", "cut", "put", "double", "end"])):
            case "flip":
                new = bytes(byte ^ draw(st.integers(1, 255)) for byte in content[i : i + 1])
                content = content[:i] + new + content[i + 1 :]
            case "word":
                content = content[:i] + draw(st.sampled_from(WORDS)) + content[j:]
            case "cut":
                content = content[:i] + content[j:]
            case "put":
                content = content[:i] + draw(st.binary(min_size=1, max_size=16)) + content[i:]
            case "double":
                content = content[:j] + content[i:]
            case "end":
                content = content[:i]
    return content


def limits(examples: int) -> settings:
    return settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@pytest.mark.parametrize(("name", "read", "argument"), CASES.values(), ids=CASES.keys())
def test_mutated_file(folder, name, read, argument):
    path = folder / name
    path = largest(path) if path.is_dir() else path
    whole = path.read_bytes()
    read(folder / argument)  # unchanged, it can be read

    @limits(25)
    @given(content=mutated(whole))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        attempt(lambda: read(folder / argument))
        attempt(lambda: inspect(folder / argument))

    try:
        check()
    finally:
        path.write_bytes(whole)


def inspect(path: Path) -> None:
    contents = inspection.contents_of(path)
    inspection.lines(contents)
    if contents.prompt:
        inspection.prompt_lines(contents.prompt())
