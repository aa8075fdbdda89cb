"""Divides the devices of a host among processes that run at the same time."""

import dataclasses
import glob
import os
from collections.abc import Mapping, Sequence

from prompt_tuning.errors import UserError

# The box of chips that libtpu expects, by their number.
_TPU_BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of a host that one process may use.

    Attributes:
      cores: Numbers of CPU cores; None for all.
      environ: Environment variables that limit JAX to some of the accelerators.
    """

    cores: tuple[int, ...] | None = None
    environ: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def take(self) -> None:
        """Confines this process to the share; call it before JAX starts its devices."""
        if self.cores is not None:
            os.sched_setaffinity(0, self.cores)
        os.environ.update(self.environ)


def shares(workers: int) -> list[Share]:
    """Divides this host into one share per worker; a single worker has all of it.

    Raises:
      UserError: if there are more workers than devices, or the TPU chips cannot be divided.
    """
    if workers < 1:
        raise UserError(f"--workers={workers}: must be at least 1")
    if workers == 1:
        return [Share()]
    cores = sorted(os.sched_getaffinity(0))
    gpus, chips = _gpus(), _tpu_chips()
    for kind, devices in (("CPU core", cores), ("GPU", gpus), ("TPU chip", chips)):
        if 0 < len(devices) < workers:
            raise UserError(
                f"--workers={workers}: must be at most {len(devices)}, the number of {kind}s here"
            )
    if chips and (len(chips) % workers or len(chips) // workers not in _TPU_BOUNDS):
        raise UserError(f"--workers={workers}: must divide {len(chips)}, the number of TPU chips")
    return [
        Share(
            tuple(_part(cores, i, workers)),
            _environ(_part(gpus, i, workers), _part(chips, i, workers)),
        )
        for i in range(workers)
    ]


def _part(items: Sequence, index: int, count: int) -> Sequence:
    """Returns a run of neighbours, which share caches and links."""
    return items[index * len(items) // count : (index + 1) * len(items) // count]


def _environ(gpus: Sequence[str], chips: Sequence[str]) -> dict[str, str]:
    environ = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
    if chips:
        environ["TPU_VISIBLE_CHIPS"] = ",".join(chips)
        environ["TPU_CHIPS_PER_PROCESS_BOUNDS"] = _TPU_BOUNDS[len(chips)]
        environ["TPU_PROCESS_BOUNDS"] = "1,1,1"
    return environ


def _gpus() -> list[str]:
    """Lists the GPUs without JAX, which would occupy them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu for gpu in visible.split(",") if gpu]
    return [str(i) for i in range(len(glob.glob("/dev/nvidia[0-9]*")))]


def _tpu_chips() -> list[str]:
    files = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    return [str(i) for i in range(len(files))]
