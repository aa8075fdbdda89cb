"""Saves and restores a run's checkpoints through Orbax: step, trained leaves, optimizer state.

A checkpoint is renamed to `checkpoint_STEP` once it is on the disk together with its manifest, and
older ones are removed after that, so the process may be killed at any moment.
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
from prompt_tuning.transformer.paths import flatten

_NAME = "train_state"
_FOLDER = re.compile(r"checkpoint_(\d+)")
_UNFINISHED = re.compile(r"checkpoint_\d+\.tmp.*")


class RunCheckpoints:
    """The newest `keep` checkpoints of a run, `MODEL_DIR/checkpoint_STEP`, without frozen leaves.

    Nothing is written or removed before the first `save`.

    Attributes:
      directory: folder of the run.
      backbone: identity of the run's backbone; None if unknown, and then not compared.
    """

    def __init__(
        self, model_dir: epath.PathLike, keep: int = 1, backbone: Identity | None = None
    ) -> None:
        self.directory, self.backbone = _absolute(model_dir), backbone
        self._keep = keep
        self._newest: tuple[int, dict[str, Any]] | None = None  # step and manifest
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._saving: concurrent.futures.Future | None = None

    @property
    def latest(self) -> int | None:
        """The step of the newest intact checkpoint, or None; warns about damaged ones.

        Raises:
          CheckpointError: if there are checkpoints, but none is intact.
        """
        self.wait()
        self._newest = self._newest or _newest(self.directory)
        return None if self._newest is None else self._newest[0]

    @property
    def log(self) -> dict[str, Any]:
        """The `log` argument of the most recent `save`."""
        return {} if self.latest is None or self._newest is None else self._newest[1]["log"]

    @property
    def about(self) -> dict[str, Any]:
        """The `about` argument of the most recent `save`; empty if an earlier version saved."""
        latest = self.latest
        return {} if latest is None or self._newest is None else self._newest[1].get("about", {})

    @property
    def backbone_path(self) -> str:
        """Path of the backbone that the newest checkpoint was trained on; "" if unknown."""
        latest = self.latest
        known = self._newest[1]["backbone"] if latest is not None and self._newest else None
        return known["path"] if known else ""

    def save(
        self,
        step: int,
        state: Any,
        log: Mapping[str, Any] | None = None,
        also: Collection[int] = (),
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Saves in the background; the next save waits for this one.

        Args:
          step: step of the state.
          state: tree of arrays, which may be donated as soon as this returns.
          log: JSON to store with the state.
          also: steps to keep besides the newest ones.
          about: JSON that describes the run, which `about` returns.
        """
        self.wait()
        folder = self._folder(step)
        # Folders in a bucket cannot be renamed; there, only the manifest marks a complete one.
        staging = folder if is_remote(folder) else folder.with_name(f"{folder.name}.tmp")
        if distributed.is_main():
            self.directory.mkdir(parents=True, exist_ok=True)
            for unfinished in self.directory.glob(f"{folder.name}.tmp*"):
                unfinished.rmtree()
        with _lean():
            writing = ocp.save_async(staging, {_NAME: state}, overwrite=True)
        backbone = None if self.backbone is None else dataclasses.asdict(self.backbone)
        content = {
            "step": step,
            "backbone": backbone,
            "log": dict(log or {}),
            "about": dict(about or {}),
        }
        self._newest = None
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
        # Later steps belong to damaged checkpoints, from before the run fell back to an older one.
        earlier = [step for step in steps(self.directory) if step <= content["step"]]
        kept = {f"checkpoint_{step}" for step in {*earlier[-self._keep :], *also}}
        for path in self.directory.glob("checkpoint_*"):
            is_checkpoint = _FOLDER.fullmatch(path.name) or _UNFINISHED.fullmatch(path.name)
            if is_checkpoint and path.name not in kept:
                _remove(path)

    def restore(self, state: Any, step: int | None = None) -> tuple[int, Any]:
        """Loads a step, by default the newest, with the shardings of `state`; returns both.

        Raises:
          CheckpointError: if there is none, it is damaged, or its shapes differ from `state`.
        """
        step = self.check(state, step)
        return step, ocp.load(self._folder(step), {_NAME: state})[_NAME]

    def check(self, state: Any, step: int | None = None) -> int:
        """Returns a step, by default the newest, if the run can resume from it; loads no array.

        Raises:
          CheckpointError: if there is none, or its backbone or shapes are not those of this run.
        """
        self.wait()
        if step is None:
            step = self.latest
        if step is None:
            raise CheckpointError(f"{self.directory}: contains no checkpoint_* folder")
        folder = self._folder(step)
        newest = self._newest
        content = newest[1] if newest and newest[0] == step else _read(folder)
        _check_backbone(folder, content["backbone"], self.backbone)
        trees = (ocp.metadata(folder).metadata, {_NAME: state})
        saved, wanted = (sorted(tuple(x.shape) for x in jax.tree.leaves(tree)) for tree in trees)
        if saved != wanted:
            raise CheckpointError(
                f"{folder}: its leaves are not those of this run; "
                "resume with the original settings, or set another MODEL_DIR"
            )
        return step

    def check_backbone(self) -> None:
        """Raises CheckpointError if the newest checkpoint is of another backbone than this run."""
        if self.latest is not None and self._newest is not None:
            folder = self._folder(self._newest[0])
            _check_backbone(folder, self._newest[1]["backbone"], self.backbone)

    def wait(self) -> None:
        """Waits until all saves are complete; raises the error of one that failed."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()
            distributed.barrier("checkpoint")

    def close(self) -> None:
        """Waits for pending saves, and closes."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _folder(self, step: int) -> epath.Path:
        return self.directory / f"checkpoint_{step}"


