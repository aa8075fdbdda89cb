"""The log of train steps: metrics stay on the device until a line is due, under T5X's names."""

import collections
import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax

from prompt_tuning.training.metrics_writer import MetricsWriter


class TrainLog:
    """Collects the metrics of steps; `flush` fetches them, checks them and writes their means.

    Metrics stay on the device until then, so that training never waits for them.

    Attributes:
      compilations: Number of times that this process compiled the step; the caller counts them.
    """

    def __init__(
        self,
        writer: MetricsWriter,
        learning_rate: optax.ScalarOrSchedule,
        pending: Mapping[str, Any] | None = None,
    ) -> None:
        """Starts a log.

        Args:
          writer: Writer of the lines.
          learning_rate: Constant or schedule, to log its value.
          pending: Unflushed sums from the checkpoint that the run resumes from, as `pending`
            returned them; None or empty if there are none.
        """
        self._writer = writer
        self._learning_rate = learning_rate
        self.compilations = 0
        self._reset()
        if pending:
            self._metrics.append({name: np.float32(x) for name, x in pending["sums"].items()})
            self._steps, self._sequences = pending["steps"], pending["sequences"]
            self._tokens.update(pending["tokens"])
            self._positions.update(pending["positions"])
            self._earlier_seconds = pending["seconds"]

    def _reset(self) -> None:
        self._metrics: list[Mapping[str, jax.Array | np.float32]] = []
        self._steps = self._sequences = 0
        self._tokens: collections.Counter[str] = collections.Counter()
        self._positions: collections.Counter[str] = collections.Counter()
        self._earlier_seconds = 0.0
        self._start = time.perf_counter()

    def add(
        self, metrics: Mapping[str, jax.Array | np.float32], batch: Mapping[str, np.ndarray]
    ) -> None:
        """Adds a step's metrics (see `make_train_step`) and counts the tokens of its host batch."""
        self._metrics.append(metrics)
        self._steps += 1
        self._sequences += len(batch["encoder_input_tokens"])
        for name in ("encoder_input_tokens", "decoder_target_tokens"):
            self._tokens[name] += int(np.count_nonzero(batch[name]))
            self._positions[name] += batch[name].size

    def restart_clock(self) -> None:
        """Excludes all time until now from the speed."""
        self._start = time.perf_counter()

    def pause(self, seconds: float) -> None:
        """Excludes `seconds`, such as those of an evaluation, from the speed."""
        self._start += seconds

    def _fetch(self, step: int) -> tuple[dict[str, float], float]:
        """Returns the sums of the metrics since the last flush, and the seconds they took."""
        fetched = jax.device_get(self._metrics)
        sums = {name: float(sum(m[name] for m in fetched)) for name in fetched[0]}
        if not math.isfinite(sums["loss"]):
            raise FloatingPointError(
                f"the loss is {sums['loss']} in the {self._steps} steps up to step {step}; "
                "lower the learning rate; float16 activations may overflow, bfloat16 do not"
            )
        return sums, self._earlier_seconds + time.perf_counter() - self._start

    def pending(self, step: int) -> dict[str, Any]:
        """Returns the sums since the last flush as JSON values; empty right after a flush.

        A log that starts with them flushes the same means as this one would have.

        Raises:
          FloatingPointError: If the loss is not finite.
        """
        if not self._metrics:
            return {}
        sums, seconds = self._fetch(step)
        return {
            "sums": sums,
            "steps": self._steps,
            "sequences": self._sequences,
            "tokens": dict(self._tokens),
            "positions": dict(self._positions),
            "seconds": seconds,
        }

    def flush(self, step: int) -> dict[str, float]:
        """Writes and returns the means over the steps since the last flush.

        Raises:
          FloatingPointError: If the loss is not finite.
        """
        sums, seconds = self._fetch(step)
        steps = self._steps
        metrics = {
            "loss": sums["loss"] / steps,
            "loss_per_nonpadding_target_token": sums["token_loss"] / sums["weight_sum"],
            "cross_ent_loss": sums["cross_ent_loss"] / steps,
            "z_loss": sums["z_loss"] / steps,
            "accuracy": sums["accuracy"] / sums["weight_sum"],
            "gradient_norm": sums["gradient_norm"] / steps,
            "learning_rate": rate_at(self._learning_rate, step),
            "timing/seconds": seconds,
            "timing/compilations": self.compilations,
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


def rate_at(learning_rate: optax.ScalarOrSchedule, step: int) -> float:
    """Returns the learning rate of the update that led to `step`, counted from 1."""
    return float(learning_rate(step - 1) if callable(learning_rate) else learning_rate)
