"""Every gin file parses, and the runs that files make together can be planned (--dry_run)."""

import functools
import itertools
import re
import sys
from collections.abc import Callable
from pathlib import Path

import gin
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from prompt_tuning import embedded, families
from prompt_tuning.checkpoint import prompts
from prompt_tuning.cli import gin_command, gin_parsing
from prompt_tuning.families import PRESETS
from prompt_tuning.model import params, summary
from prompt_tuning.runs.eval import evaluate
from prompt_tuning.runs.infer import infer
from prompt_tuning.runs.pretrain import pretrain
from prompt_tuning.runs.serve import serve
from prompt_tuning.runs.suite import train_tasks
from prompt_tuning.runs.train import train

CONFIGS = gin_parsing.configs_folder()
FILES = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.gin"))
FOLDER = "models/t5gemma.gin"  # reads the shape from a Hugging Face folder
MODELS = [name for name in FILES if name.startswith("models/") and name != FOLDER]
METHODS = ["methods/prompt_tuning.gin", "methods/model_tuning.gin"]

# Parameters of the backbones.
TOTALS = {
    "models/t5_1_1_small.gin": 76_961_152,
    "models/t5_1_1_xxl.gin": 11_135_332_352,
    "models/t5_1_0_small.gin": 60_506_624,
    "models/mt5_small.gin": 300_176_768,
    "models/byt5_small.gin": 299_637_760,
}


# Settings of each method's file, and the parameters of the demo backbone that are then trained.
TRAINED = {
    "adapter": (
        {"ADAPTER_BOTTLENECK": 3, "ADAPTER_VARIANT": "pfeiffer", "ADAPTER_LAYERS": (1,)},
        2 * (2 * 256 * 3 + 256 + 3),
    ),
    "bitfit": ({}, 8 * (2 * 256 + 256) + 6 * (2 * 512 + 256) + 16 * 256),
    "deep_prompt": (
        {"PROMPT_LENGTH": 3, "PROMPT_INIT": "@Uniform()", "DEEP_PROMPT_LAYERS": (0, 2)},
        2 * 3 * 256,
    ),
    "ia3": ({}, 8 * 2 * 256 + 6 * 512),
    "lora": (
        {"LORA_RANK": 3, "LORA_PROJECTIONS": ("query", "wo"), "LORA_LAYERS": (1,)},
        3 * 3 * (256 + 256) + 2 * 3 * (512 + 256),
    ),
    "model_tuning": ({}, 8_655_104),
    "multitask_prompt": (
        {
            "PROMPT_LENGTH": 3,
            "PROMPT_INIT": "@Text()",
            "MULTITASK_TASKS": ("a", "b"),
            "MULTITASK_RANK": 2,
        },
        3 * 256 + 2 * 2 * (3 + 256),
    ),
    "p_tuning": (
        {
            "PROMPT_LENGTH": 3,
            "PROMPT_INIT": "@SampledVocabulary()",
            "P_TUNING_HIDDEN": 5,
            "P_TUNING_ENCODER": "mlp",
        },
        3 * 256 + 5 * (256 + 1) + 5 * (5 + 1) + 256 * (5 + 1),
    ),
    "prefix_tuning": (
        {"PREFIX_LENGTH": 3, "PREFIX_HIDDEN": 0, "PREFIX_GATED": True},
        8 * (2 * 3 * 256 + 4),
    ),
    "prompt_and_lora": ({"PROMPT_LENGTH": 3, "LORA_RANK": 2}, 3 * 256 + 8 * 2 * 2 * (256 + 256)),
    "prompt_tuning": ({"PROMPT_LENGTH": 3, "DECODER_PROMPT_LENGTH": 2}, 5 * 256),
    # No vectors of labels: a dry run reads no task.
    "warp": ({"PROMPT_LENGTH": 3, "PROMPT_INIT": "@FromFile()", "PROMPT_FILE": "a.npy"}, 3 * 256),
    "wayward": ({"PROMPT_LENGTH": 3, "WAYWARD_TEXT": "good or bad"}, 3 * 256),
}
NOT_TRAINED = {"prompt_design"}


# Tracing a large model takes seconds, and a plan needs its shapes three times.
_init_shapes = functools.cache(families.init_shapes)


