"""Bad input of every kind, to every command: one line, status 2, nothing written.

Mistakes in the settings of train, eval and infer are in test_cli.py.
"""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from safetensors.numpy import save_file

from prompt_tuning.checkpoint import backbone, prompts
from prompt_tuning.checkpoint.formats import huggingface, peft, t5x, t5x_orbax
from prompt_tuning.runs.eval import evaluate
from prompt_tuning.runs.pretrain import pretrain
from prompt_tuning.runs.suite import train_tasks
from prompt_tuning.runs.train import train
from prompt_tuning.t5 import preset
from prompt_tuning.testing import assert_mistake, run_command

CONFIG = preset("nano")
NAN = np.full((4, 16), np.nan, np.float32)


class Planted:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def leaves() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = huggingface.shapes_of(CONFIG)
    return {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}


def adapter(folder: Path, config: dict, **tensors: np.ndarray) -> None:
    folder.mkdir()
    config = {"task_type": "SEQ_2_SEQ_LM", "num_virtual_tokens": 4, **config}
    (folder / peft.CONFIG).write_text(json.dumps(config))
    save_file(tensors, folder / peft.WEIGHTS)


def header(**entries: object) -> bytes:
    """A safetensors file of a header alone."""
    encoded = json.dumps(entries).encode()
    return len(encoded).to_bytes(8, "little") + encoded


