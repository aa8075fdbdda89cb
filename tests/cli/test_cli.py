"""The commands: a mistake is one line and status 2, with nothing written; good runs work."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from absl import flags

from prompt_tuning import embedded, methods, sharding
from prompt_tuning.checkpoint import backbone, prompts
from prompt_tuning.cli import gin_command, gin_parsing, gin_settings
from prompt_tuning.errors import UserError
from prompt_tuning.methods import ModelTuning
from prompt_tuning.model import summary
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.runs import ensemble, pretrain
from prompt_tuning.runs import loading as run_model
from prompt_tuning.runs.eval import evaluate
from prompt_tuning.runs.infer import infer
from prompt_tuning.runs.train import train
from prompt_tuning.runtime import connectivity, preemption
from prompt_tuning.t5.config import preset
from prompt_tuning.testing import CommandResult, assert_mistake, run_command, tiny_config

# Nano-size, on bytes, so that every command takes seconds.
NANO = """
from __gin__ import dynamic_registration
include 'common/t5.gin'
import seqio
MODEL_PRESET = 'nano'
ACTIVATION_DTYPE = 'float32'
VOCABULARY = @seqio.ByteVocabulary()
seqio.ByteVocabulary.extra_ids = 0
"""
SMALL = (
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 4}",
    "--gin.BATCH_SIZE=8",
    "--gin.SampledVocabulary.top=100",
)
TRAIN = ("--gin_file=methods/prompt_tuning.gin", "--gin_file=runs/finetune.gin", *SMALL)
TRAIN += ("--gin.EVAL_BATCH_SIZE=8", "--gin.PROMPT_LENGTH=4", "--gin.TRAIN_STEPS=2")
LABELS = "--gin.CLASS_LABELS=('y', 'n')"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Data, a backbone, prompts and gin files to make commands of; nothing is written here."""
    folder = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    shapes = ParamSplit.of(preset("nano"), ModelTuning()).shapes
    leaves = {name: rng.normal(0, 0.1, s.shape).astype(np.float32) for name, s in shapes.items()}
    backbone.save(folder / "nano.safetensors", leaves, "float32")
    prompts.save(folder / "prompt.npy", rng.normal(size=(4, 16)))
    prompts.save(folder / "wide.npy", rng.normal(size=(4, 17)))
    rows = [{"text": f"text {i}", "label": "yn"[i % 2]} for i in range(16)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "nano.gin").write_text(NANO)
    (folder / "broken.gin").write_text("A = 1\nB = 3 4\n")
    (folder / "open.gin").write_text("A = (1,\n")
    dynamic = "from __gin__ import dynamic_registration\n"
    (folder / "t5x.gin").write_text(f"{dynamic}from t5x import utils\nimport t5x.no_such\n")
    (folder / "unknown.gin").write_text("A = 1\n\nnothing.a = 1\n")
    return folder


@pytest.fixture(scope="module", autouse=True)
def _process_state() -> Iterator[None]:
    """Puts back the demo tasks, which a run registers anew."""
    yield
    from prompt_tuning.data import tasks

    tasks.register_demo_tasks(tasks.vocabulary(embedded.vocabulary()))


@pytest.fixture
def command(folder) -> Callable[..., CommandResult]:
    """Runs a command in this process; "{folder}" in arguments is the folder of inputs."""

    def run(function: Callable, *arguments: str) -> CommandResult:
        words = [argument.replace("{folder}", str(folder)) for argument in arguments]
        return run_command(function, *words)

    return run


def nano(*arguments: str) -> list[str]:
    model = ("--gin_file={folder}/nano.gin", *TRAIN)
    return [*model, "--gin.INITIAL_CHECKPOINT_PATH={folder}/nano.safetensors", *arguments]


def on_files(*arguments: str) -> list[str]:
    files = [f"--gin.{split}_FILE={{folder}}/rows.jsonl" for split in ("TRAIN", "VALIDATION")]
    return nano(*files, LABELS, *arguments)


