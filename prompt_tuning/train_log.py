"""Metrics of train steps, kept on the device until they are written under T5X's names."""

import collections
import math
import time
from collections.abc import Mapping

import jax
import numpy as np
import optax

from prompt_tuning.metrics_writer import MetricsWriter


class TrainLog:
    """Gathers the metrics of steps; `flush` fetches them, checks them and writes their means.

    The step's metrics stay on the device until then, so that training never waits for them.
    """

    def __init__(self, writer: MetricsWriter, learning_rate: optax.ScalarOrSchedule) -> None:
        self._writer = writer
        self._learning_rate = learning_rate
        self._reset()

    def _reset(self) -> None:
        self._metrics: list[Mapping[str, jax.Array]] = []
        self._sequences = 0
        self._tokens: collections.Counter[str] = collections.Counter()
        self._positions: collections.Counter[str] = collections.Counter()
        self._start = time.perf_counter()

    def add(self, metrics: Mapping[str, jax.Array], batch: Mapping[str, np.ndarray]) -> None:
        """Notes a step's metrics (see `Loss`) and its host batch."""
        self._metrics.append(metrics)
        self._sequences += len(batch["encoder_input_tokens"])
        for name in ("encoder_input_tokens", "decoder_target_tokens"):
            self._tokens[name] += int(np.count_nonzero(batch[name]))
            self._positions[name] += batch[name].size

    def restart_clock(self) -> None:
        """Leaves all time until now out of the speed."""
        self._start = time.perf_counter()

    def pause(self, seconds: float) -> None:
        """Leaves `seconds` (an evaluation, say) out of the speed."""
        self._start += seconds

    def flush(self, step: int) -> dict[str, float]:
        """Writes and returns the means of the steps since the last flush.

        Raises:
          FloatingPointError: if the loss is not finite.
        """
        fetched = jax.device_get(self._metrics)
        sums = {name: float(sum(m[name] for m in fetched)) for name in fetched[0]}
        steps, seconds = len(fetched), time.perf_counter() - self._start
        if not math.isfinite(sums["loss"]):
            raise FloatingPointError(
                f"the loss is {sums['loss']} in the {steps} steps up to step {step}; "
                "lower the learning rate"
            )
        rate = self._learning_rate
        metrics = {
            "loss": sums["loss"] / steps,
            "loss_per_nonpadding_target_token": sums["token_loss"] / sums["weight_sum"],
            "cross_ent_loss": sums["cross_ent_loss"] / steps,
            "z_loss": sums["z_loss"] / steps,
            "accuracy": sums["accuracy"] / sums["weight_sum"],
            "gradient_norm": sums["gradient_norm"] / steps,
            "learning_rate": float(rate(step - 1) if callable(rate) else rate),
            "timing/seconds": seconds,
            "timing/steps_per_second": steps / seconds,
            "timing/seqs_per_second": self._sequences / seconds,
            "timing/tokens_per_second": sum(self._tokens.values()) / seconds,
            "timing/target_tokens_per_second": sums["weight_sum"] / seconds,
            **{
                f"non_padding_fraction/{name}": tokens / self._positions[name]
                for name, tokens in self._tokens.items()
            },
        }
        self._writer.write(step, metrics)
        self._reset()
        return metrics
