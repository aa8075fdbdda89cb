"""Do files of PEFT and transformers mean the same here and there? Largest differences of logits.

Each side writes backbones and adapters, the other loads them; the models are small and random.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import flax.linen as nn
import numpy as np
import peer
from safetensors.numpy import load_file

from prompt_tuning.checkpoint import backbone
from prompt_tuning.checkpoint.formats import huggingface, peft
from prompt_tuning.exchange import adapters, peft_layers
from prompt_tuning.exchange.conversion import convert
from prompt_tuning.families import init_shapes
from prompt_tuning.methods import IA3, LoRA, Method, PromptTuning
from prompt_tuning.t5 import T5, T5Config
from prompt_tuning.transformer.paths import flatten, unflatten

# num_heads * head_dim is not d_model, the stacks differ in depth.
MODELS = {
    "T5 v1.1": T5Config(96, 24, 4, 8, 40, 2, 2),
    "T5 v1.0": T5Config(96, 16, 3, 4, 24, 2, 3, activations=("relu",), tied_logits=True),
}
LENGTH = 5
LIMIT = 1e-5
Leaves = dict[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found: dict[str, float] = {}
    for name, config in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            differences = compare(Path(folder), config)
        found |= {f"{name}, {case}": value for case, value in differences.items()}
    for case, value in found.items():
        print(f"{case:50} {value:.1e}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    wrong = [case for case, value in found.items() if not value <= LIMIT]
    sys.exit(f"not equal to {LIMIT}: {', '.join(wrong)}" if wrong else 0)


def compare(folder: Path, config: T5Config) -> dict[str, float]:
    """Largest absolute differences by case; of files that must be equal, the number unequal."""
    rng = np.random.default_rng(0)
    inputs = batch(rng, config)
    np.savez(folder / "inputs.npz", **inputs)
    plain = random_leaves(rng, huggingface.shapes_of(config))
    ours = {"ours/hf": run(config, inputs, plain)}
    huggingface.save(folder / "ours" / "hf", plain, config)
    for name, method in methods(config).items():
        leaves = random_leaves(rng, added(config, method))
        path = folder / "ours" / f"adapter_{name}"
        if isinstance(method, PromptTuning):
            peft.save_prompt(path, *leaves.values())
        else:
            peft_layers.save(path, method, leaves)
        ours[f"ours/{path.name}"] = run(config, inputs, plain | leaves, method)

    script = Path(__file__).with_name("peer_formats_torch.py")
    subprocess.run([peer.python(), script, folder], check=True)
    with np.load(folder / "logits.npz") as file:
        theirs = dict(file)

    changed = leaves_of(folder / "theirs" / "hf", config)
    ours["theirs/hf"] = run(config, inputs, changed)
    for path in sorted((folder / "theirs").glob("adapter_*")):
        adaptation = adapters.read(str(path), 1 if path.name.endswith("multitask") else None)
        method = adaptation.method or PromptTuning(LENGTH)
        ours[f"theirs/{path.name}"] = run(config, inputs, plain | adaptation.leaves, method)
    if ours.keys() != theirs.keys():
        raise SystemExit(f"one side only: {ours.keys() ^ theirs.keys()}")
    found = {case: float(np.abs(ours[case] - theirs[case]).max()) for case in theirs}
    return found | round_trips(folder, config, changed)


def round_trips(folder: Path, config: T5Config, changed: Leaves) -> dict[str, float]:
    """How many tensors are not bit for bit what transformers wrote, after a way through ours."""
    source = folder / "theirs" / "hf"
    convert(source, folder / "ours.safetensors", "safetensors")
    convert(source, folder / "checkpoint_0", "t5x")
    expected = load_file(source / huggingface.SINGLE)
    found = {
        "sharded as single": unequal(leaves_of(folder / "theirs" / "sharded", config), changed)
    }
    for name in ("ours.safetensors", "checkpoint_0"):
        leaves = backbone.open_leaves(folder / name, huggingface.shapes_of(config))
        huggingface.save(folder / f"{name}_back", leaves, config)
        back = load_file(folder / f"{name}_back" / huggingface.SINGLE)
        found[f"Hugging Face, {name}, and back"] = unequal(back, expected)
    return found


def unequal(got: Leaves, expected: Leaves) -> float:
    """The number of tensors that differ, or are on one side only."""
    both = got.keys() & expected.keys()
    same = [name for name in both if np.array_equal(got[name], expected[name])]
    return float(len(got.keys() | expected.keys()) - len(same))


def methods(config: T5Config) -> dict[str, Method]:
    feed = ("wi", "wo") if len(config.activations) == 1 else ("wi_0", "wi_1", "wo")
    return {
        "prompt": PromptTuning(LENGTH),
        "lora": LoRA(2, 3.0, ("query", "value"), None),
        "lora_all": LoRA(3, 2.0, ("query", "key", "value", "out", *feed), None),
        "lora_one_layer": LoRA(2, 1.0, ("query", "wo"), (1,)),
        "ia3": IA3(),
    }


def batch(rng: np.random.Generator, config: T5Config) -> Leaves:
    """Rows of several lengths; 0 is padding."""
    tokens = rng.integers(3, config.vocab_size, (3, 20))
    mask = np.arange(20) < np.array([[20], [11], [4]])
    labels = rng.integers(3, config.vocab_size, (3, 7))
    return {"input_ids": tokens * mask, "attention_mask": mask, "labels": labels}


def random_leaves(rng: np.random.Generator, shapes: Shapes) -> Leaves:
    """Norms' scales and IA3's around 1, other leaves around 0; larger ones make rounding grow."""
    return {
        path: rng.normal(float(path.endswith("/scale")), 0.15, shape).astype(np.float32)
        for path, shape in shapes.items()
    }


def added(config: T5Config, method: Method) -> Shapes:
    """Shapes of the method's own leaves."""
    shapes = {path: x.shape for path, x in flatten(nn.unbox(init_shapes(config, method))).items()}
    plain = huggingface.shapes_of(config)
    return {path: shape for path, shape in shapes.items() if path not in plain}


def leaves_of(path: Path, config: T5Config) -> Leaves:
    opened = backbone.open_leaves(path, huggingface.shapes_of(config))
    return {name: np.asarray(leaf) for name, leaf in opened.items()}


def run(config: T5Config, inputs: Leaves, leaves: Leaves, *method: Method) -> np.ndarray:
    labels = inputs["labels"]
    shifted = np.pad(labels, ((0, 0), (1, 0)))[:, :-1]
    params = {"params": unflatten(leaves)}
    return np.asarray(T5(config, *method).apply(params, inputs["input_ids"], shifted, labels))


if __name__ == "__main__":
    main()