@pytest.fixture(autouse=True)
def _traced_once(monkeypatch):
    for module in (params, summary):
        monkeypatch.setattr(module, "init_shapes", _init_shapes)


@pytest.fixture
def dry_run(capsys, monkeypatch, tmp_path) -> Callable[..., str]:
    """Runs a command with --dry_run; returns what it prints."""

    def run(function: Callable, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["command", *arguments, "--dry_run"])
        monkeypatch.chdir(tmp_path)
        gin.clear_config()
        capsys.readouterr()
        with flagsaver.flagsaver(), pytest.raises(SystemExit) as exit_info:
            gin_command.main(function, plan=summary.plan)
        gin.clear_config()
        out, err = capsys.readouterr()
        assert (exit_info.value.code, err) == (None, "")
        assert list(tmp_path.rglob("*")) == []
        return out

    return run


def total(out: str) -> int:
    actual = re.search(r"^total .* ([\d,]+) parameters$", out, re.MULTILINE)
    assert actual, out
    return int(actual[1].replace(",", ""))


@pytest.mark.parametrize("name", FILES)
def test_parses(name):
    gin.clear_config()
    gin_parsing.search([str(CONFIGS)])
    try:
        gin.parse_config_file(name)
        again = gin.config_str()
        gin.clear_config()
        gin.parse_config(again)  # config.gin of a run can be run again
    finally:
        gin.clear_config()