# Arguments besides MODEL_DIR, and a part of the line.
MISTAKES = {
    # the issue's
    "missing data file": (on_files("--gin.TRAIN_FILE=/no/a.jsonl"), "/no/a.jsonl: no such file"),
    "wrong field": (on_files("--gin.TEXT_FIELD=txt"), "line 1: no field 'txt'"),
    "label not listed": (on_files("--gin.CLASS_LABELS=('y', 'z')"), "line 2: 'label' is 'n'"),
    "no checkpoint": (on_files("--gin.INITIAL_CHECKPOINT_PATH=/no"), "/no: no such file or folder"),
    "checkpoint of another size": (on_files("--gin.MODEL_PRESET=demo"), "does not fit the model"),
    "unknown parameter": (on_files("--gin.train.foo=3"), "train.foo = 3"),
    "prompt file that is not read": (
        on_files("--gin.PROMPT_FILE={folder}/wide.npy"),
        "PROMPT_FILE: PROMPT_INIT does not read it; give --gin.PROMPT_INIT='@FromFile()'",
    ),
    "prompt file of another width": (
        on_files("--gin.PROMPT_INIT=@FromFile()", "--gin.PROMPT_FILE={folder}/wide.npy"),
        "the prompt is 17 wide, the backbone 16",
    ),
    "constant tokens of what is padded": (
        on_files("--gin.TOKENS_PER_BATCH=64"),
        "TOKENS_PER_BATCH = 64: is for BATCHING = 'bucketed', not 'padded'",
    ),
    "too few constant tokens": (
        on_files("--gin.TOKENS_PER_BATCH=63", "--gin.BATCHING=bucketed"),
        "TOKENS_PER_BATCH = 63: too few for 8 rows",
    ),
    "prompt length 0": (on_files("--gin.PROMPT_LENGTH=0"), "PROMPT_LENGTH = 0, DECODER_"),
    "long target": (on_files("--gin.CLASS_LABELS=('y', 'n', 'maybe')"), "'maybe' has 6 tokens"),
    "long target in training alone": (
        nano(
            "--gin.TRAIN_FILE={folder}/rows.jsonl",
            "--gin.VALIDATION_FILE={folder}/rows.jsonl",
            "--gin.EVAL_METHODS=('generate',)",
            "--gin.LABEL_FIELD=text",
        ),
        "has 7 tokens",
    ),
    "batch that does not divide": (on_files("--gin.BATCH_SIZE=12"), "BATCH_SIZE = 12: must be a"),
    "evaluation batch": (on_files("--gin.EVAL_BATCH_SIZE=4"), "error: EVAL_BATCH_SIZE = 4"),
    # gin
    "unknown macro": (on_files("--gin.TRAINSTEPS=3"), "did you mean TRAIN_STEPS"),
    "macro of another file": (on_files("--gin.SPLIT=test"), "there is no setting SPLIT"),
    "unknown configurable": (on_files("--gin.foo.bar=3"), "foo.bar = 3"),
    "unknown reference": (on_files("--gin.PROMPT_INIT=@Foo()"), "'@Foo()'"),
    "undefined macro": (on_files("--gin.TRAIN_STEPS=%FOO"), "FOO is not set"),
    "no gin file": (["--gin_file=runs/no.gin"], "runs/no.gin. Searched: ., "),
    "broken gin file": (["--gin_file={folder}/broken.gin"], "broken.gin:2: gin cannot read 'B ="),
    "open bracket": (["--gin_file={folder}/open.gin"], "open.gin: EOF in multi-line statement"),
    "T5X's gin file": (
        ["--gin_file={folder}/t5x.gin"],
        "; T5X's gin files are for T5X, which takes prompts as docs/t5x.md says",
    ),
    "place in a gin file": (["--gin_file={folder}/unknown.gin"], "unknown.gin:3: "),
    "macro in small letters": (on_files("--gin.train_steps=3"), "did you mean TRAIN_STEPS"),
    "broken binding": (["--gin_bindings=FOO"], "--gin_bindings"),
    "no files at all": (
        [],
        "no --gin_file configures train; give one of runs/demo.gin, runs/finetune.gin, runs/sup",
    ),
    "T5X's backbone": (on_files("--gin.CHECKPOINT_PATH=/a"), "the backbone is INITIAL_CHECKPOINT"),
    "T5X's examples": (on_files("--gin.EVALUATOR_NUM_EXAMPLES=8"), "EVAL_EXAMPLES is the number"),
    "T5X's steps": (on_files("--gin.TRAIN_STEPS_RELATIVE=0"), "TRAIN_STEPS = 0: must be a whole"),
    "no checkpoint set": (nano("--gin.INITIAL_CHECKPOINT_PATH=%gin.REQUIRED"), "INITIAL_CHECKPOIN"),
    "no model file": (list(TRAIN), "error: MODEL is not set: give a --gin_file=models/NAME.gin"),
    "no method file": (
        ["--gin_file={folder}/nano.gin", *TRAIN[1:]],
        "error: METHOD is not set: give a --gin_file=methods/NAME.gin",
    ),
    "two methods": (
        on_files("--gin_file=methods/lora.gin", "--gin_file=methods/prompt_tuning.gin"),
        "methods/lora.gin, --gin_file=methods/prompt_tuning.gin: one would replace the other",
    ),
    "two models": (
        on_files("--gin_file=models/demo.gin", "--gin_file=models/ladder_s.gin"),
        "models/demo.gin, --gin_file=models/ladder_s.gin: one would replace the other",
    ),
    "class without ()": (on_files("--gin.PROMPT_INIT=@Uniform"), "write @Uniform()"),
    "class as a word": (on_files("--gin.PROMPT_INIT=Uniform"), "must be a reference (@NAME())"),
    "function with ()": (on_files("--gin.OPTIMIZER=@optim.adafactor()"), "adafactor, without ()"),
    "function as a word": (on_files("--gin.OPTIMIZER=adamw"), "must be a reference to a function"),
    # types and ranges
    "steps": (on_files("--gin.TRAIN_STEPS=abc"), "TRAIN_STEPS = 'abc': must be a whole number"),
    "a number as a field": (
        on_files("--gin.TEXT_FIELD=0"),
        """TEXT_FIELD = 0: must be of type str | Sequence[str]; as text it is --gin.TEXT_F""",
    ),
    "a truth value as a field": (
        on_files("--gin.LABEL_FIELD=True"),
        """--gin.LABEL_FIELD="'True'\"""",
    ),
    "numbers as label words": (on_files("--gin.CLASS_LABELS=[1, 2]"), """LABELS="['1', '2']\""""),
    "words without quotes": (
        on_files("--gin.CLASS_LABELS=[y, n]"),
        "CLASS_LABELS = '[y, n]': must be of type Sequence[str]; words in a list need quotes",
    ),
    "a list without an end": (on_files("--gin.CLASS_LABELS=('y', 'n'"), "and brackets an end"),
    "fields with brackets": (on_files("--gin.TEXT_FIELD=[CLS]"), "line 1: no field '[CLS]'"),
    "a field of digits": (on_files("--gin.TEXT_FIELD='0'"), "line 1: no field '0'"),
    "fraction of a step": (on_files("--gin.TRAIN_STEPS=1.5"), "TRAIN_STEPS = 1.5: must be a whole"),
    "dtype": (on_files("--gin.BACKBONE_DTYPE=bf16"), "BACKBONE_DTYPE = 'bf16': choose from"),
    "no steps in a dry run": (
        on_files("--gin.TRAIN_STEPS=0", "--dry_run"),
        "TRAIN_STEPS = 0: must be a whole number from 1",
    ),
    "no steps": (on_files("--gin.TRAIN_STEPS=0"), "TRAIN_STEPS = 0: must be a whole number from 1"),
    "batch of 0": (on_files("--gin.BATCH_SIZE=0"), "BATCH_SIZE = 0"),
    "no evaluation examples": (
        on_files("--gin.EVAL_EXAMPLES=0"),
        "EVAL_EXAMPLES = 0: must be a whole number from 1",
    ),
    "learning rate": (on_files("--gin.LEARNING_RATE=abc"), "LEARNING_RATE = 'abc': must be a num"),
    "prompt length": (on_files("--gin.PROMPT_LENGTH=abc"), "PROMPT_LENGTH = 'abc': must be a whol"),
    "dropout": (on_files("--gin.DROPOUT_RATE=1.0"), "DROPOUT_RATE = 1.0: must be at least 0"),
    "lengths": (on_files("--gin.TASK_FEATURE_LENGTHS=12"), "TASK_FEATURE_LENGTHS = 12"),
    "lengths without one": (on_files("--gin.TASK_FEATURE_LENGTHS={'inputs': 8}"), "LENGTHS = {'in"),
    "labels": (on_files("--gin.CLASS_LABELS=abc"), "CLASS_LABELS = 'abc'"),
    "placement": (on_files("--gin.PROMPT_PLACEMENT=middle"), "PROMPT_PLACEMENT = 'middle'"),
    "preset": (on_files("--gin.MODEL_PRESET=t5"), "no T5 preset named 't5'"),
    "partitions": (on_files("--gin.NUM_PARTITIONS=3"), "NUM_PARTITIONS = 3"),
    "mesh": (on_files("--gin.MESH={'data': 3}"), "MESH = {'data': 3}: the sizes must multiply"),
    "axis rule": (on_files("--gin.AXIS_RULES=(('mlp', 'x'),)"), "'mlp' is divided by x"),
    "axis rules": (on_files("--gin.AXIS_RULES=(('mlp',),)"), "AXIS_RULES = (('mlp',),): must be"),
    "evaluation method": (
        on_files("--gin.EVAL_METHODS=('foo',)"),
        "EVAL_METHODS: unknown method 'foo'",
    ),
    "evaluation as a word": (on_files("--gin.EVAL_METHODS=rank"), "EVAL_METHODS = 'rank': must be"),
    "rank without labels": (on_files("--gin.CLASS_LABELS=()"), "no labels; set CLASS_LABELS"),
    "no prompt file": (on_files("--gin.PROMPT_INIT=@FromFile()"), "set PROMPT_FILE"),
    # data
    "no data": (nano(), "error: no data: set MIXTURE_OR_TASK_NAME"),
    "both data": (on_files("--gin.MIXTURE_OR_TASK_NAME=demo_reviews"), "are both set"),
    "unknown task": (nano("--gin.MIXTURE_OR_TASK_NAME=demo_review"), "did you mean demo_reviews?"),
    "unknown module": (
        nano("--gin.MIXTURE_OR_TASK_MODULE=no.tasks", "--gin.MIXTURE_OR_TASK_NAME=foo"),
        "MIXTURE_OR_TASK_MODULE = 'no.tasks'",
    ),
    "no validation file": (on_files("--gin.VALIDATION_FILE="), "set VALIDATION_FILE"),
    "no training file": (on_files("--gin.TRAIN_FILE="), "set TRAIN_FILE"),
    "too few for few-shot": (
        on_files("--gin.FEW_SHOT=9"),
        "FEW_SHOT = 9: files has only 8 training examples of the class 'y'",
    ),
    # settings that are not read
    **{
        f"{setting.partition('=')[0]} of files for a registered task": (
            nano("--gin.MIXTURE_OR_TASK_NAME=demo_reviews", f"--gin.{setting}"),
            f"gin: {setting.partition('=')[0]}: is read only with TRAIN_FILE or",
        )
        for setting in (
            "TEXT_FIELD=sentence",
            "LABEL_FIELD=y",
            "METRICS=('f1_macro',)",
            "QUOTED_CELLS=True",
        )
    },
    "DATA_DIR without tasks": (on_files("--gin.DATA_DIR=x"), "DATA_DIR: is read only with FILE_T"),
    "BENCHMARKS_DIR for files": (on_files("--gin.BENCHMARKS_DIR=x"), "with MIXTURE_OR_TASK_NAME"),
    "BUCKET_BOUNDS of padded batches": (
        on_files("--gin.BUCKET_BOUNDS=(4, 8)"),
        "gin: BUCKET_BOUNDS: is read only with BATCHING = bucketed; leave",
    ),
    "USE_CACHED_TASKS for files": (on_files("--gin.USE_CACHED_TASKS=True"), "with MIXTURE_OR_TASK"),
    "PRETRAINED_STEPS of another optimizer": (
        on_files("--gin.PRETRAINED_STEPS=0", "--gin.OPTIMIZER=@optax.sgd"),
        "gin: PRETRAINED_STEPS: is read only by the optimizer adafactor; leave it out",
    ),
    "FEW_SHOT_SEED alone": (on_files("--gin.FEW_SHOT_SEED=1"), "is read only with FEW_SHOT; leave"),
    # flags
    "bad rows": (on_files("--skip_bad_rows=-1"), "--skip_bad_rows=-1"),
    "macro as a flag": (on_files("--TRAIN_STEPS=3"), "; a setting is --gin.TRAIN_STEPS=VALUE"),
    "unknown flag": (on_files("--foo=3"), "Unknown command line flag 'foo'"),
    "stray argument": (on_files("foo"), "unexpected argument 'foo'"),
}


