"""A run's own checkpoints, through Orbax: step, trained leaves and their optimizer state.

A checkpoint has its name, `checkpoint_STEP`, when all of it and its manifest are on the disk, and
those before it go afterwards: a process may be killed at any moment.
"""

import concurrent.futures
import dataclasses
import re
import warnings
from collections.abc import Collection, Mapping
from typing import Any

import jax
from etils import epath
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from prompt_tuning.checkpoint import manifest
from prompt_tuning.checkpoint.fingerprint import Identity
from prompt_tuning.errors import CheckpointError
from prompt_tuning.runtime import distributed
from prompt_tuning.runtime.files import is_remote
from prompt_tuning.t5.paths import flatten

_NAME = "train_state"
_FOLDER = re.compile(r"checkpoint_(\d+)")
_UNFINISHED = re.compile(r"checkpoint_\d+\.tmp.*")


class RunCheckpoints:
    """`MODEL_DIR/checkpoint_STEP`, the newest `keep` of them; nothing frozen is ever in one.

    Nothing is written, or removed, before the first `save`.

    Attributes:
      directory: the run's folder.
      backbone: what the run trains on; None where it is not known, and not compared.
    """

    def __init__(
        self, model_dir: epath.PathLike, keep: int = 1, backbone: Identity | None = None
    ) -> None:
        self.directory, self.backbone = _absolute(model_dir), backbone
        self._keep = keep
        self._found: tuple[int, dict[str, Any]] | None = None
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._saving: concurrent.futures.Future | None = None

    @property
    def latest(self) -> int | None:
        """The newest step whose checkpoint is whole, or None; warns of damaged ones.

        Raises:
          CheckpointError: if there are checkpoints, but no whole one.
        """
        self.wait()
        self._found = self._found or _newest(self.directory)
        return None if self._found is None else self._found[0]

    @property
    def log(self) -> dict[str, Any]:
        """What `save` was given beside the newest state."""
        return {} if self.latest is None or self._found is None else self._found[1]["log"]

    def save(
        self,
        step: int,
        state: Any,
        log: Mapping[str, Any] | None = None,
        also: Collection[int] = (),
    ) -> None:
        """Saves in the background; a later save waits for it.

        Args:
          step: of the state.
          state: a tree of arrays, which may be donated as soon as this returns.
          log: of JSON, kept beside it.
          also: steps to keep beside the newest.
        """
        self.wait()
        folder = self._folder(step)
        # A bucket has no renaming of folders; there the manifest alone says what is complete.
        staging = folder if is_remote(folder) else folder.with_name(f"{folder.name}.tmp")
        if distributed.is_main():
            self.directory.mkdir(parents=True, exist_ok=True)
            for unfinished in self.directory.glob(f"{folder.name}.tmp*"):
                unfinished.rmtree()
        with _lean():
            writing = ocp.save_async(staging, {_NAME: state}, overwrite=True)
        backbone = None if self.backbone is None else dataclasses.asdict(self.backbone)
        content = {"step": step, "backbone": backbone, "log": dict(log or {})}
        self._found = None
        self._saving = self._thread.submit(self._commit, writing, staging, content, {*also})

    def _commit(
        self, writing: Any, staging: epath.Path, content: dict[str, Any], also: set[int]
    ) -> None:
        writing.result()
        if not distributed.is_main():
            return
        manifest.write(staging, content)
        folder = self._folder(content["step"])
        if staging != folder:
            _remove(folder)
            staging.rename(folder)
        # Later steps are those of damaged checkpoints that the run has gone back from.
        until = [step for step in steps(self.directory) if step <= content["step"]]
        kept = {f"checkpoint_{step}" for step in {*until[-self._keep :], *also}}
        for path in self.directory.glob("checkpoint_*"):
            ours = _FOLDER.fullmatch(path.name) or _UNFINISHED.fullmatch(path.name)
            if ours and path.name not in kept:
                _remove(path)

    def restore(self, state: Any, step: int | None = None) -> tuple[int, Any]:
        """The newest step, or the given one, and its state, laid out as the arrays of `state`.

        Raises:
          CheckpointError: if there is none, it is damaged, or its shapes are not those of `state`.
        """
        step = self.check(state, step)
        return step, ocp.load(self._folder(step), {_NAME: state})[_NAME]

    def check(self, state: Any, step: int | None = None) -> int:
        """The newest step, or the given one, if the run can go on from it; loads no array.

        Raises:
          CheckpointError: if there is none, or its backbone or shapes are not those of this run.
        """
        self.wait()
        if step is None:
            step = self.latest
        if step is None:
            raise CheckpointError(f"{self.directory}: no checkpoint_* folder in it")
        folder = self._folder(step)
        content = self._found[1] if self._found and self._found[0] == step else _read(folder)
        _check_backbone(folder, content["backbone"], self.backbone)
        trees = (ocp.metadata(folder).metadata, {_NAME: state})
        saved, wanted = (sorted(tuple(x.shape) for x in jax.tree.leaves(tree)) for tree in trees)
        if saved != wanted:
            raise CheckpointError(
                f"{folder}: its leaves are not those of this run; "
                "resume with the settings it was started with, or set another MODEL_DIR"
            )
        return step

    def wait(self) -> None:
        """Returns when all saves are complete; raises what went wrong in one."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()
            distributed.barrier("checkpoint")

    def close(self) -> None:
        """Waits for saves under way and closes."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _folder(self, step: int) -> epath.Path:
        return self.directory / f"checkpoint_{step}"


