"""The peer's half of step.py: a prompt-tuning step of PEFT on transformers' T5, timed on request.

Reads a JSON line of settings, then a line for each step to make; answers with its seconds.
Runs in the environment of peer.py.
"""

import json
import sys
import time

import torch
from peft import PromptTuningConfig, TaskType, get_peft_model
from transformers import T5Config, T5ForConditionalGeneration


def main() -> None:
    settings = json.loads(sys.stdin.readline())
    torch.manual_seed(0)
    config = T5Config(**settings["config"])
    model = T5ForConditionalGeneration(config)
    prompt = PromptTuningConfig(
        task_type=TaskType.SEQ_2_SEQ_LM, num_virtual_tokens=settings["prompt"]
    )
    model = get_peft_model(model, prompt)
    model.to(getattr(torch, settings["dtype"])).train()
    shapes = {"input_ids": settings["input"], "labels": settings["target"]}
    batch = {
        name: torch.randint(2, config.vocab_size, (settings["batch"], length))
        for name, length in shapes.items()
    }
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    trained = [leaf for leaf in model.parameters() if leaf.requires_grad]
    optimizer = torch.optim.Adafactor(trained, lr=0.3, weight_decay=1e-5)
    for _ in sys.stdin:
        began = time.perf_counter()
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main()
