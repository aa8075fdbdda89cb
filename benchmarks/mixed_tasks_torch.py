"""The peer's half of mixed_tasks.py: greedy decoding by PEFT on transformers, timed on request.

Reads a JSON line of settings, then lines "batch" (all rows with one prompt) or "sequential" (each
row with its own, one after another); answers with what that took. Imports nothing of this package.
"""

import json
import sys
from collections.abc import Mapping
from typing import Any

import torch
import usage
from peer_models import prompt_config, random_model
from peft import get_peft_model


class Decoder:
    """A model with the prompts of several tasks; settings are those of mixed_tasks.py."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        torch.manual_seed(0)
        device, tasks = torch.device(settings.get("device", "cpu")), settings["tasks"]
        prompt = prompt_config(settings["config"], settings["prompt"], inference_mode=True)
        with device:
            model = random_model(settings["config"])
            model = get_peft_model(model, prompt, "task0")
            for i in range(1, tasks):
                model.add_adapter(f"task{i}", prompt)
            self._rows = torch.randint(
                2, settings["config"]["vocab_size"], (tasks, settings["input"])
            )
        self._model = model.to(device, getattr(torch, settings["dtype"])).eval()
        self._new = settings["new"]

    @torch.inference_mode()
    def batch(self) -> None:
        self._generate(self._rows, 0)

    @torch.inference_mode()
    def sequential(self) -> None:
        for i in range(len(self._rows)):
            self._generate(self._rows[i : i + 1], i)

    def _generate(self, rows: torch.Tensor, task: int) -> None:
        self._model.set_adapter(f"task{task}")
        exactly = {"max_new_tokens": self._new, "min_new_tokens": self._new}
        mask = torch.ones_like(rows)
        made = self._model.generate(input_ids=rows, attention_mask=mask, **exactly).cpu()
        assert made.shape == (len(rows), self._new + 1), made.shape


def main() -> None:
    decoder = Decoder(json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        print(json.dumps(usage.of(getattr(decoder, line.strip()))), flush=True)


if __name__ == "__main__":
    main()