def steps(model_dir: epath.PathLike) -> list[int]:
    """The steps of a run's checkpoints, whole or not, in order."""
    names = (path.name for path in _absolute(model_dir).glob("checkpoint_*"))
    return sorted(int(found[1]) for name in names if (found := _FOLDER.fullmatch(name)))


def load_trained(model_dir: epath.PathLike) -> tuple[int, dict[str, Any]]:
    """The newest step of a run, and its trained leaves by path.

    Raises:
      CheckpointError: if the folder holds no whole checkpoint.
    """
    folder = _absolute(model_dir)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such run; check the folder")
    step = RunCheckpoints(folder).latest
    if step is None:
        raise CheckpointError(f"{folder}: no checkpoint_* folder in it")
    path, here = folder / f"checkpoint_{step}", SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
        ocp.metadata(path).metadata,
    )
    return step, flatten(ocp.load(path, shapes)[_NAME]["trained"])


def _lean() -> ocp.Context:
    """Orbax would write more about each leaf's sharding than a prompt has; a run knows its own."""
    context = ocp.Context()
    context.array.saving.enable_write_sharding_file = False
    context.array.saving.array_metadata_store = None
    return context


def _absolute(path: epath.PathLike) -> epath.Path:
    """Orbax asks for an absolute path; one with a scheme (gs://) is."""
    path = epath.Path(path).expanduser()
    return path if is_remote(path) else path.absolute()


def _newest(folder: epath.Path) -> tuple[int, dict[str, Any]] | None:
    """Step and manifest of the newest whole checkpoint; None if there is none at all."""
    damaged = []
    for step in reversed(steps(folder)):
        try:
            found = step, _read(folder / f"checkpoint_{step}")
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        for reason in damaged:
            warnings.warn(f"{reason}; going on from checkpoint_{step}", stacklevel=2)
        return found
    if damaged:
        raise CheckpointError(
            f"no whole checkpoint is left: {damaged[0]}; restore one, or set another MODEL_DIR"
        )
    return None


def _read(folder: epath.Path) -> dict[str, Any]:
    content = manifest.read(folder)
    if f"checkpoint_{content.get('step')}" != folder.name or {"backbone", "log"} - content.keys():
        raise CheckpointError(f"{folder}: is of another run or step ({content.get('step')})")
    return content


def _check_backbone(
    folder: epath.Path, saved: Mapping[str, Any] | None, here: Identity | None
) -> None:
    if saved and here and saved["fingerprint"] != here.fingerprint:
        raise CheckpointError(
            f"{folder}: was trained on the backbone {saved['fingerprint']} ({saved['path']!r}), "
            f"this one is {here.fingerprint} ({here.path!r}); "
            "resume with the backbone it was started with, or set another MODEL_DIR"
        )


def _remove(folder: epath.Path) -> None:
    """Removes a folder, if it is there, so that no half of it ever has its name."""
    if not folder.exists():
        return
    if not is_remote(folder) and not _UNFINISHED.fullmatch(folder.name):
        folder = folder.rename(folder.with_name(f"{folder.name}.tmp-old"))
    folder.rmtree()