@pytest.mark.parametrize(("arguments", "part"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistake(command, tmp_path, arguments, part):
    model_dir = tmp_path / "model"
    has_settings = any("finetune" in argument for argument in arguments)
    given = [f"--gin.MODEL_DIR={model_dir}"] if has_settings else []
    result = command(train, *arguments, *given)
    assert_mistake(result, part)
    assert not model_dir.exists()


def test_required_setting_is_named_by_its_macro(command):
    assert_mistake(command(train, *on_files()), "error: MODEL_DIR is not set: give --gin.MODEL_DIR")


def test_model_dir_that_is_a_file(command, folder):
    result = command(train, *on_files("--gin.MODEL_DIR={folder}/rows.jsonl"))
    assert_mistake(result, f"{folder}/rows.jsonl is a file")


def test_model_dir_that_cannot_be_written(command, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # tests may run as root
    result = command(train, *on_files("--gin.MODEL_DIR=/no/model"))
    assert_mistake(result, "MODEL_DIR = '/no/model': no permission to write in /")


def test_home_in_paths(command, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    result = command(
        train, *on_files("--gin.MODEL_DIR=~/rows.jsonl", "--gin.TRAIN_FILE=~/rows.jsonl")
    )
    assert_mistake(result, "is a file")


@pytest.mark.parametrize("name", ["INITIAL_CHECKPOINT_PATH", "VOCABULARY_FILE", "MODEL_DIR"])
def test_no_network(command, monkeypatch, tmp_path, name):
    def refused(*_: object, **__: object) -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(connectivity.socket, "create_connection", refused)
    monkeypatch.setattr(connectivity.urllib.request, "getproxies", dict)
    arguments = on_files(f"--gin.MODEL_DIR={tmp_path}/model", f"--gin.{name}=gs://bucket/path")
    if name == "VOCABULARY_FILE":
        arguments = ["--gin_file=models/t5_1_1_small.gin", *arguments[1:]]
    result = command(train, *arguments)
    assert_mistake(result, f"{name} = 'gs://bucket/path': Google Cloud Storage cannot be reached")


def test_folders_of_the_offline_cache(command, monkeypatch, tmp_path):
    import seqio

    monkeypatch.setattr(seqio.utils, "_GLOBAL_CACHE_DIRECTORIES", [])
    task = "taskless_super_glue_rte_v102_examples"
    arguments = nano(
        f"--gin.MODEL_DIR={tmp_path}/model",
        f"--gin.MIXTURE_OR_TASK_NAME={task}",
        "--gin.USE_CACHED_TASKS=True",
        "--seqio_additional_cache_dirs=/one,/two",
    )
    assert_mistake(command(train, *arguments), f"{task}: is not cached; set USE_CACHED_TASKS")
    assert seqio.get_global_cache_dirs() == ["/one", "/two"]


def test_a_byte_model_needs_no_network(command, monkeypatch, tmp_path):
    monkeypatch.setattr(gin_settings, "_check_storage_answers", pytest.fail)
    arguments = on_files(f"--gin.MODEL_DIR={tmp_path}/model", "--gin.INITIAL_CHECKPOINT_PATH=/no")
    assert_mistake(command(train, *arguments), "/no: no such file or folder")


def test_debug_shows_the_traceback(command, tmp_path):
    arguments = on_files(f"--gin.MODEL_DIR={tmp_path}/model", "--gin.PROMPT_LENGTH=0", "--debug")
    result = command(train, *arguments)
    assert result.status == 2
    assert result.err.startswith("Traceback") and "__post_init__" in result.err
    assert result.err.splitlines()[-1].startswith("error: PROMPT_LENGTH = 0")


@pytest.mark.parametrize("kind", [FloatingPointError, OSError, ValueError])
def test_error_of_a_run(command, monkeypatch, kind):
    def fails(**_: object) -> None:
        raise kind("the loss is nan;\nlower the learning rate")

    monkeypatch.setattr(gin_command, "parse", lambda *_: {})
    result = command(fails)
    assert_mistake(result, "error: the loss is nan; lower the learning rate")


def test_bug_keeps_its_traceback(command, monkeypatch):
    def fails(**_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(gin_command, "parse", lambda *_: {})
    with pytest.raises(RuntimeError, match="a bug"):
        command(fails)


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        ("/tmp/x", "'/tmp/x'"),
        ("'/tmp/x'", "'/tmp/x'"),
        ('"/tmp/x"', '"/tmp/x"'),
        ("", "''"),
        ("a b=c", "'a b=c'"),
        ("it's", '"it\'s"'),
        ("3", "3"),
        ("1e-3", "1e-3"),
        ("None", "None"),
        ("True", "True"),
        ("@Uniform()", "@Uniform()"),
        ("%FOO", "%FOO"),
        ("('a', %FOO)", "('a', %FOO)"),
        ("['a', @b/Uniform()]", "['a', @b/Uniform()]"),
        ("{'a': %FOO}", "{'a': %FOO}"),
        ("['a',\n 'b']", "['a',\n 'b']"),
        ("[CLS]", "'[CLS]'"),
        ("[a, b]", "'[a, b]'"),
        ("(is it good?) [SEP]", "'(is it good?) [SEP]'"),
        ("{labels}: which?", "'{labels}: which?'"),
        ("['a', b]", "\"['a', b]\""),
        ("['a'", "\"['a'\""),
        ("@user says", "'@user says'"),
        ("%", "'%'"),
        ("'a'\nNAME = 'b'", "\"'a'\\nNAME = 'b'\""),
        ("gs://bucket/a", "'gs://bucket/a'"),
    ],
)
def test_gin_values(given, parsed):
    assert gin_parsing.expand_gin_flags([f"--gin.NAME={given}"]) == [
        f"--gin_bindings=NAME = {parsed}"
    ]


def test_other_flags_stay():
    argv = ["train", "--gin_file=a.gin", "--debug", "x=--gin.NAME=1"]
    assert gin_parsing.expand_gin_flags(argv) == argv


@pytest.mark.parametrize(
    "words",
    [
        ["--gin.BATCH_SIZE", "=", "5"],
        ["--gin.BATCH_SIZE", "=5"],
        ["--gin.BATCH_SIZE", "5"],
        ["--gin.BATCH_SIZE"],
    ],
)
def test_spaces_around_the_equals_sign(command, words):
    message = "--gin.BATCH_SIZE: has no value; write --gin.BATCH_SIZE=VALUE, without spaces"
    assert_mistake(command(train, *nano(*words)), message)


# eval and infer


def evaluation(kind: str, *arguments: str) -> list[str]:
    files = ("--gin_file={folder}/nano.gin", f"--gin_file=runs/{kind}.gin", *SMALL, LABELS)
    checkpoint = "--gin.INITIAL_CHECKPOINT_PATH={folder}/nano.safetensors"
    return [*files, checkpoint, "--gin.PROMPT_FILE={folder}/prompt.npy", *arguments]


EVALUATION_MISTAKES = {
    "no prompt file": ("--gin.PROMPT_FILE=/no.npy", "/no.npy: no such prompt file"),
    "no prompt set": ("--gin.PROMPT_FILE=", "PROMPT_FILE"),
    "wide prompt": ("--gin.PROMPT_FILE={folder}/wide.npy", "the prompt is 17 wide"),
    "no prompt": ("--gin.PROMPT_FILE={folder}/rows.jsonl", "not a prompt in .npy or .safetensors"),
    "unknown split": ("--gin.SPLIT=dev", "no split 'dev'"),
    "batch size": ("--gin.BATCH_SIZE=12", "BATCH_SIZE = 12"),
    "trained file and prompt": ("--gin.TRAINED_FILE=/no.safetensors", "give one of them"),
    "trained file": (
        ("--gin.PROMPT_FILE=", "--gin.TRAINED_FILE=/no.safetensors"),
        "/no.safetensors: no such file",
    ),
    "trained file of another kind": (
        ("--gin.PROMPT_FILE=", "--gin.TRAINED_FILE={folder}/nano.safetensors"),
        "not fit",
    ),
}


@pytest.mark.parametrize(
    ("argument", "part"), EVALUATION_MISTAKES.values(), ids=EVALUATION_MISTAKES.keys()
)
@pytest.mark.parametrize(("kind", "function"), [("eval", evaluate), ("infer", infer)])
def test_mistake_in_evaluation(command, tmp_path, kind, function, argument, part):
    data = "TEST_FILE" if kind == "eval" else "INPUT_FILE"
    output = f"--gin.{kind.upper()}_OUTPUT_DIR={tmp_path}/out"
    files = f"--gin.{data}={{folder}}/rows.jsonl"
    arguments = (argument,) if isinstance(argument, str) else argument
    result = command(function, *evaluation(kind, files, output, *arguments))
    assert_mistake(result, part)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("kind", "function"), [("eval", evaluate), ("infer", infer)])
def test_output_folder_is_required(command, kind, function):
    result = command(function, *evaluation(kind, "--gin.MIXTURE_OR_TASK_NAME=demo_reviews"))
    assert_mistake(result, f"error: {kind.upper()}_OUTPUT_DIR is not set")


def test_evaluates(command, tmp_path):
    arguments = ["--gin.TEST_FILE={folder}/rows.jsonl", f"--gin.EVAL_OUTPUT_DIR={tmp_path}/out"]
    result = command(evaluate, *evaluation("eval", *arguments))
    assert result.status == 0, result.err
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    names = ["config.gin", "files-test-metrics.json", "files-test-rank.jsonl", "parameters.json"]
    assert written == names
    lines = (tmp_path / "out" / "files-test-rank.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 16
    assert rows[1].keys() == {"input", "target", "prediction", "scores"}
    assert (rows[1]["input"], rows[1]["target"]) == ("text 1", "n")
    assert all(row["prediction"] == max(row["scores"], key=row["scores"].get) for row in rows)
    right = np.mean([row["target"] == row["prediction"] for row in rows])
    metrics = json.loads((tmp_path / "out" / "files-test-metrics.json").read_text())
    assert metrics["rank/accuracy"] == right
    assert metrics["majority_class"] == 0.5
    assert f"majority class  {0.5:18.4f}" in result.out


def test_infers_in_t5x_form(command, tmp_path):
    columns = [{"id": 7, "text": "é"}, {"text": "b", "tags": ["x", None]}]
    lines = "".join(json.dumps(row) + "\n" for row in columns)
    (tmp_path / "texts.jsonl").write_text(lines)
    arguments = [f"--gin.INPUT_FILE={tmp_path}/texts.jsonl"]
    arguments += [f"--gin.INFER_OUTPUT_DIR={tmp_path}/out"]
    result = command(infer, *evaluation("infer", *arguments))
    assert result.status == 0, result.err
    assert "files, test split: TASK_FEATURE_LENGTHS cuts 0 of 2 inputs (0 %) to 8 tok" in result.out
    lines = (tmp_path / "out" / "files-generate.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert lines[0].startswith('{"inputs": {"inputs_pretokenized": "é", "id": 7}, "prediction": "')
    assert rows[1]["inputs"] == {"inputs_pretokenized": "b", "tags": ["x", None]}
    assert all(row.keys() == {"inputs", "prediction"} for row in rows)


def test_prompt_design_trains_nothing(command, tmp_path):
    files = [f"--gin.{split}_FILE={{folder}}/rows.jsonl" for split in ("TRAIN", "TEST")]
    design = ["--gin_file=methods/prompt_design.gin", "--gin.INSTRUCTION=Say."]
    design += ["--gin.DEMONSTRATIONS=2", "--gin.TASK_FEATURE_LENGTHS={'inputs': 40, 'targets': 4}"]
    output = f"--gin.EVAL_OUTPUT_DIR={tmp_path}/out"
    arguments = evaluation("eval", *files, output, *design)
    assert_mistake(command(evaluate, *arguments), "METHOD = PromptDesign is more than a prompt, or")
    result = command(evaluate, *arguments, "--gin.PROMPT_FILE=")
    assert result.status == 0, result.err
    said = "files, test split: 2.0 of 2 demonstrations before an input on average, 2 at least\n"
    assert said in result.out
    [line, *_] = (tmp_path / "out" / "files-test-rank.jsonl").read_text().splitlines()
    assert json.loads(line)["input"].startswith("Say.\n\ntext ")
    words = on_files(f"--gin.MODEL_DIR={tmp_path}/model", "--gin.LEARNING_RATE=0.1")
    of_prompts = ("--gin_file=methods/", "--gin.PROMPT_")
    words = [word for word in words if not word.startswith(of_prompts)]
    result = command(train, *words, design[0])
    assert_mistake(result, "METHOD = PromptDesign(): has no trainable parameters")


def test_bad_rows_are_counted_at_the_end(command, folder, tmp_path):
    lines = (folder / "rows.jsonl").read_text().splitlines()
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([*lines[:3], "{", *lines[3:], '{"text": "", "label": "y"}']))
    output = f"--gin.EVAL_OUTPUT_DIR={tmp_path}/out"
    arguments = evaluation("eval", f"--gin.TEST_FILE={path}", output)
    assert_mistake(command(evaluate, *arguments), f"{path}, line 4: not JSON")
    result = command(evaluate, *arguments, "--skip_bad_rows=1")
    assert_mistake(result, f"{path}, line 18: 'text' is empty (skipped before it: 1, as")
    assert not (tmp_path / "out").exists()
    result = command(evaluate, *arguments, "--skip_bad_rows=2")
    assert result.status == 0, result.err
    assert result.out.endswith(f"bad rows skipped: 2 ({path} 2)\n")
    assert len((tmp_path / "out" / "files-test-rank.jsonl").read_text().splitlines()) == 16
    assert "SKIP_BAD_ROWS = 2" in (tmp_path / "out" / "config.gin").read_text()


# runs


def process(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m prompt_tuning.train` in a process of its own."""
    given = [argument.replace("{folder}", str(folder)) for argument in arguments]
    return subprocess.run(
        [sys.executable, "-m", "prompt_tuning.train", *given],
        env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_run_resume_and_mistakes_of_resuming(command, tmp_path):
    model = tmp_path / "model"
    # T5X's doubled quotes, a function's name for a macro, another initialiser and optimizer.
    arguments = on_files(
        f"--gin.MODEL_DIR='{model}'",
        "--gin.Fit.eval_period=2",
        "--gin.PROMPT_INIT=@Uniform()",
        "--gin.OPTIMIZER=@optax.adamw",
    )
    result = command(train, *arguments)
    assert result.status == 0, result.err
    assert (model / "checkpoint_2").is_dir()
    config = (model / "config.gin").read_text()
    assert "@methods.Uniform()" in config and "@optax.adamw" in config
    assert "eval_period = 2" in config
    before = files_of(model)
    for argument, part in (
        ("--gin.PROMPT_LENGTH=5", "was trained with PromptTuning.length = 4, now 5"),
        ("--gin.OPTIMIZER=@optax.sgd", "was trained with OPTIMIZER = "),
        ("--gin.EVAL_METHODS=('generate',)", "chooses its best step by 'rank'"),
    ):
        assert_mistake(command(train, *arguments, argument, "--gin.TRAIN_STEPS=4"), part)
        assert files_of(model) == before
    result = command(train, *arguments, "--gin.TRAIN_STEPS=4")
    assert result.status == 0, result.err
    assert "step 4/4" in result.out and "step 2/4" not in result.out
    assert (model / "checkpoint_4").is_dir() and not (model / "checkpoint_2").exists()


def test_sigterm_is_a_status_of_its_own(command, tmp_path, monkeypatch):
    before, at_exit = signal.getsignal(signal.SIGTERM), []
    register = lambda leave, status: at_exit.append(status)  # noqa: E731
    monkeypatch.setattr(preemption, "atexit", SimpleNamespace(register=register))
    monkeypatch.setattr(run_model, "load", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    result = command(train, *on_files(f"--gin.MODEL_DIR={tmp_path}/model"))
    assert (result.status, result.err.splitlines()) == (
        75,
        ["stopped: run the same command again to resume"],
    )
    assert at_exit == [75]
    assert signal.getsignal(signal.SIGTERM) == before


def test_mistake_in_a_process_of_its_own(folder, tmp_path):
    arguments = on_files(f"--gin.MODEL_DIR={tmp_path}/model", "--gin.TRAIN_FILE=/no/a.jsonl")
    done = process(folder, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: /no/a.jsonl: no such file\n"
    assert not (tmp_path / "model").exists()


@pytest.fixture
def _flags():
    """What gin files are searched by, which a command would have parsed."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


@pytest.mark.usefixtures("_flags")
@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("eval", "CLASS_LABELS=('a', 'b')", "CLASS_LABELS: is read only with TRAIN_FILE or VALID"),
        ("eval", "TEXT_FIELD='sentence'", "TEXT_FIELD: is read only with TRAIN_FILE or VALIDATION"),
        ("eval", "BALANCED_CLASSES=True", "BALANCED_CLASSES: is read only in training; leave it"),
        ("infer", "CLASS_LABELS=('a', 'b')", "VALIDATION_FILE or INPUT_FILE; leave it out"),
        ("ensemble", "METRICS=('f1_macro',)", "METRICS: is read only with TRAIN_FILE or"),
    ],
)
def test_settings_that_other_commands_do_not_read(name, setting, message):
    function = {"eval": evaluate, "infer": infer, "ensemble": ensemble.evaluate}[name]
    of_method = () if name == "ensemble" else ("methods/prompt_tuning.gin",)
    files = ["models/demo.gin", *of_method, f"runs/{name}.gin"]
    out = "INFER_OUTPUT_DIR" if name == "infer" else "EVAL_OUTPUT_DIR"
    bindings = [
        f"{out} = 'x'",
        "MIXTURE_OR_TASK_NAME = 'demo_reviews'",
        "PROMPT_FILES = ('a',)" if name == "ensemble" else "PROMPT_FILE = 'a'",
        setting,
    ]
    with pytest.raises(UserError, match=re.escape(message)):
        gin_parsing.parse(function, files, bindings)
    gin_parsing.parse(function, files, bindings[:-1])


@pytest.mark.parametrize(
    ("setting", "least"),
    [("BATCH_SIZE=0", 1), ("EVAL_BATCH_SIZE=-1", 1), ("EVAL_EXAMPLES=0", 1), ("RANDOM_SEED=-3", 0)],
)
def test_a_dry_run_checks_numbers(command, setting, least):
    name, _, value = setting.partition("=")
    result = command(train, *on_files(f"--gin.{setting}", "--dry_run"))
    assert_mistake(result, f"{name} = {value}: must be a whole number from {least}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 3}, "BATCH_SIZE = 3: must be a positive multiple of the 2 devices"),
        (
            {"batch_size": 4, "num_microbatches": 4},
            "BATCH_SIZE = 4: must be a positive multiple of NUM_MICROBATCHES = 4 times the 2",
        ),
        ({"batch_size": 4, "eval_batch_size": 5}, "EVAL_BATCH_SIZE = 5: must be a positive mul"),
        ({"batch_size": 8, "eval_batch_size": 2, "num_microbatches": 4}, ""),
        ({}, ""),
    ],
)
def test_a_dry_run_divides_batches_over_the_devices(settings, message):
    layout = sharding.layout(devices=jax.devices()[:2])
    arguments = (tiny_config(), methods.PromptTuning(2), layout)
    if not message:
        assert "mesh" in summary.plan(*arguments, **settings)
        return
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        summary.plan(*arguments, **settings)


@pytest.mark.usefixtures("_flags")
@pytest.mark.parametrize(
    ("function", "name", "sizes"),
    [
        (train, "finetune", {"batch_size", "eval_batch_size", "num_microbatches"}),
        (evaluate, "eval", {"batch_size"}),
        (infer, "infer", {"batch_size"}),
        (infer, "infer_tasks", {"batch_size"}),
        (ensemble.evaluate, "ensemble", {"batch_size"}),
        (pretrain.pretrain, "pretrain", {"batch_size"}),
    ],
)
def test_a_dry_run_knows_the_batches(function, name, sizes):
    of_method = ["methods/prompt_tuning.gin"] if name == "finetune" else []
    files = ["models/demo.gin", *of_method, f"runs/{name}.gin"]
    prompt = f"'{embedded.prompts()}/demo_topics.npy'"
    bindings = {
        "finetune": ["TRAIN_STEPS = 1"],
        "eval": [f"PROMPT_FILE = {prompt}"],
        "infer": [f"PROMPT_FILE = {prompt}"],
        "ensemble": [f"PROMPT_FILES = ({prompt},)"],
    }.get(name, [])
    arguments = gin_command.planned(function, summary.plan, files, bindings)
    known = ("batch_size", "eval_batch_size", "num_microbatches")
    assert {name for name in known if arguments.get(name)} == sizes


@pytest.mark.usefixtures("_flags")
def test_label_words_of_an_initialiser_are_read():
    files = ["models/demo.gin", "methods/prompt_tuning.gin", "runs/finetune.gin"]
    bindings = ["MIXTURE_OR_TASK_NAME = 'demo_reviews'", "MODEL_DIR = 'x'", "TRAIN_STEPS = 1"]
    start = "PROMPT_INIT = @ClassLabels()"
    gin_parsing.parse(train, files, [*bindings, start, "CLASS_LABELS = ('a', 'b')"])
