"""The peer's half of step.py and epoch_time.py: prompt-tuning steps of PEFT on transformers' T5.

Reads a JSON line of settings, then lines with the number of a batch; answers with the seconds of a
step on it. Threads and attention are those that torch and transformers choose. Runs in the
environment of peer.py.
"""

import json
import sys
import time

import torch
from peft import PromptTuningConfig, TaskType, get_peft_model
from transformers import T5Config, T5ForConditionalGeneration

IGNORED = -100  # as a label


def main() -> None:
    settings = json.loads(sys.stdin.readline())
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(**settings["config"]))
    attention = model.config._attn_implementation
    print(f"peer: {torch.get_num_threads()} threads, {attention} attention", file=sys.stderr)
    prompt = PromptTuningConfig(
        task_type=TaskType.SEQ_2_SEQ_LM, num_virtual_tokens=settings["prompt"]
    )
    model = get_peft_model(model, prompt)
    model.to(getattr(torch, settings["dtype"])).train()
    batches = [placed(**batch) for batch in settings["batches"]]
    trained = [leaf for leaf in model.parameters() if leaf.requires_grad]
    optimizer = torch.optim.Adafactor(trained, lr=0.3, weight_decay=1e-5)
    for line in sys.stdin:
        began = time.perf_counter()
        optimizer.zero_grad()
        model(**batches[int(line)]).loss.backward()
        optimizer.step()
        print(time.perf_counter() - began, flush=True)


def placed(inputs: list[list[int]], targets: list[list[int]]) -> dict[str, torch.Tensor]:
    ids, labels = torch.tensor(inputs), torch.tensor(targets)
    return {
        "input_ids": ids,
        "attention_mask": (ids > 0).long(),
        "labels": labels.masked_fill(labels == 0, IGNORED),
    }


if __name__ == "__main__":
    main()