def write_prompts(folder: Path) -> None:
    prompts.save(folder / "prompt.npy", np.ones((4, 16)))
    prompts.save(folder / "wide.npy", np.ones((4, 17)))
    prompts.save(folder / "long.npy", np.ones((5, 16)))
    np.save(folder / "flat.npy", np.ones(16))
    np.save(folder / "whole.npy", np.ones((4, 16), int))
    np.save(folder / "nan.npy", NAN)
    np.save(folder / "none.npy", np.ones((0, 16)))
    np.save(folder / "objects.npy", np.array([Planted(folder / "ran")], object), allow_pickle=True)
    (folder / "cut.npy").write_bytes((folder / "prompt.npy").read_bytes()[:-1])
    huge = b"{'descr': '<f4', 'fortran_order': False, 'shape': (4000000000000, 16), }"
    (folder / "huge.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(huge).to_bytes(2, "little") + huge)
    np.savez(folder / "pack.npz", prompt=np.ones((4, 16)))
    save_file({"other": np.ones((4, 16), np.float32)}, folder / "other.safetensors")
    (folder / "empty.safetensors").touch()
    (folder / "empty.npy").touch()
    for name in ("pickle.npy", "pickle.bin", "pickle.pt", "pickle.safetensors"):
        (folder / name).write_bytes(pickle.dumps(Planted(folder / "ran")))


def write_backbones(folder: Path) -> None:
    plain = leaves()
    backbone.save(folder / "nano.safetensors", plain, "float32")
    content = (folder / "nano.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(content[:-1])
    claim = {"dtype": "F32", "shape": [10**12, 16], "data_offsets": [0, 64 * 10**12]}
    (folder / "huge.safetensors").write_bytes(header(**{"token_embedder/embedding": claim}))
    save_file({"a": np.ones(4, np.int8)}, folder / "int8.safetensors")
    backbone.save(
        folder / "part.safetensors", {"encoder/encoder_norm/scale": np.ones(16)}, "float32"
    )
    table = {"token_embedder/embedding": np.full((256, 16), np.nan)}
    backbone.save(folder / "nan.safetensors", table, "float32")
    huggingface.save(folder / "hf", plain, CONFIG)
    huggingface.save(folder / "hf_odd", plain, CONFIG)
    changed = json.loads((folder / "hf_odd" / "config.json").read_text()) | {"d_model": -3}
    (folder / "hf_odd" / "config.json").write_text(json.dumps(changed))
    huggingface.save(folder / "hf_text", plain, CONFIG)
    (folder / "hf_text" / "config.json").write_text("{d_model: 3}")
    huggingface.save(folder / "hf_huge", plain, CONFIG)
    (folder / "hf_huge" / "config.json").write_text(json.dumps(changed | {"d_model": 10**30}))
    t5x.write_checkpoint(folder / "t5x" / "checkpoint_1", plain, step=1)
    t5x.write_checkpoint(folder / "t5x_lost" / "checkpoint_1", plain, step=1)
    (folder / "t5x_lost/checkpoint_1/target.token_embedder.embedding/0.0").unlink()
    t5x.write_checkpoint(folder / "t5x_cut" / "checkpoint_1", plain, step=1)
    index = folder / "t5x_cut/checkpoint_1/checkpoint"
    index.write_bytes(index.read_bytes()[:-9])
    t5x_orbax.write_checkpoint(folder / "orbax" / "checkpoint_1", plain, step=1)
    (folder / "orbax/checkpoint_1/state/_METADATA").write_text("{\"('target', ")
    (folder / "run/checkpoint_1/state").mkdir(parents=True)
    (folder / "run/checkpoint_1/_CHECKPOINT_METADATA").touch()
    (folder / "run/checkpoint_1/state/_METADATA").write_text("{\"('trained', ")
    (folder / "pickled").mkdir()
    (folder / "pickled/pytorch_model.bin").write_bytes(pickle.dumps(Planted(folder / "ran")))
    (folder / "empty").mkdir()


def write_adapters(folder: Path) -> None:
    rows = np.ones((4, 16), np.float32)
    peft.save_prompt(folder / "adapter", rows)
    adapter(folder / "prefix", {"peft_type": "PREFIX_TUNING"}, prompt_embeddings=rows)
    adapter(folder / "short", {"peft_type": "PROMPT_TUNING"}, prompt_embeddings=rows)
    adapter(folder / "lora", {"peft_type": "LORA", "r": 2}, other=rows)
    one = {"peft_type": "PROMPT_TUNING", "num_transformer_submodules": 1}
    adapter(folder / "nan_adapter", one, prompt_embeddings=NAN)
    several = {"peft_type": "MULTITASK_PROMPT_TUNING", "num_tasks": 2, "num_ranks": 1}
    adapter(folder / "several", several, prompt_embeddings=np.ones((8, 16), np.float32))
    adapter(folder / "no_json", one, prompt_embeddings=rows)
    (folder / "no_json" / peft.CONFIG).write_text("{")
    adapter(folder / "bin_adapter", one, prompt_embeddings=rows)
    (folder / "bin_adapter" / peft.WEIGHTS).unlink()
    (folder / "bin_adapter" / peft.PICKLE).write_bytes(pickle.dumps(Planted(folder / "ran")))
    lora = {"encoder/layers_0/attention/lora_query/a": rows}
    save_file(lora, folder / "lora_half.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Every kind of file, most of them damaged."""
    folder = tmp_path_factory.mktemp("bad")
    write_prompts(folder)
    write_backbones(folder)
    write_adapters(folder)
    (folder / "words.txt").write_text("words\n")
    (folder / "rows.jsonl").write_text('{"text": "a", "label": "y"}\n{"text": "b", "label": "n"}\n')
    for folder_of_data in ("data/sst2", "no_data"):
        (folder / folder_of_data).mkdir(parents=True)
    (folder / "data/sst2/train.jsonl").write_text('{"sentence": "a"}\n')
    return folder


def convert(source: str, *more: str) -> tuple[str, list[str]]:
    to = ["--to=new/checkpoint_1", "--format=t5x", "--model=nano"]
    return "prompt_tuning.convert", [f"--from={source}", *to, *more]


def adapters(source: str, *more: str) -> tuple[str, list[str]]:
    return "prompt_tuning.adapters", [f"--from={source}", "--to=new", "--format=peft", *more]


def inspect(*arguments: str) -> tuple[str, list[str]]:
    return "prompt_tuning.inspect", list(arguments)


def transfer(*more: str) -> tuple[str, list[str]]:
    files = ["--prompt=prompt.npy", "--sources=prompt.npy,long.npy"]
    return "prompt_tuning.transfer", [*files, *more]


def recycle(*more: str) -> tuple[str, list[str]]:
    given = ["--prompt=prompt.npy", "--source=nano.safetensors", "--target=nano.safetensors"]
    rows = ["--skip=3", "--tokens=100", "--output=new.npy"]
    return "prompt_tuning.recycle", [*given, *rows, *more]


def padding_report(*more: str) -> tuple[str, list[str]]:
    return "prompt_tuning.data.padding_report", ["--json=new", *more]


def show_tasks(*more: str) -> tuple[str, list[str]]:
    return "prompt_tuning.data.show_tasks", list(more)


NANO = [
    "--gin_file=models/demo.gin",
    "--gin.MODEL_PRESET=nano",
    "--gin.ACTIVATION_DTYPE=float32",
    "--gin.BATCH_SIZE=8",
]
FILES = ["--gin.TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 4}", "--gin.CLASS_LABELS=('y', 'n')"]


def evaluation(*more: str):
    data = ["--gin_file=runs/eval.gin", "--gin.EVAL_OUTPUT_DIR=new", "--gin.TEST_FILE=rows.jsonl"]
    given = ["--gin.INITIAL_CHECKPOINT_PATH=nano.safetensors", "--gin.PROMPT_FILE=prompt.npy"]
    return evaluate, [*NANO, *data, *FILES, *given, *more]


def training(*more: str):
    data = ["--gin.TRAIN_FILE=rows.jsonl", "--gin.VALIDATION_FILE=rows.jsonl", *FILES]
    run_files = ["--gin_file=methods/prompt_tuning.gin", "--gin_file=runs/finetune.gin"]
    return train, [*NANO, *run_files, "--gin.MODEL_DIR=new", *data, *more]


def suites(*more: str):
    files = ["--gin_file=methods/prompt_tuning.gin", "--gin_file=runs/super_glue.gin"]
    return train_tasks, [*NANO, *files, "--gin.MODEL_DIR=new", *more]


def pretraining(*more: str):
    files = ["--gin_file=runs/pretrain.gin", "--gin.MODEL_DIR=new", "--gin.CORPUS=no_data"]
    files += ["--gin.LABELLED=none", "--gin.TABLE=none"]
    return pretrain, [*NANO, *files, *more]


CASES = {
    # flags
    "no flags": (("prompt_tuning.convert", []), "Flag --from must have a value"),
    "unknown flag": (convert("hf", "--form=t5x"), "Unknown command line flag 'form'"),
    "no format of ours": (convert("hf", "--format=tf"), "--format=tf: value should be one of"),
    "no dtype of ours": (convert("hf", "--dtype=int8"), "--dtype=int8: value should be one of"),
    "word besides flags": (convert("hf", "more"), "unexpected argument 'more'"),
    "word, not a number": (adapters("adapter", "--task=one"), "--task=one"),
    "number too low": (transfer("--top_k=0", "--output=new.npy"), "--top_k=0"),
    "tokens below 1": (recycle("--tokens=0"), "--tokens=0"),
    "nothing to inspect": (inspect(), "give one path"),
    "two to inspect": (inspect("a", "b"), "give one path"),
    "no report": (("prompt_tuning.report", ["params"]), "usage: python -m prompt_tuning.report"),
    # backbones, by convert
    "no backbone": (convert("absent"), "absent: no such file or folder"),
    "backbone of another size": (
        convert("hf", "--model=demo"),
        "d_model = 16, where the model has 256",
    ),
    "unknown preset": (convert("hf", "--model=nanno"), "--model: no preset named 'nanno'"),
    "target exists": (convert("hf", "--to=hf"), "--to=hf: already exists"),
    "target below a file": (convert("hf", "--to=words.txt/checkpoint_1"), "words.txt"),
    "name that T5X does not read": (convert("hf", "--to=new"), "checkpoint_STEP"),
    "no suffix": (convert("hf", "--to=new", "--format=safetensors"), "must end in .safetensors"),
    "other scheme": (convert("http://host/a"), "must be a local path, gs:// or s3://"),
    "text for a backbone": (convert("words.txt"), "words.txt: the index is unreadable"),
    "folder without one": (convert("empty"), "empty: not a native T5X checkpoint"),
    "folder above one": (convert("t5x"), "give one of the folders in it: checkpoint_1"),
    "cut safetensors": (convert("cut.safetensors"), "not a whole safetensors file"),
    "empty safetensors": (convert("empty.safetensors"), "not a whole safetensors file"),
    "safetensors of a huge claim": (convert("huge.safetensors"), "not a whole safetensors file"),
    "safetensors of integers": (convert("int8.safetensors"), "a is stored as I8"),
    "part of a backbone": (convert("part.safetensors"), "missing: ["),
    "pickled safetensors": (convert("pickle.safetensors"), "not a whole safetensors file"),
    "pickled .bin": (convert("pickle.bin"), ".bin files are pickles"),
    "pickled .pt": (convert("pickle.pt"), ".pt files are pickles"),
    "folder of pickles": (convert("pickled"), ".bin files are pickles"),
    "lost T5X chunk": (convert("t5x_lost/checkpoint_1"), "token_embedder/embedding is missing"),
    "cut T5X index": (convert("t5x_cut/checkpoint_1"), "the index is unreadable"),
    "damaged Orbax": (convert("orbax/checkpoint_1"), "_METADATA is damaged"),
    "run for a backbone": (convert("run/checkpoint_1"), "Orbax checkpoint, but not one of a T5X"),
    "config of no size": (convert("hf_odd", "--model="), "no preset named ''"),
    "prompt for a backbone": (convert("prompt.npy"), "the index is unreadable"),
    "adapter for a backbone": (convert("adapter"), "not a native T5X checkpoint"),
    # config.json
    "negative width": (
        ("prompt_tuning.convert", ["--from=hf_odd", "--to=new_hf", "--format=huggingface"]),
        "d_model = -3: must be at least 1",
    ),
    "huge width": (
        ("prompt_tuning.convert", ["--from=hf_huge", "--to=new_hf", "--format=huggingface"]),
        "does not fit the model",
    ),
    "config that is not JSON": (
        ("prompt_tuning.convert", ["--from=hf_text", "--to=new_hf", "--format=huggingface"]),
        "config.json: not valid JSON",
    ),
    "no config": (
        (
            "prompt_tuning.convert",
            ["--from=nano.safetensors", "--to=new_hf", "--format=huggingface"],
        ),
        "give --model",
    ),
    # backbones, by train and eval
    "train: cut backbone": (
        training("--gin.INITIAL_CHECKPOINT_PATH=cut.safetensors"),
        "not a whole safetensors file",
    ),
    "train: pickled backbone": (
        training("--gin.INITIAL_CHECKPOINT_PATH=pickled"),
        ".bin files are pickles",
    ),
    "eval: lost T5X chunk": (
        evaluation("--gin.INITIAL_CHECKPOINT_PATH=t5x_lost/checkpoint_1"),
        "token_embedder/embedding is missing or damaged",
    ),
    "eval: huge safetensors": (
        evaluation("--gin.INITIAL_CHECKPOINT_PATH=huge.safetensors"),
        "not a whole safetensors file",
    ),
    # prompts, by eval
    "flat prompt": (evaluation("--gin.PROMPT_FILE=flat.npy"), "a prompt is a matrix [P, D]"),
    "prompt of integers": (evaluation("--gin.PROMPT_FILE=whole.npy"), "of floats, not int64"),
    "prompt that is not finite": (evaluation("--gin.PROMPT_FILE=nan.npy"), "that are not finite"),
    "prompt of no vectors": (
        evaluation("--gin.PROMPT_FILE=none.npy"),
        "none.npy: a prompt must have at least",
    ),
    "cut prompt": (evaluation("--gin.PROMPT_FILE=cut.npy"), "cut.npy: not a prompt in .npy"),
    "empty prompt": (evaluation("--gin.PROMPT_FILE=empty.npy"), "empty.npy: not a prompt"),
    "huge prompt": (evaluation("--gin.PROMPT_FILE=huge.npy"), "huge.npy: not a prompt in .npy"),
    "wide prompt": (evaluation("--gin.PROMPT_FILE=wide.npy"), "prompt is 17 wide, the backbone 16"),
    "archive for a prompt": (evaluation("--gin.PROMPT_FILE=pack.npz"), "not a prompt in .npy"),
    "pickled prompt": (evaluation("--gin.PROMPT_FILE=pickle.npy"), "not a prompt in .npy"),
    "prompt of objects": (evaluation("--gin.PROMPT_FILE=objects.npy"), "not a prompt in .npy"),
    "prompt of another name": (
        evaluation("--gin.PROMPT_FILE=other.safetensors"),
        "got ['other']",
    ),
    "folder for a prompt": (evaluation("--gin.PROMPT_FILE=empty"), "empty: no such prompt file"),
    "adapter for a prompt": (evaluation("--gin.PROMPT_FILE=lora"), 'peft_type = "LORA"'),
    # vocabularies
    "no vocabulary": (evaluation("--gin.VOCABULARY_FILE=/no"), "/no"),
    "text for a vocabulary": (evaluation("--gin.VOCABULARY_FILE=words.txt"), "words.txt"),
    "empty vocabulary": (evaluation("--gin.VOCABULARY_FILE=empty.npy"), "empty.npy"),
    "folder for a vocabulary": (evaluation("--gin.VOCABULARY_FILE=empty"), "empty"),
    "padding_report: vocabulary": (
        padding_report("--task=boolq", "--vocabulary=words.txt"),
        "word",
    ),
    "padding_report: short rows": (
        padding_report("--task=boolq", "--packed_length=256"),
        "--packed_length=256: ",
    ),
    "padding_report: a long prompt": (
        padding_report("--task=boolq", "--prompt_length=600"),
        "give at least 1112",
    ),
    "padding_report: one position short": (
        padding_report("--task=boolq", "--packed_length=531", "--prompt_length=20"),
        "give at least 532",
    ),
    "inspect: vocabulary alone": (inspect("prompt.npy", "--vocabulary=words.txt"), "--vocabulary"),
    "inspect: text for words": (
        inspect("prompt.npy", "--backbone=nano.safetensors", "--vocabulary=words.txt"),
        "words.txt",
    ),
    # adapters
    "no adapter": (adapters("absent"), "absent: no such prompt file"),
    "adapter of another kind": (adapters("prefix"), 'peft_type = "PREFIX_TUNING"'),
    "adapter with too few rows": (adapters("short"), "prompt_embeddings: expected [8, any]"),
    "adapter of odd tensors": (adapters("lora"), "lora_alpha = null"),
    "adapter that is not finite": (adapters("nan_adapter"), "that are not finite"),
    "adapter of several": (adapters("several"), "prompt_tuning.adapters --task"),
    "task that it has not": (adapters("several", "--task=2"), "there is no task 2"),
    "task below 0": (adapters("several", "--task=-1"), "there is no task -1"),
    "task of a prompt": (adapters("prompt.npy", "--task=0"), "--task=0: only a PEFT adapter"),
    "adapter without JSON": (adapters("no_json"), "adapter_config.json: not valid JSON"),
    "pickled adapter": (adapters("bin_adapter"), "adapter_model.bin: a pickle"),
    "LoRA without alpha": (adapters("lora_half.safetensors"), "--lora_alpha=None"),
    "LoRA of no alpha": (adapters("lora_half.safetensors", "--lora_alpha=0"), "--lora_alpha=0"),
    "LoRA of NaN": (adapters("lora_half.safetensors", "--lora_alpha=nan"), "must be a finite num"),
    "half a LoRA": (
        adapters("lora_half.safetensors", "--lora_alpha=2"),
        "leaves other than LoRA's",
    ),
    "alpha of a prompt": (adapters("prompt.npy", "--lora_alpha=2"), "--lora_alpha=2.0"),
    "adapter that exists": (adapters("prompt.npy", "--to=adapter"), "adapter: already exists"),
    "suffix of no prompt": (
        adapters("adapter", "--format=prompt", "--to=new.bin"),
        ".npy or .safe",
    ),
    # inspect
    "inspect: nothing": (inspect("absent"), "absent: no such file or folder"),
    "inspect: text": (inspect("words.txt"), "words.txt: not a prompt, trained leaves"),
    "inspect: empty folder": (inspect("empty"), "empty: not a prompt, trained leaves"),
    "inspect: pickles": (inspect("pickled"), ".bin files are pickles"),
    "inspect: objects": (inspect("objects.npy"), "not a whole .npy of numbers"),
    "inspect: cut": (inspect("cut.npy"), "not a whole .npy of numbers"),
    "inspect: huge": (inspect("huge.npy"), "not a whole .npy of numbers"),
    "inspect: damaged T5X": (inspect("t5x_cut"), "the index is unreadable"),
    "inspect: damaged Orbax": (inspect("orbax"), "_METADATA is damaged"),
    "inspect: tokens of no prompt": (
        inspect("nano.safetensors", "--backbone=nano.safetensors"),
        "--backbone: nano.safetensors has no prompt",
    ),
    "inspect: another width": (
        inspect("wide.npy", "--backbone=nano.safetensors"),
        "16 wide, the prompt 17",
    ),
    # transfer and recycle
    "transfer: no prompt": (transfer("--prompt=absent"), "absent: no such prompt file"),
    "transfer: no sources": (transfer("--sources=absent*"), "--sources=absent*: no such file"),
    "transfer: other width": (transfer("--sources=wide.npy"), "wide.npy: the prompt is 17 wide"),
    "transfer: half an average": (transfer("--top_k=1"), "--top_k and --output belong together"),
    "transfer: too many": (transfer("--top_k=2", "--output=new.npy"), "there are 1 source prompts"),
    "transfer: below a file": (
        transfer("--top_k=1", "--output=words.txt/new.npy"),
        "words.txt",
    ),
    "recycle: prompt": (recycle("--prompt=nan.npy"), "values that are not finite"),
    "recycle: width": (recycle("--prompt=wide.npy"), "17 wide, nano.safetensors 16"),
    "recycle: no embeddings": (recycle("--target=part.safetensors"), "contains no token_embedder"),
    "recycle: huge": (recycle("--target=huge.safetensors"), "not a whole safetensors file"),
    "recycle: embeddings that are not finite": (
        recycle("--target=nan.safetensors"),
        "nan.safetensors: token_embedder/embedding has values that are not finite",
    ),
    "recycle: learning rate": (
        recycle("--method=mlp", "--learning_rate=1e30", "--epochs=1"),
        "--learning_rate=1e+30: mlp diverges; lower it",
    ),
    "recycle: tokens": (recycle("--tokens=9999"), "--skip=3 --tokens=9999"),
    # data
    "padding_report: no task": (padding_report(), "--task"),
    "padding_report: unknown task": (padding_report("--task=bolq"), "bolq"),
    "padding_report: no data": (padding_report("--task=sst2", "--data_dir=no_data"), "no_data"),
    "padding_report: field": (padding_report("--task=sst2", "--data_dir=data"), "train.jsonl"),
    "show_tasks: no data": (show_tasks("--data_dir=absent"), "absent"),
    "show_tasks: no module": (show_tasks("--module=no.module"), "--module=no.module"),
    # suite and pretrain
    "suite: unknown setting": (suites("--gin.TRAINSTEPS=3"), "did you mean TRAIN_STEPS"),
    "suite: no data": (suites("--gin.BENCHMARKS_DIR=no_data"), "no_data"),
    "suite: a scope of no task": (
        suites("--gin.bolq/loop.Fit.total_steps=3"),
        "there is no scope bolq; available: boolq",
    ),
    "pretrain: no corpus": (pretraining("--gin.CORPUS=absent"), "absent"),
    "pretrain: empty corpus": (pretraining(), "no_data"),
    "pretrain: no steps": (pretraining("--gin.TRAIN_STEPS=0"), "must be below TRAIN_STEPS = 0"),
    "pretrain: all steps are warmup": (
        pretraining("--gin.TRAIN_STEPS=200"),
        "WARMUP_STEPS = 200: must be below TRAIN_STEPS = 200",
    ),
}


@pytest.mark.parametrize(("command", "part"), CASES.values(), ids=CASES.keys())
def test_is_one_line(folder, monkeypatch, command, part):
    monkeypatch.chdir(folder)
    before = names(folder)
    name, arguments = command
    assert_mistake(run_command(name, *arguments), part)
    assert names(folder) == before


def names(folder: Path) -> list[Path]:
    """Of files; the parents of one that could not be written may stay."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_the_planted_pickles_would_have_run(folder):
    mark = folder / "ran"
    assert not mark.exists()
    for name in ("pickle.npy", "pickle.bin", "pickle.pt", "pickle.safetensors"):
        pickle.loads((folder / name).read_bytes())
        assert mark.exists()
        mark.unlink()


def test_in_a_process_of_its_own(folder):
    (module, arguments), part = CASES["pickled .bin"]
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=folder, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: ") and part in done.stderr


def test_flags_are_as_before():
    """A flag that `run_command` left behind would hide that another command lacks it."""
    before = set(flags.FLAGS)
    name, arguments = inspect("absent")
    run_command(name, *arguments)
    assert set(flags.FLAGS) == before
