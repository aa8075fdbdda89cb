"""The peer's half of mixed_tasks.py: greedy decoding by PEFT on transformers' T5, timed on request.

Reads a JSON line of settings, then lines "batch" (all rows with one prompt) or "sequential" (each
row with its own, one after another); answers with seconds. Runs in the environment of peer.py.
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
    prompt = PromptTuningConfig(
        task_type=TaskType.SEQ_2_SEQ_LM, num_virtual_tokens=settings["prompt"], inference_mode=True
    )
    model = get_peft_model(T5ForConditionalGeneration(config), prompt, "task0")
    for i in range(1, settings["tasks"]):
        model.add_adapter(f"task{i}", prompt)
    model.eval()
    rows = torch.randint(2, config.vocab_size, (settings["tasks"], settings["input"]))
    exactly = {"max_new_tokens": settings["new"], "min_new_tokens": settings["new"]}

    def generate(rows: torch.Tensor, task: int) -> None:
        model.set_adapter(f"task{task}")
        made = model.generate(input_ids=rows, attention_mask=torch.ones_like(rows), **exactly)
        assert made.shape == (len(rows), settings["new"] + 1), made.shape

    with torch.inference_mode():
        for line in sys.stdin:
            began = time.perf_counter()
            if line.strip() == "batch":
                generate(rows, 0)
            else:
                for i in range(len(rows)):
                    generate(rows[i : i + 1], i)
            print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main()
