"""The gin files, as T5X's parser reads them after a user's own; what may follow them."""

import sys
import types

import pytest

pytest.importorskip("t5x", reason="T5X is not installed: make t5x")

import gin
from gin import config as gin_config
from t5x import eval as t5x_eval
from t5x import gin_utils, infer
from t5x import train as t5x_train

from prompt_tuning.cli import gin_parsing

READERS = gin_config._FILE_READERS[:]  # gin's own, before a command of the package replaces them
OURS, CONFIGS = "prompt_tuning/in_t5x", str(gin_parsing.configs_folder())
DEMO = {"train": "demo_finetune", "eval": "demo_model", "infer": "demo_model"}
SCRIPTS = {"train": t5x_train, "eval": t5x_eval, "infer": infer}


@pytest.fixture
def parse(monkeypatch):
    """A function that parses files and bindings as `python -m t5x.COMMAND` does."""

    def parsed(command, files, bindings=()):
        gin.clear_config()
        own = [f"{OURS}/{DEMO[command]}.gin"]
        if command != "train":
            own.append(f"t5x/configs/runs/{command}.gin")
        monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
        vars(sys.modules["__main__"]).update(vars(SCRIPTS[command]), __name__="__main__")
        gin_utils.parse_gin_flags([CONFIGS], [*own, *files], bindings, finalize_config=False)
        return set(gin.config_str(max_line_length=500).splitlines())

    monkeypatch.setattr(gin_config, "_FILE_READERS", READERS)
    monkeypatch.setattr(gin_config, "_LOCATION_PREFIXES", [""])
    yield parsed
    gin.clear_config()


@pytest.mark.parametrize(
    "bindings",
    [
        ["PROMPT_INIT = @methods.Uniform()", "methods.Uniform.low = 0.0"],
        ["PROMPT_INIT = @methods.SampledVocabulary()"],
        ["PROMPT_INIT = @methods.Text()", "methods.Text.text = 'a film'"],
        ["PROMPT_INIT = @methods.FromFile()", "PROMPT_FILE = 'a.npy'"],
        ["PROMPT_OPTIMIZER = @optax.adamw", "optax.adamw.weight_decay = 0.0"],
        ["PROMPT_OPTIMIZER = @optax.sgd", "optim.adafactor.factored = True"],
        ["PROMPT_PLACEMENT = 3", "PROMPT_LENGTH = 20"],
        ["utils.create_learning_rate_scheduler.factors = 'constant * linear_warmup'"],
        ["train.use_orbax = False", "trainer.Trainer.num_microbatches = 2"],
    ],
    ids=lambda bindings: bindings[0],
)
def test_what_the_command_line_may_set(parse, bindings):
    lines = parse("train", [f"{OURS}/train.gin"], bindings)
    for binding in bindings:
        name, _, value = binding.partition(" = ")
        assert any(line.endswith(f"{name.split('.')[-1]} = {value}") for line in lines), name


def test_train_changes_what_its_page_says(parse):
    before = parse("train", [])
    after = parse("train", [f"{OURS}/train.gin"])
    gone = {line.split(" = ")[0].split(".")[-1] for line in before - after if " = " in line}
    assert gone == {"MODEL", "pack", "base_learning_rate"}


@pytest.mark.parametrize("command", ["eval", "infer"])
def test_eval_and_infer_change_the_model_alone(parse, command):
    before = parse(command, [])
    after = parse(command, [f"{OURS}/{command}.gin"])
    gone = {line.split(" = ")[0] for line in before - after if " = " in line}
    assert gone == {"MODEL"}


@pytest.mark.parametrize("method", ["lora", "prefix_tuning", "deep_prompt", "adapter", "ia3"])
def test_other_methods(parse, method):
    preset, file = ["MODEL_PRESET = 'demo'"], f"{CONFIGS}/methods/{method}.gin"
    lines = parse("train", [file, f"{OURS}/train_method.gin"], preset)
    assert "MODEL = @our_t5.tuned()" in lines
    lines = parse("eval", [file, f"{OURS}/method.gin"], preset)
    assert "MODEL = @our_t5.tuned()" in lines
