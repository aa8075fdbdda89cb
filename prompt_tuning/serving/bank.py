"""Prompts of many tasks in one array, from which each row of a batch gets its own task's prompt.

Lester et al., 2021, figure 2. The array is an argument of the compiled functions, so tasks can be
added and removed without recompilation.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from prompt_tuning.checkpoint import prompts as prompt_files
from prompt_tuning.decoding.batches import power
from prompt_tuning.errors import MOST_TOKENS, UserError, whole_number
from prompt_tuning.transformer.layers import partitioned_param
from prompt_tuning.transformer.sites import Sites


@dataclasses.dataclass(frozen=True)
class BankSites(Sites):
    """Puts the prompt in slot `tasks[b]` in front of row b.

    Attributes:
      capacity: Number of slots, N.
      length: Number of vectors that a slot has room for, P.
      places: Number of places, at the end of a slot, that a row gets; at least as many as the
        longest prompt of a batch has vectors. None for P.
    """

    capacity: int
    length: int
    places: int | None = None

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
            raise ValueError("rows for a bank must name their tasks, and must not be packed")
        prompts, real = Bank(self.capacity, self.length, self.places, name="prompt")(x, tasks)
        x = jnp.concatenate([prompts, x], axis=1)
        return x, jnp.concatenate([real, segments], axis=1), None


class Bank(nn.Module):
    """Gathers the last places [B, p, D] of slots [B]; says which are real vectors, [B, p] int32."""

    capacity: int
    length: int
    places: int | None

    @nn.compact
    def __call__(self, x: Array, tasks: Array) -> tuple[Array, Array]:
        zeros = nn.initializers.zeros
        shape = (self.capacity, self.length, x.shape[-1])
        prompts = partitioned_param(self, "prompts", zeros, (None, "prompt", "prompt_embed"), shape)
        lengths = self.param("lengths", zeros, (self.capacity,), jnp.int32)
        places = self.length if self.places is None else self.places
        real = jnp.arange(places)[None] >= places - lengths[tasks][:, None]
        gathered = prompts[tasks, self.length - places :]
        return gathered.astype(x.dtype), real.astype(jnp.int32)


def places(longest: int, room: int) -> int:
    """Number of places for the prompts of a batch; few numbers occur, since each is compiled.

    Args:
      longest: Length of the longest of the prompts; above 16 it is exceeded by a quarter at most.
      room: Places of the bank's slots, P.
    """
    step = max(4, power(longest) // 8)
    return min(max(8, -(-longest // step) * step), room)


def group(length: int) -> int:
    """Number that is the same for prompts which may share a batch: up to 32, 64, 128, ... vectors.

    One long prompt would otherwise lengthen every row of its batch.
    """
    return power(length, 32)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PromptBank:
    """Prompts by task; immutable: `add`, `remove` and `replace` return another bank.

    A prompt of n vectors takes the last n of the P places of its slot, directly before the row's
    tokens. Attention depends on distances only, so the row is computed as with that prompt alone.

    Attributes:
      prompts: [N, P, D] float32, all slots.
      lengths: [N] int32, number of vectors in each slot.
      slots: Slots of each task's prompts; more than one for an ensemble.
    """

    prompts: Array
    lengths: Array
    slots: Mapping[str, tuple[int, ...]]

    @classmethod
    def empty(
        cls, width: int, mesh: Mesh, *, capacity: int = 8, length: int = 0, axis: str | None = None
    ) -> "PromptBank":
        """Makes a bank without prompts.

        Args:
          width: Width of the backbone, D.
          mesh: Devices that the bank is placed on.
          capacity, length: N and P to start with; both grow when a prompt does not fit, and the
            functions that use the bank are then compiled again.
          axis: Mesh axis that the slots are divided over; None to keep all of them on each device.

        Raises:
          UserError: if there is no such axis, or a size is out of its range.
        """
        if axis is not None and axis not in mesh.shape:
            known = ", ".join(mesh.shape)
            raise UserError(f"shard_prompts = {axis!r}: not an axis of the mesh ({known})")
        capacity = whole_number("tasks", capacity, 1)
        length = whole_number("prompt_length", length, 0, MOST_TOKENS)
        parts = mesh.shape[axis] if axis else 1
        capacity = -(-capacity // parts) * parts
        prompts = jnp.zeros((capacity, length, width), jnp.float32)
        return cls(
            jax.device_put(prompts, NamedSharding(mesh, P(axis))),
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

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """`lengths` on the host."""
        return np.asarray(self.lengths)

    @property
    def sites(self) -> BankSites:
        """Sites of a model whose parameters include `leaves`."""
        return BankSites(*self.prompts.shape[:2])

    def sites_for(self, longest: int) -> BankSites:
        """Sites of a model for rows whose prompts have at most `longest` vectors."""
        return dataclasses.replace(self.sites, places=places(longest, self.prompts.shape[1]))

    @property
    def leaves(self) -> dict:
        """Leaves that the bank adds to the backbone's."""
        return {"encoder": {"prompt": {"prompts": self.prompts, "lengths": self.lengths}}}

    def fits(self, prompts: Sequence[np.ndarray]) -> bool:
        """Whether prompts [n, D] of a new task fit without growth, which compiles anew."""
        longest = max(map(len, prompts), default=0)
        return len(prompts) <= len(self._free_slots()) and longest <= self.prompts.shape[1]

    def prompts_of(self, task: str) -> list[np.ndarray]:
        """Prompts [n, D] of a task."""
        room = self.prompts.shape[1]
        return [
            np.asarray(self.prompts[slot, room - self.lengths[slot] :]) for slot in self.slots[task]
        ]

    def add(self, prompts: Mapping[str, Sequence[np.ndarray]]) -> "PromptBank":
        """A bank with more tasks, each with one or more prompts [n, D]; n may be 0.

        Raises:
          UserError: if a task already exists, or a prompt is not a finite matrix of floats as wide
            as the backbone.
        """
        for task, task_prompts in prompts.items():
            if not (isinstance(task, str) and task):
                raise UserError(f"task {task!r}: a name must be a text that is not empty")
            if task in self.slots:
                raise UserError(
                    f"task {task!r}: already exists; pass replace=True or remove it first"
                )
            if not task_prompts:
                raise UserError(f"task {task!r}: has no prompt")
            for prompt in task_prompts:
                if fault := prompt_files.fault_of(prompt, self.prompts.shape[2]):
                    raise UserError(f"task {task!r}: {fault}")
        new = list(itertools.chain.from_iterable(prompts.values()))
        if not new:
            return self
        bank = self._with_room(len(new), max(map(len, new)))
        free = iter(bank._free_slots())
        slots = {task: tuple(itertools.islice(free, len(part))) for task, part in prompts.items()}
        _, room, width = bank.prompts.shape
        values = np.zeros((len(new), room, width), np.float32)
        for value, prompt in zip(values, new, strict=True):
            value[room - len(prompt) :] = prompt
        where = np.array(list(itertools.chain.from_iterable(slots.values())))
        lengths = np.array([len(prompt) for prompt in new], np.int32)
        return bank._placed(
            _written(bank.prompts, where, values),
            _written(bank.lengths, where, lengths),
            {**self.slots, **slots},
        )

    def remove(self, task: str) -> "PromptBank":
        """A bank without a task, whose slots can be used again.

        Raises:
          UserError: if there is no such task.
        """
        if task not in self.slots:
            raise UserError(f"no task {task!r}; available: {', '.join(sorted(self.slots))}")
        slots = {name: places for name, places in self.slots.items() if name != task}
        return dataclasses.replace(self, slots=slots)

    def replace(self, task: str, prompts: Sequence[np.ndarray]) -> "PromptBank":
        """A bank with other prompts for a task; raises as `add` and `remove` do."""
        return self.remove(task).add({task: prompts})

    def _free_slots(self) -> list[int]:
        taken = set(itertools.chain.from_iterable(self.slots.values()))
        return [slot for slot in range(self.prompts.shape[0]) if slot not in taken]

    def _with_room(self, count: int, longest: int) -> "PromptBank":
        """This bank, or a larger one if `count` more prompts do not fit."""
        capacity, length, _ = self.prompts.shape
        needed, new_capacity = capacity - len(self._free_slots()) + count, capacity
        while new_capacity < needed:
            new_capacity *= 2
        more_slots, more_places = new_capacity - capacity, max(longest - length, 0)
        if not more_slots and not more_places:
            return self
        prompts = jnp.pad(self.prompts, ((0, more_slots), (more_places, 0), (0, 0)))
        return self._placed(prompts, jnp.pad(self.lengths, (0, more_slots)), self.slots)

    def _placed(
        self, prompts: Array, lengths: Array, slots: Mapping[str, tuple[int, ...]]
    ) -> "PromptBank":
        return PromptBank(
            jax.device_put(prompts, self.prompts.sharding),
            jax.device_put(lengths, self.lengths.sharding),
            slots,
        )


@jax.jit
def _written(array: Array, where: Array, values: Array) -> Array:
    return array.at[where].set(values)
