"""A run's own checkpoints, through Orbax: step, trained leaves and their optimizer state."""

from typing import Any

import jax
from etils import epath
from flax.traverse_util import flatten_dict
from orbax.checkpoint import v1 as ocp
from orbax.checkpoint.path import step as step_lib

from prompt_tuning.checkpoint.errors import CheckpointError

_STEPS = step_lib.standard_name_format(step_prefix="checkpoint")
_NAME = "train_state"


class RunCheckpoints:
    """`MODEL_DIR/checkpoint_STEP`, the newest `keep` of them; nothing frozen is ever in one."""

    def __init__(self, model_dir: epath.PathLike, keep: int = 1) -> None:
        self.directory = _absolute(model_dir)
        self.directory.mkdir(parents=True, exist_ok=True)
        self._checkpointer = ocp.training.Checkpointer(
            self.directory,
            preservation_policy=ocp.training.preservation_policies.LatestN(n=keep),
            step_name_format=_STEPS,
            cleanup_tmp_directories=True,
        )

    @property
    def latest(self) -> int | None:
        """The newest step saved, or None."""
        found = self._checkpointer.latest
        return None if found is None else found.step

    def save(self, step: int, state: Any) -> None:
        """Saves in the background; a later save waits for it."""
        self._checkpointer.wait()  # Orbax drops a save that comes while another is under way
        self._checkpointer.save_async(step, {_NAME: state}, overwrite=True)

    def restore(self, state: Any) -> tuple[int, Any]:
        """The newest step and state, laid out as the arrays of `state`.

        Raises:
          CheckpointError: if there is none, or its shapes are not those of `state`.
        """
        self._checkpointer.wait()
        step = self.check(state)
        return step, self._checkpointer.load(step, {_NAME: state})[_NAME]

    def check(self, state: Any) -> int:
        """The newest step, if its leaves have the shapes of `state`; reads no array.

        Raises:
          CheckpointError: if there is none, or they have not.
        """
        step = self.latest
        if step is None:
            raise CheckpointError(f"{self.directory}: no checkpoint_* folder in it")
        trees = (self._checkpointer.metadata(step).metadata, {_NAME: state})
        saved, wanted = (sorted(tuple(x.shape) for x in jax.tree.leaves(tree)) for tree in trees)
        if saved != wanted:
            raise CheckpointError(
                f"{self.directory}/checkpoint_{step}: its leaves are not those of this run; "
                "resume with the settings it was started with, or set another MODEL_DIR"
            )
        return step

    def close(self) -> None:
        """Waits for saves under way and closes."""
        self._checkpointer.close()


def _absolute(path: epath.PathLike) -> epath.Path:
    """Orbax asks for an absolute path; one with a scheme (gs://) is."""
    path = epath.Path(path).expanduser()
    return path if "://" in str(path) else path.absolute()


def load_trained(model_dir: epath.PathLike) -> tuple[int, dict[str, Any]]:
    """The newest step of a run, and its trained leaves by path.

    Raises:
      CheckpointError: if the folder holds no checkpoint.
    """
    folder = _absolute(model_dir)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such run; check the folder")
    checkpointer = ocp.training.Checkpointer(folder, step_name_format=_STEPS)
    newest = checkpointer.latest
    if newest is None:
        raise CheckpointError(f"{folder}: no checkpoint_* folder in it")
    state = checkpointer.load(newest.step)
    return newest.step, flatten_dict(state[_NAME]["trained"], sep="/")
