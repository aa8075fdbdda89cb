"""What T5X restores before a prompt is trained, and saves with it, through hooks of its own."""

import functools
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import gin
import jax
import numpy as np
from etils import epath
from flax.traverse_util import unflatten_dict
from t5x import state_utils

from prompt_tuning import __version__
from prompt_tuning.checkpoint import backbone, fingerprint, prompts
from prompt_tuning.checkpoint import card as cards
from prompt_tuning.checkpoint.card import Card, TrainedWith
from prompt_tuning.in_t5x.variables import check_whole
from prompt_tuning.methods import Method
from prompt_tuning.methods.prompt import PROMPT_PATH
from prompt_tuning.runtime import distributed
from prompt_tuning.transformer.paths import EMBEDDING, flatten

_PROMPT = "/prompt/"  # in the path of any prompt, also one of the original code
_TARGET = "target/"


def backbone_alone(
    state: Any,
    wanted: Any,
    *,
    is_resuming: bool = False,
    is_added: Callable[[str], bool] = lambda path: False,
) -> Any:
    """A `RestoreStateTransformationFn`: keeps only the backbone and the step of a checkpoint.

    `RestoreCheckpointConfig.fallback_to_scratch` then makes the prompt and the optimizer's state,
    and would also make what a checkpoint lacks of the backbone.

    Args:
      state: State of the checkpoint.
      wanted: State of the model.
      is_resuming: Whether the checkpoint is one of this run, which stays as it is.
      is_added: Whether a method added the leaf at a path; prompts need not be named.

    Raises:
      UserError: If the backbone is not whole.
    """
    if is_resuming:
        return state

    def kept(names: Iterable[str]) -> list[str]:
        return [
            name
            for name in names
            if not name.startswith("state/param_states")
            and _PROMPT not in name
            and not is_added(name.removeprefix(_TARGET))
        ]

    stored, needed = map(state_utils.flatten_state_dict, (state, wanted))
    names = kept(stored)
    check_whole(*([n for n in each if n.startswith(_TARGET)] for each in (names, kept(needed))))
    return unflatten_dict({name: stored[name] for name in names}, sep="/")


def fingerprint_of(checkpoint: str) -> str:
    """The fingerprint of the backbone in a T5X checkpoint; reads all of it, leaf by leaf."""
    shapes = backbone.open_t5x(checkpoint).target_shapes
    leaves = backbone.open_leaves(
        checkpoint, {name: shape for name, shape in shapes.items() if _PROMPT not in name}
    )
    sums = {
        name: fingerprint.sum_of(name, jax.numpy.asarray(np.asarray(leaf)))
        for name, leaf in leaves.items()
    }
    return fingerprint.of(leaves, sums)


class SavePrompt:
    """A `SaveStateTransformationFn` that changes nothing, and writes the prompt with its card.

    T5X calls it at each save, native or Orbax, in all processes; process 0 writes.

    Attributes:
      paths: Paths of the leaves that are written.
      subfolder: Folder of the files, in that of the run.
    """

    paths: Collection[str] = (PROMPT_PATH,)
    subfolder = "prompts"

    def __init__(
        self,
        folder: str,
        method: Method,
        optimizer: Callable[..., Any],
        learning_rate: Callable[[int], Any],
        checkpoint: str,
        task: Any = "",
    ) -> None:
        """Names the folder, and what the card says.

        Args:
          folder: Folder of the run; the files are `prompts/prompt_STEP.npy`.
          method: Method of the run.
          optimizer: Optimizer of the run.
          learning_rate: Schedule of the run.
          checkpoint: Checkpoint of the backbone.
          task: Task or mixture of the run, or its name.
        """
        self._folder = epath.Path(folder) / self.subfolder
        self._method, self._optimizer, self._rate = method, optimizer, learning_rate
        self._checkpoint, self._task = checkpoint, str(getattr(task, "name", task))
        self._fingerprint = functools.cache(lambda: fingerprint_of(checkpoint))

    def __call__(self, state: Any, infos: Any) -> tuple[Any, Any]:
        target = flatten(state["target"])
        # Parts of a leaf may be on other processes.
        leaves = {path: distributed.to_host(target[path]) for path in sorted(self.paths)}
        step = int(distributed.to_host(state["state"]["step"]))
        # Not `distributed.is_main`: on TPU pods T5X is one run without `jax.distributed`.
        if jax.process_index() == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            self.write(self._folder, leaves, self._card(step, target[EMBEDDING].shape[1]))
        return state, infos

    def write(self, folder: epath.Path, leaves: Mapping[str, np.ndarray], card: Card) -> None:
        """Writes the leaves of a step, by path, into `folder`; `card` lacks length and checksum."""
        prompt, path = leaves[PROMPT_PATH], folder / f"prompt_{card.steps}.npy"
        cards.save(path, card, prompt)
        prompts.save(path, prompt)

    def _card(self, step: int, d_model: int) -> Card:
        rate = float(self._rate(max(step - 1, 0)))
        return Card(
            backbone=str(self._checkpoint),
            fingerprint=self._fingerprint(),
            d_model=d_model,
            task=self._task,
            method=type(self._method).__name__,
            length=0,
            placement=self._method.said("placement"),
            initialisation=self._method.said("initializer"),
            optimizer=getattr(self._optimizer, "__name__", repr(self._optimizer)),
            learning_rate=float(f"{rate:.7g}"),  # T5X computes it in float32
            steps=step,
            metric={},
            version=__version__,
            config=gin.config_str(),
            trained_with=TrainedWith(settings=self._method.settings),
        )
