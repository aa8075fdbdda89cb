"""A run of a tiny model, for tests/runtime/test_processes.py.

`python process_run.py`, with the flags of any command, is one of its processes.
"""

import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import jax
import numpy as np

from prompt_tuning import methods, sharding
from prompt_tuning.evaluation.sets import EvalSet
from prompt_tuning.runs.eval import evaluate
from prompt_tuning.runs.infer import infer
from prompt_tuning.runs.train import train
from prompt_tuning.runtime import distributed
from prompt_tuning.t5.config import preset
from prompt_tuning.training.loop import Fit

CONFIG = dataclasses.replace(preset("nano"), num_encoder_layers=1, num_decoder_layers=1)
METHOD = methods.Combined(
    [methods.PromptTuning(4, initializer=methods.SampledVocabulary(top=200)), methods.LoRA(2)]
)


def accuracy(targets, predictions) -> dict[str, float]:
    return {"accuracy": float(np.mean([t == p for t, p in zip(targets, predictions, strict=True)]))}


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows whose label is the remainder of their first token, as `runs.data_protocol.Data`.

    Attributes:
      signals: signals that this process gets while it makes a training batch, by its number.
    """

    signals: Mapping[int, int]
    task: str = "remainders"
    batch_size: int = 8
    splits = ("train", "validation")
    labels = ("a", "b", "c")
    tasks = ("remainders",)
    vocabulary_size = 0  # that of no file
    lengths = MappingProxyType({"inputs": 6, "targets": 2})
    target_prefix = ""
    text_fields = MappingProxyType({})
    bare_inputs = ()
    labels_by_number = MappingProxyType({})
    vocabulary_fingerprint = ""

    def as_trained(self, lengths: Mapping[str, int], target_prefix: str) -> "Rows":
        assert (dict(lengths), target_prefix) == (dict(self.lengths), self.target_prefix)
        return self

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def train_batches(
        self, start: int, positions: int | None, multiple: int
    ) -> Iterator[dict[str, np.ndarray]]:
        for number in itertools.count(start):
            if self.signals:
                time.sleep(0.2)  # JAX looks once a second whether there was a SIGTERM
            if number in self.signals:
                os.kill(os.getpid(), self.signals[number])
            tokens = rows(number, self.batch_size)
            targets = np.stack([tokens[:, 0] % 3 + 97, np.ones(self.batch_size)], axis=1)
            yield {
                "encoder_input_tokens": tokens,
                "decoder_input_tokens": np.roll(targets, 1, axis=1).astype(np.int32),
                "decoder_target_tokens": targets.astype(np.int32),
                "decoder_loss_weights": np.ones((self.batch_size, 2), np.int32),
            }

    def eval_set(self, split: str) -> EvalSet:
        tokens = rows(1_000_000, 13)
        return EvalSet(
            task=self.task,
            split=split,
            inputs=[str(row) for row in tokens],
            targets=[self.labels[row[0] % 3] for row in tokens],
            encoder_input_tokens=tokens,
            labels=self.labels,
            label_tokens=np.array([[97, 1], [98, 1], [99, 1]], np.int32),
            target_length=2,
            metric_fns=(accuracy,),
            decode=str,
        )

    def eval_sets(self, split: str) -> list[EvalSet]:
        return [self.eval_set(split)]

    @property
    def settings(self) -> dict:
        return {"BATCH_SIZE": self.batch_size}

    def train_notes(self) -> list[str]:
        return []

    def remarks(self) -> list[str]:
        return []


def rows(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(2, 250, (count, 6)).astype(np.int32)


def run(
    model_dir: str,
    backbone: str,
    steps: int = 12,
    num_partitions: int = 1,
    signals: Mapping[int, Mapping[int, int]] = {},
    on_start: Callable = lambda folder: None,
    devices: list[jax.Device] | None = None,
) -> None:
    """Trains, then measures and predicts with the best leaves.

    `signals` has the `Rows.signals` of each process.
    """
    shared = {
        "config": CONFIG,
        "method": METHOD,
        "data": Rows(signals.get(jax.process_index(), {})),
        "initial_checkpoint": backbone,
        "layout": sharding.layout(num_partitions, devices=devices),
    }
    train(
        model_dir=model_dir,
        fit=Fit(
            total_steps=steps, learning_rate=0.02, eval_period=6, checkpoint_period=3, log_period=4
        ),
        eval_batch_size=8,
        on_start=on_start,
        **shared,
    )
    trained = f"{model_dir}/trained_best.safetensors"
    evaluate(
        output_dir=f"{model_dir}/eval",
        trained_file=trained,
        split="validation",
        eval_methods=("rank", "generate"),
        **shared,
    )
    infer(output_dir=f"{model_dir}/infer", trained_file=trained, split="validation", **shared)


if __name__ == "__main__":
    import process_run

    from prompt_tuning.cli import gin_command

    distributed.HEARTBEAT_SECONDS = 10
    distributed.CONNECT_SECONDS = 60
    gin_command.main(process_run.run)
