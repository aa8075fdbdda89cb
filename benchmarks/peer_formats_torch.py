"""The peer's side of `peer_formats.py`: what PEFT and transformers compute and write.

Runs in the environment of `peer.py`, in the folder that the other side made.
"""

import sys
from pathlib import Path

import numpy as np
import peft
import torch
from transformers import T5ForConditionalGeneration
from transformers.utils import logging

LENGTH = 5
EVERYTHING = ["q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo"]
COMMON = {"task_type": "SEQ_2_SEQ_LM"}
PROMPT = {**COMMON, "num_virtual_tokens": LENGTH}


def configs(targets: list[str]) -> dict[str, peft.PeftConfig]:
    """Adapters to make, by name; `targets` are all the projections that the model has."""
    one = {"num_transformer_submodules": 1}
    tasks = {"num_tasks": 2, "num_ranks": 3}
    return {
        "prompt": peft.PromptTuningConfig(**PROMPT),
        "prompt_p_rows": peft.PromptTuningConfig(**PROMPT, **one),
        "p_tuning": peft.PromptEncoderConfig(**PROMPT, encoder_hidden_size=12),
        "multitask": peft.MultitaskPromptTuningConfig(**PROMPT, **one, **tasks),
        "lora": peft.LoraConfig(**COMMON, r=2, lora_alpha=3),
        "lora_all_rs": peft.LoraConfig(
            **COMMON, r=3, lora_alpha=2, target_modules=targets, use_rslora=True
        ),
        "lora_one_layer": peft.LoraConfig(
            **COMMON, r=2, target_modules=["v"], layers_to_transform=[1], layers_pattern=["block"]
        ),
        "ia3": peft.IA3Config(**COMMON),
    }


def load(folder: Path) -> T5ForConditionalGeneration:
    return T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model: torch.nn.Module, inputs: dict[str, torch.Tensor], **more: object) -> np.ndarray:
    with torch.no_grad():
        return model(**inputs, **more).logits.numpy()


def randomise(parameters: list[torch.nn.Parameter]) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.1 * torch.randn_like(parameter))


def main(folder: Path) -> None:
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.manual_seed(0)
    inputs = {name: torch.tensor(x).long() for name, x in np.load(folder / "inputs.npz").items()}
    tasks = torch.ones(len(inputs["input_ids"])).long()  # all rows are of the second task
    found = {"ours/hf": logits(load(folder / "ours" / "hf"), inputs)}
    for path in sorted((folder / "ours").glob("adapter_*")):
        model = peft.PeftModel.from_pretrained(load(folder / "ours" / "hf"), path)
        found[f"ours/{path.name}"] = logits(model, inputs)
    changed = load(folder / "ours" / "hf")
    randomise(list(changed.parameters()))
    changed.save_pretrained(folder / "theirs" / "hf")
    changed.save_pretrained(folder / "theirs" / "sharded", max_shard_size="20KB")
    found["theirs/hf"] = logits(load(folder / "theirs" / "hf"), inputs)
    targets = {name.rpartition(".")[2] for name, _ in changed.named_modules()} & set(EVERYTHING)
    for name, config in configs(sorted(targets)).items():
        model = peft.get_peft_model(load(folder / "ours" / "hf"), config)
        randomise([x for x in model.parameters() if x.requires_grad])
        place = folder / "theirs" / f"adapter_{name}"
        model.save_pretrained(place)
        again = peft.PeftModel.from_pretrained(load(folder / "ours" / "hf"), place).eval()
        more = {"task_ids": tasks} if name == "multitask" else {}
        found[f"theirs/{place.name}"] = logits(again, inputs, **more)
    np.savez(folder / "logits.npz", **found)
    print("largest logit", max(np.abs(x).max() for x in found.values()))


main(Path(sys.argv[1]))
