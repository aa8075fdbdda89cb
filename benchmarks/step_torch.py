"""The peer's half of step.py and epoch_time.py: prompt-tuning steps of PEFT on transformers.

Reads a JSON line of settings, then lines with the number of a batch; answers with what a step on it
took. Threads and attention are those that torch and transformers choose. Imports nothing of this
package.
"""

import json
import sys
from collections.abc import Mapping
from typing import Any

import torch
import usage
from peer_models import Block, prompt_config, random_model
from peft import get_peft_model

IGNORED = -100  # as a label


class Trained:
    """A model that steps; settings are those of `peer.step_settings`, a device may be added."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        torch.manual_seed(0)
        self._device = torch.device(settings.get("device", "cpu"))
        with self._device:
            model = random_model(settings["config"])
        self.attention = model.config._attn_implementation
        model = get_peft_model(model, prompt_config(settings["config"], settings["prompt"]))
        self._model = model.to(self._device, getattr(torch, settings["dtype"])).train()
        self._batches = [self._placed(**batch) for batch in settings["batches"]]
        trained = [leaf for leaf in model.parameters() if leaf.requires_grad]
        self._optimizer = torch.optim.Adafactor(trained, lr=0.3, weight_decay=1e-5)

    def compile_blocks(self) -> None:
        """Compiles each layer, as torch advises where a whole model takes long to compile."""
        for module in self._model.modules():
            if isinstance(module, Block):
                module.compile()

    def step(self, batch: int) -> None:
        self._optimizer.zero_grad()
        self._model(**self._batches[batch], use_cache=False).loss.backward()
        self._optimizer.step()
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def _placed(self, inputs: list[list[int]], targets: list[list[int]]) -> dict[str, torch.Tensor]:
        ids = torch.tensor(inputs, device=self._device)
        labels = torch.tensor(targets, device=self._device)
        return {
            "input_ids": ids,
            "attention_mask": (ids > 0).long(),
            "labels": labels.masked_fill(labels == 0, IGNORED),
        }


def main() -> None:
    trained = Trained(json.loads(sys.stdin.readline()))
    threads = torch.get_num_threads()
    print(f"peer: {threads} threads, {trained.attention} attention", file=sys.stderr)
    for line in sys.stdin:
        print(json.dumps(usage.of(lambda batch=int(line): trained.step(batch))), flush=True)


if __name__ == "__main__":
    main()