def steps(model_dir: epath.PathLike) -> list[int]:
    """The steps of a run's checkpoints, intact or not, in ascending order."""
    names = (path.name for path in _absolute(model_dir).glob("checkpoint_*"))
    return sorted(int(match[1]) for name in names if (match := _FOLDER.fullmatch(name)))


def load_trained(model_dir: epath.PathLike) -> tuple[int, dict[str, Any]]:
    """Loads the newest step of a run, and its trained leaves by path.

    Raises:
      CheckpointError: if the folder contains no intact checkpoint.
    """
    folder = _absolute(model_dir)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such run; check the folder")
    step = RunCheckpoints(folder).latest
    if step is None:
        raise CheckpointError(f"{folder}: contains no checkpoint_* folder")
    path, device = folder / f"checkpoint_{step}", SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        ocp.metadata(path).metadata,
    )
    return step, flatten(ocp.load(path, shapes)[_NAME]["trained"])


def _lean() -> ocp.Context:
    """An Orbax context without files on shardings, which can exceed a prompt and are not needed."""
    context = ocp.Context()
    context.array.saving.enable_write_sharding_file = False
    context.array.saving.array_metadata_store = None
    return context


def _absolute(path: epath.PathLike) -> epath.Path:
    """The absolute path, which Orbax requires; a path with a scheme (gs://) is absolute."""
    path = epath.Path(path).expanduser()
    return path if is_remote(path) else path.absolute()


def _newest(folder: epath.Path) -> tuple[int, dict[str, Any]] | None:
    """Step and manifest of the newest intact checkpoint; None if there are no checkpoints."""
    damaged = []
    for step in reversed(steps(folder)):
        try:
            content = _read(folder / f"checkpoint_{step}")
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        for reason in damaged:
            warnings.warn(f"{reason}; resuming from checkpoint_{step}", stacklevel=2)
        return step, content
    if damaged:
        raise CheckpointError(
            f"no intact checkpoint: {damaged[0]}; restore one, or set another MODEL_DIR"
        )
    return None


def _read(folder: epath.Path) -> dict[str, Any]:
    content = manifest.read(folder)
    if f"checkpoint_{content.get('step')}" != folder.name or {"backbone", "log"} - content.keys():
        raise CheckpointError(f"{folder}: belongs to another run or step ({content.get('step')})")
    return content


def _check_backbone(
    folder: epath.Path, saved: Mapping[str, Any] | None, current: Identity | None
) -> None:
    if saved and current and saved["fingerprint"] != current.fingerprint:
        path = "its weights have changed" if saved["path"] == current.path else repr(current.path)
        raise CheckpointError(
            f"{folder}: was trained on the backbone {saved['fingerprint']} ({saved['path']!r}), "
            f"but this one is {current.fingerprint} ({path}); "
            "resume with the original backbone, or set another MODEL_DIR"
        )


def _remove(folder: epath.Path) -> None:
    """Removes a folder, if it exists; a partly removed one never has the name of a checkpoint."""
    if not folder.exists():
        return
    if not is_remote(folder) and not _UNFINISHED.fullmatch(folder.name):
        folder = folder.rename(folder.with_name(f"{folder.name}.tmp-old"))
    folder.rmtree()
