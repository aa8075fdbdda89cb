"""Prompts of many tasks in one array: every row of a batch gets its own task's.

Lester et al., 2021, figure 2. The array is an argument of what is compiled, so that tasks come and
go without compiling.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from prompt_tuning.checkpoint import prompts as prompt_files
from prompt_tuning.errors import UserError
from prompt_tuning.t5.layers import partitioned_param
from prompt_tuning.t5.sites import Sites


@dataclasses.dataclass(frozen=True)
class BankSites(Sites):
    """Puts the prompt of row b's slot, `tasks[b]`, in front of the row.

    Attributes:
      capacity: slots, N.
      length: vectors of the longest prompt that fits, P.
    """

    capacity: int
    length: int

    def embedded(
        self,
        x: Array,
        segments: Array,
        positions: Array | None,
        stack: str,
        tasks: Array | None = None,
    ) -> tuple[Array, Array, Array | None]:
        if stack == "decoder":
            return x, segments, positions
        if tasks is None or positions is not None:
            raise ValueError("a bank's rows name their tasks, and are not packed")
        chosen, real = Bank(self.capacity, self.length, name="prompt")(x, tasks)
        x = jnp.concatenate([chosen, x], axis=1)
        return x, jnp.concatenate([real, segments], axis=1), None


class Bank(nn.Module):
    """The prompts [B, P, D] of slots [B], and where they are real, [B, P] int32."""

    capacity: int
    length: int

    @nn.compact
    def __call__(self, x: Array, tasks: Array) -> tuple[Array, Array]:
        zeros = nn.initializers.zeros
        shape = (self.capacity, self.length, x.shape[-1])
        held = partitioned_param(self, "prompts", zeros, (None, "prompt", "prompt_embed"), shape)
        lengths = self.param("lengths", zeros, (self.capacity,), jnp.int32)
        real = jnp.arange(self.length) >= self.length - lengths[tasks][:, None]
        return held[tasks].astype(x.dtype), real.astype(jnp.int32)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PromptBank:
    """Prompts by task. It never changes: `add` and the like return another bank.

    A prompt of n vectors takes the last n of its P places. It then stands directly before the
    row's tokens, and since attention sees distances only, the row is computed as with it alone.

    Attributes:
      prompts: [N, P, D] float32.
      lengths: [N] int32.
      slots: the slots of each task's prompts; several are an ensemble.
    """

    prompts: Array
    lengths: Array
    slots: Mapping[str, tuple[int, ...]]

    @classmethod
    def empty(
        cls, width: int, mesh: Mesh, *, capacity: int = 8, length: int = 0, axis: str | None = None
    ) -> "PromptBank":
        """A bank without prompts.

        Args:
          width: of the backbone, D.
          mesh: where it lies.
          capacity, length: N and P that are kept free; both grow when they must, and what uses the
            bank is then compiled again.
          axis: the mesh's axis that the slots are divided over; None for all of them everywhere.
        """
        parts = mesh.shape[axis] if axis else 1
        capacity = -(-max(capacity, 1) // parts) * parts
        held = jnp.zeros((capacity, length, width), jnp.float32)
        return cls(
            jax.device_put(held, NamedSharding(mesh, P(axis))),
            jax.device_put(jnp.zeros(capacity, jnp.int32), NamedSharding(mesh, P())),
            {},
        )

    def __repr__(self) -> str:
        capacity, length, width = self.prompts.shape
        count = sum(map(len, self.slots.values()))
        return (
            f"PromptBank({len(self.slots)} tasks, {count} prompts; room for {capacity} of up to "
            f"{length} x {width})"
        )

    @property
    def sites(self) -> BankSites:
        return BankSites(*self.prompts.shape[:2])

    @property
    def leaves(self) -> dict:
        """What the bank adds to the backbone's parameters, with `sites`."""
        return {"encoder": {"prompt": {"prompts": self.prompts, "lengths": self.lengths}}}

    def prompts_of(self, task: str) -> list[np.ndarray]:
        """The prompts [n, D] of a task."""
        slots, longest = self.slots[task], self.prompts.shape[1]
        return [np.asarray(self.prompts[slot, longest - self.lengths[slot] :]) for slot in slots]

    def add(self, prompts: Mapping[str, Sequence[np.ndarray]]) -> "PromptBank":
        """This bank with more tasks, each with one or more prompts [n, D]; n may be 0.

        Raises:
          UserError: if a task is there already, or a prompt is no finite matrix of floats as wide
            as the backbone.
        """
        for task, several in prompts.items():
            if not (isinstance(task, str) and task):
                raise UserError(f"task {task!r}: a name is a text, and not empty")
            if task in self.slots:
                raise UserError(f"task {task!r}: is there already; replace or remove it")
            if not several:
                raise UserError(f"task {task!r}: has no prompt")
            for prompt in several:
                if fault := prompt_files.fault_of(prompt, self.prompts.shape[2]):
                    raise UserError(f"task {task!r}: {fault}")
        every = [prompt for several in prompts.values() for prompt in several]
        if not every:
            return self
        bank = self._with_room(len(every), max(map(len, every)))
        free = iter(bank._free())
        slots = {task: tuple(next(free) for _ in several) for task, several in prompts.items()}
        _, length, width = bank.prompts.shape
        values = np.zeros((len(every), length, width), np.float32)
        for value, prompt in zip(values, every, strict=True):
            value[length - len(prompt) :] = prompt
        where = np.array([slot for several in slots.values() for slot in several])
        lengths = np.array([len(prompt) for prompt in every], np.int32)
        held = _written(bank.prompts, where, values), _written(bank.lengths, where, lengths)
        return bank._placed(*held, {**self.slots, **slots})

    def remove(self, task: str) -> "PromptBank":
        """This bank without a task; its slots are free again.

        Raises:
          UserError: if there is no such task.
        """
        if task not in self.slots:
            raise UserError(f"no task {task!r}; there are: {', '.join(sorted(self.slots))}")
        slots = {name: several for name, several in self.slots.items() if name != task}
        return dataclasses.replace(self, slots=slots)

    def replace(self, task: str, prompts: Sequence[np.ndarray]) -> "PromptBank":
        """This bank with other prompts for a task; raises as `add` and `remove`."""
        return self.remove(task).add({task: prompts})

    def _free(self) -> list[int]:
        taken = {slot for several in self.slots.values() for slot in several}
        return [slot for slot in range(self.prompts.shape[0]) if slot not in taken]

    def _with_room(self, count: int, longest: int) -> "PromptBank":
        """This bank, or a larger one where `count` more prompts do not fit."""
        capacity, length, _ = self.prompts.shape
        needed, larger = capacity - len(self._free()) + count, capacity
        while larger < needed:
            larger *= 2
        more, front = larger - capacity, max(longest - length, 0)
        if not more and not front:
            return self
        held = jnp.pad(self.prompts, ((0, more), (front, 0), (0, 0)))
        return self._placed(held, jnp.pad(self.lengths, (0, more)), self.slots)

    def _placed(
        self, held: Array, lengths: Array, slots: Mapping[str, tuple[int, ...]]
    ) -> "PromptBank":
        return PromptBank(
            jax.device_put(held, self.prompts.sharding),
            jax.device_put(lengths, self.lengths.sharding),
            slots,
        )


@jax.jit
def _written(held: Array, where: Array, values: Array) -> Array:
    return held.at[where].set(values)
