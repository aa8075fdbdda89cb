"""Multitask prompts (MPT, Wang et al., 2023): a shared prompt times a low-rank matrix per task."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from prompt_tuning.methods import choices
from prompt_tuning.methods.base import Backbone, Method
from prompt_tuning.methods.initializers import ClassLabels, Initializer
from prompt_tuning.methods.prompt import PROMPT_PATH, PromptTuning, add
from prompt_tuning.transformer.config import Config
from prompt_tuning.transformer.layers import ArrayLike, partitioned_param
from prompt_tuning.transformer.sites import Embedded

_LEAVES = "encoder/prompt/"


@dataclasses.dataclass(frozen=True)
class MultitaskPrompt(Method):
    """Gives each row the prompt of its task k, shared * (U_k V_k).

    P D + K r (P + D) parameters.

    Attributes:
      length: number of prompt vectors, P.
      tasks: names of the K tasks; () for the tasks of the run.
      rank: rank r of the matrices.
      initializer: initial values of the shared prompt; the matrices start near one.
    """

    length: int = 100
    tasks: Sequence[str] = ()
    rank: int = 1
    initializer: Initializer = ClassLabels()

    def __post_init__(self) -> None:
        choices.positive("PROMPT_LENGTH", self.length)
        choices.positive("MULTITASK_RANK", self.rank)
        choices.freeze(self, "tasks")
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"MULTITASK_TASKS = {self.tasks}: must name each task once")

    @property
    def count(self) -> int:
        """Number of tasks, K."""
        return max(1, len(self.tasks))

    @property
    def positions(self) -> int | None:
        return self.length if self.count == 1 else None  # a packed row mixes tasks

    def for_task(
        self,
        encode: Callable[[str], list[int]] | None,
        labels: Sequence[str],
        tasks: Sequence[str] = (),
    ) -> Method:
        return self if self.tasks else dataclasses.replace(self, tasks=tasks)

    def task_index(self, task: str) -> int | None:
        if self.count == 1:
            return None
        if task not in self.tasks:
            raise ValueError(
                f"MultitaskPrompt: no prompt for {task}; available: {', '.join(self.tasks)}; see "
                "MULTITASK_TASKS"
            )
        return self.tasks.index(task)

    def embedded(
        self,
        x: Float[Array, "batch length embed"],
        segments: Int[Array, "batch length"],
        positions: Int[Array, "batch length"] | None,
        stack: str,
        tasks: Int[Array, " batch"] | None = None,
    ) -> Embedded:
        if stack == "decoder":
            return x, segments, positions
        prompt = TaskPrompts(self.length, self.count, self.rank, name="prompt")(x, tasks)
        return add(x, segments, positions, prompt, "prefix")

    def initial_values(self, backbone: Backbone, seed: int) -> Mapping[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        return {f"{_LEAVES}shared": self.initializer(self.length, backbone, rng)}

    def exports(self, trained: Mapping[str, Any]) -> Mapping[str, Any]:
        prompts = self.prompts(trained)
        if self.count == 1:
            return {"prompt": prompts[0]}
        return {f"prompt_{task}": p for task, p in zip(self.tasks, prompts, strict=True)}

    def prompts(self, leaves: Mapping[str, Any]) -> np.ndarray:
        """Computes each task's prompt, [K, P, D]."""
        shared, rows, columns = (
            leaves[f"{_LEAVES}{name}"] for name in ("shared", "rows", "columns")
        )
        return np.asarray(shared * (rows @ columns), np.float32)

    def folded(self) -> Method:
        return PromptTuning(self.length)

    def fold(self, leaves: Mapping[str, Any], config: Config) -> dict[str, Any]:
        if self.count > 1:
            raise ValueError(
                f"{self.count} tasks do not fold into one prompt; use the exported prompts"
            )
        others = {path: leaf for path, leaf in leaves.items() if not path.startswith(_LEAVES)}
        return others | {PROMPT_PATH: self.prompts(leaves)[0]}


class TaskPrompts(nn.Module):
    """Prompts [B, P, D] of tasks [B]; if there is one task, its prompt [P, D]."""

    length: int
    tasks: int
    rank: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length embed"], tasks: Int[Array, " batch"] | None
    ) -> Float[ArrayLike, "*rows prompt embed"]:
        length, width, rank = self.length, x.shape[-1], self.rank

        def leaf(name: str, mean: float, *shape: int) -> Any:
            def near(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
                return mean + nn.initializers.normal(0.01)(key, shape, dtype)

            axes = (None, "prompt", "prompt_embed")[-len(shape) :]
            return partitioned_param(self, name, near, axes, shape)

        shared = leaf("shared", 0.0, length, width)
        rows = leaf("rows", 1.0, self.tasks, length, rank)
        columns = leaf("columns", 1.0 / rank, self.tasks, rank, width)
        if self.tasks == 1 and tasks is not None:
            raise ValueError(
                "MultitaskPrompt: the batch is of several tasks, and there is one prompt; give "
                "initialize(..., tasks=data.tasks), or set MULTITASK_TASKS"
            )
        if self.tasks == 1 or self.is_initializing():
            return (shared * (rows[0] @ columns[0])).astype(x.dtype)
        if tasks is None:
            raise ValueError(
                "MultitaskPrompt: the batch does not name the tasks of its examples; train on a "
                "mixture whose tasks fit in memory"
            )
        return (shared[None] * (rows[tasks] @ columns[tasks])).astype(x.dtype)