def test_a_folder_of_the_same_name_hides_no_file(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()  # as `make demo` leaves it
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    test_parses("runs/eval.gin")


SUITE = """
from __gin__ import dynamic_registration
from prompt_tuning.data import source
from prompt_tuning.runs import suite
from prompt_tuning.runs import train
from prompt_tuning.training import loop

include 'runs/super_glue.gin'

reviews/source.task_data.task = 'demo_reviews'
topics_a/source.task_data.task = 'demo_topics'
"""


@pytest.mark.parametrize(
    ("text", "bindings", "said"),
    [
        ("boolqs/loop.Fit.total_steps = 20", (), "scope boolqs, .* did you mean boolq"),
        ("boolq/lng/loop.Fit.total_steps = 2", (), ""),
        ("multrc/source.task_data.batch_size = 2", (), "mean multirc"),
        ("boolq/loop.Fit.total_steps = 20", (), ""),
        ("", ("TASKS = {'cb': @cb/train.train}",), ""),  # others are left out, not mistyped
        ("", ("TASKS = {'topics_b': @topics_b/train.train}",), "topics_a, .* mean topics_b"),
        (
            "topics_b/loop.Fit.total_steps = 2\nOTHER = (@topics_a/train.train,)",
            ("TASKS = {'topics_b': @topics_b/train.train}",),
            "",
        ),
    ],
)
def test_a_mistyped_scope_of_a_file(text, bindings, said, tmp_path, recwarn):
    (tmp_path / "mine.gin").write_text(SUITE + text)
    files = ["models/demo.gin", str(tmp_path / "mine.gin"), "methods/prompt_tuning.gin"]
    with flagsaver.flagsaver():
        flags.FLAGS.mark_as_parsed()
        gin_parsing.parse(train_tasks, files, bindings, gin_command.NOT_FOR_A_DRY_RUN)
    gin.clear_config()
    actual = [str(warning.message) for warning in recwarn if "scope" in str(warning.message)]
    assert len(actual) == bool(said)
    assert not said or re.search(said, actual[0])


@pytest.mark.parametrize(
    ("text", "bindings", "said"),
    [
        ("TRAIN_STEP = 33", (), ["TRAIN_STEP, .* did you mean TRAIN_STEPS"]),
        ("train_steps = 33\nBatchSize=4", (), ["mean BATCH_SIZE", "train_steps, .*TRAIN_STEPS"]),
        ("LEARNING_RATES = 0.1\nBATCHSIZE = 8", (), ["mean BATCH_SIZE", "mean LEARNING_RATE"]),
        ("TRAIN_STEPS = 33", (), []),
        ("STEPS_OF_MINE = 33\nTRAIN_STEPS = %STEPS_OF_MINE", (), []),
        ("TRAIN_STEP = 33", ("TRAIN_STEPS = %TRAIN_STEP",), []),
        ("COLOURS = 33", (), []),
    ],
)
def test_a_mistyped_macro_of_a_file(text, bindings, said, tmp_path, recwarn):
    (tmp_path / "mine.gin").write_text(text)
    files = ["models/demo.gin", "runs/finetune.gin", "methods/prompt_tuning.gin"]
    with flagsaver.flagsaver():
        flags.FLAGS.mark_as_parsed()
        gin_parsing.parse(
            train, [*files, str(tmp_path / "mine.gin")], bindings, gin_command.NOT_FOR_A_DRY_RUN
        )
    gin.clear_config()
    actual = [str(warning.message) for warning in recwarn if "nothing reads" in str(warning)]
    assert len(actual) == len(said)
    assert all(map(re.search, said, actual))


@pytest.mark.parametrize("name", FILES)
def test_says_what_it_is_for(name):
    assert (CONFIGS / name).read_text().startswith("# ")


def test_every_preset_has_a_file():
    names = {f"models/{name}.gin" for name in PRESETS if not name.endswith("nano")}
    assert names == set(MODELS)


@pytest.mark.parametrize("model", MODELS)
def test_a_model_file_names_its_preset(model):
    gin.clear_config()
    gin_parsing.search([str(CONFIGS)])
    gin.parse_config_file(model)
    preset = gin.query_parameter("MODEL_PRESET/gin.macro.value")
    gin.clear_config()
    assert preset == Path(model).stem


def _slow_between(model: str) -> object:
    """The smallest and largest sizes will do; a size in between differs in its preset's name."""
    between = Path(model).stem.endswith(("large", "xl", "3b", "b_b", "l_l", "2b", "9b"))
    between &= not model.endswith("xxl.gin")
    return pytest.param(model, marks=pytest.mark.slow if between else ())


@pytest.mark.parametrize("model", [_slow_between(model) for model in MODELS])
def test_prompt_tuning_of(dry_run, model):
    files = (f"--gin_file={name}" for name in (model, METHODS[0], "runs/finetune.gin"))
    out = dry_run(train, *files, "--gin.PROMPT_LENGTH=10")
    width = PRESETS[Path(model).stem].stack("encoder").width
    assert "train  encoder/prompt/prompt/prompt" in out
    assert re.search(rf"^trained +1 leaves +{10 * width:,} parameters", out, re.MULTILINE)
    if model in TOTALS:
        assert total(out) == TOTALS[model] + 10 * width


def test_a_folder_needs_no_preset(dry_run):
    folder = Path(__file__).parents[1] / "fixtures" / "gemma" / "unequal"
    files = (f"--gin_file={name}" for name in (FOLDER, METHODS[0], "runs/finetune.gin"))
    settings = (f"--gin.INITIAL_CHECKPOINT_PATH={folder}", "--gin.PROMPT_LENGTH=10")
    out = dry_run(train, *files, *settings, f"--gin.VOCABULARY_FILE={embedded.vocabulary()}")
    assert re.search(r"^trained +1 leaves +160 parameters", out, re.MULTILINE)
    assert re.search(r"^frozen +decoder_token_embedder/embedding +bfloat16 \(40, 12\)", out, re.M)


@pytest.mark.parametrize("model", ["models/t5_1_1_xxl.gin", "models/t5_1_0_small.gin"])
def test_model_tuning_of(dry_run, model):
    files = (f"--gin_file={name}" for name in (model, METHODS[1], "runs/finetune.gin"))
    out = dry_run(train, *files, "--gin.NUM_PARTITIONS=4")
    assert "mesh {'data': 2, 'model': 4}" in out
    assert re.search(rf"^trained .* {TOTALS[model]:,} parameters +100.0000%", out, re.MULTILINE)
    kernel = re.search(r"encoder/layers_0/attention/query/kernel .*", out)
    assert kernel and kernel[0].endswith("P(None, 'model')")


def test_a_mesh_and_rules(dry_run):
    files = [f"--gin_file={name}" for name in ("models/t5_1_1_xxl.gin", *METHODS[:1])]
    mesh = "--gin.MESH={'fsdp': 4, 'model': 2}"
    rules = "--gin.AXIS_RULES=(('vocab', None),)"
    out = dry_run(train, *files, "--gin_file=runs/finetune.gin", mesh, rules)
    assert "mesh {'data': 1, 'fsdp': 4, 'model': 2}" in out
    assert re.search(r"encoder/layers_0/attention/query/kernel .*P\('fsdp', 'model'\)\n", out)
    assert re.search(r"token_embedder/embedding .*P\(None, 'fsdp'\)\n", out)


def test_every_method_has_its_settings_here():
    methods = {Path(name).stem for name in FILES if name.startswith("methods/")}
    assert methods == TRAINED.keys() | NOT_TRAINED


def trained_paths(out: str) -> set[str]:
    return set(re.findall(r"^train +(\S+)", out, re.MULTILINE))


def plan_of(dry_run, name: str) -> str:
    """What a run of a method with its settings in TRAINED prints."""
    files = ("models/demo.gin", f"methods/{name}.gin", "runs/finetune.gin")
    settings = (f"--gin.{macro}={value}" for macro, value in TRAINED[name][0].items())
    return dry_run(train, *(f"--gin_file={file}" for file in files), *settings)


@pytest.mark.parametrize("name", TRAINED)
def test_settings_of(dry_run, name):
    out = plan_of(dry_run, name)
    line = rf"^trained +{len(trained_paths(out))} leaves +{TRAINED[name][1]:,} parameters"
    assert re.search(line, out, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_the_header_says_how_much_is_trained(dry_run, name):
    [count] = re.findall(
        r"^# Trains ([\d,]+) .*", (CONFIGS / f"methods/{name}.gin").read_text(), re.M
    )
    required = {
        "wayward": ["--gin.WAYWARD_TEXT='a text'"],
        "multitask_prompt": ["--gin.MULTITASK_TASKS=('a',)"],
    }
    files = ("models/t5_1_1_base.gin", f"methods/{name}.gin", "runs/finetune.gin")
    out = dry_run(train, *(f"--gin_file={file}" for file in files), *required.get(name, ()))
    assert re.search(rf"^trained .* {count} parameters", out, re.MULTILINE)


def test_paths_of_lora(dry_run):
    blocks = {"encoder": ["attention"], "decoder": ["self_attention", "encoder_decoder_attention"]}
    assert trained_paths(plan_of(dry_run, "lora")) == {
        f"{stack}/layers_1/{place}/{factor}"
        for stack, kinds in blocks.items()
        for place in (*(f"{kind}/lora_query" for kind in kinds), "mlp/lora_wo")
        for factor in "ab"
    }


def test_paths_of_prefix_tuning(dry_run):
    places = (
        "encoder/prefix_attention",
        "decoder/prefix_self_attention",
        "decoder/prefix_encoder_decoder_attention",
    )
    assert trained_paths(plan_of(dry_run, "prefix_tuning")) == {
        f"{place}/{leaf}" for place in places for leaf in ("keys_values", "gates")
    }


def test_combination_of_the_documentation(dry_run, tmp_path_factory):
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    [block] = re.findall(r"^```gin\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    mine = tmp_path_factory.mktemp("combination") / "mine.gin"
    mine.write_text(block)
    files = ("models/demo.gin", mine, "runs/finetune.gin")
    paths = trained_paths(dry_run(train, *(f"--gin_file={file}" for file in files)))
    for part in ("/keys_values", "/gates", "/adapter_mlp/"):
        assert any(part in path for path in paths), part


def test_demo(dry_run):
    out = dry_run(train, "--gin_file=runs/demo.gin")
    assert "MODEL_DIR = 'runs/demo'" in out
    assert re.search(r"^trained +1 leaves +5,120 parameters", out, re.MULTILINE)


def test_super_glue(dry_run):
    files = ("models/t5_1_1_small.gin", METHODS[0], "runs/super_glue.gin")
    out = dry_run(train_tasks, *(f"--gin_file={name}" for name in files), "--gin.PROMPT_LENGTH=10")
    assert total(out) == TOTALS["models/t5_1_1_small.gin"] + 10 * 512


@pytest.mark.parametrize(("kind", "function"), [("eval", evaluate), ("infer", infer)])
def test_prompt_length_comes_from_the_file(dry_run, tmp_path_factory, kind, function):
    prompt = tmp_path_factory.mktemp("prompt") / "prompt.npy"
    prompts.save(prompt, np.zeros((7, 256)))
    files = ("--gin_file=models/demo.gin", f"--gin_file=runs/{kind}.gin")
    out = dry_run(function, *files, f"--gin.PROMPT_FILE={prompt}")
    assert "encoder/prompt/prompt/prompt" in out and "(7, 256)" in out


def test_several_tasks(dry_run):
    files = ("--gin_file=models/demo.gin", "--gin_file=runs/infer_tasks.gin")
    out = dry_run(infer, *files, "--gin.INPUT_FILE=a.jsonl", "--gin.PROMPTS_FOLDER=prompts")
    assert total(out) == 8_655_104


def test_a_server(dry_run):
    out = dry_run(serve, "--gin_file=models/demo.gin", "--gin_file=runs/serve.gin", "--gin.PORT=0")
    assert total(out) == 8_655_104


@pytest.mark.parametrize(
    ("method", "parts"),
    [
        ("lora", {"lora_value"}),
        ("prompt_and_lora", {"lora_value", "prompt"}),
        ("model_tuning", {"kernel", "scale"}),
        ("prompt_design", set()),
    ],
)
@pytest.mark.parametrize(("kind", "function"), [("eval", evaluate), ("infer", infer)])
def test_another_method_in(dry_run, kind, function, method, parts):
    names = ("models/demo.gin", f"runs/{kind}.gin", f"methods/{method}.gin")
    out = dry_run(function, *(f"--gin_file={name}" for name in names))
    trained = {part for path in trained_paths(out) for part in path.split("/")}
    assert trained & {"lora_value", "prompt", "kernel", "scale"} == parts


@pytest.mark.parametrize("kind", ["eval", "infer"])
def test_the_order_of_files_does_not_matter(dry_run, kind):
    function = {"eval": evaluate, "infer": infer}[kind]
    files = ("models/demo.gin", f"runs/{kind}.gin", "methods/lora.gin")
    plans = {
        dry_run(function, *(f"--gin_file={file}" for file in order))
        for order in itertools.permutations(files)
    }
    assert len(plans) == 1 and "attention/lora_query" in plans.pop()


def test_files_of_ones_own_are_read_last(dry_run, tmp_path_factory):
    mine = tmp_path_factory.mktemp("mine") / "mine.gin"
    mine.write_text("TRAIN_STEPS = 7\nLEARNING_RATE = 0.7\nDROPOUT_RATE = 0.7\n")
    files = (mine, "runs/finetune.gin", METHODS[0], "models/demo.gin")
    out = dry_run(train, *(f"--gin_file={file}" for file in files))
    for macro in ("TRAIN_STEPS = 7", "LEARNING_RATE = 0.7", "DROPOUT_RATE = 0.7"):
        assert f"\n{macro}\n" in out


def test_each_macro_has_one_home():
    """Files of two kinds that go together set no macro both, unless the later one has to."""
    meant = {"pretrain": {"INITIAL_CHECKPOINT_PATH", "LEARNING_RATE", "METHOD"}}
    meant["ladder"] = meant["pretrain"]
    ours = {run: {"METHOD", "ALLOW_OTHER_BACKBONE"} for run in ("infer_tasks", "ensemble", "serve")}
    ours |= {kind: macros_of("methods/prompt_tuning.gin") for kind in ("eval", "infer")}
    for run in (Path(name).stem for name in FILES if name.startswith("runs/")):
        if run != "demo":
            others = macros_of("models/demo.gin") | macros_of("methods/prompt_tuning.gin")
            both = macros_of(f"runs/{run}.gin") & others
            assert both <= meant.get(run, set()) | ours.get(run, set()), run


def macros_of(name: str) -> set[str]:
    gin.clear_config()
    gin_parsing.search([str(CONFIGS)])
    gin.parse_config_file(name)
    return set(re.findall(r"^(\w+) = ", gin.config_str(), re.MULTILINE))


def test_pretraining(dry_run):
    out = dry_run(pretrain, "--gin_file=models/demo.gin", "--gin_file=runs/pretrain.gin")
    assert re.search(r"^trained .* 8,655,104 parameters +100.0000%", out, re.MULTILINE)
