"""The devices of a host, divided among processes that run at the same time."""

import dataclasses
import glob
import os
from collections.abc import Mapping, Sequence

from prompt_tuning.errors import UserError

# The box of chips that libtpu is told of, by their number.
_TPU_BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}


@dataclasses.dataclass(frozen=True)
class Share:
    """What one process may use.

    Attributes:
      cores: of the CPU; None for all.
      environ: variables that tell JAX of the accelerators.
    """

    cores: tuple[int, ...] | None = None
    environ: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def take(self) -> None:
        """Confines this process, in which JAX has no devices yet."""
        if self.cores is not None:
            os.sched_setaffinity(0, self.cores)
        os.environ.update(self.environ)


def shares(workers: int) -> list[Share]:
    """As many shares of this host as there are workers; with one it is the whole host.

    Raises:
      UserError: if there are more workers than devices, or chips that do not divide.
    """
    if workers < 1:
        raise UserError(f"--workers={workers}: must be at least 1")
    if workers == 1:
        return [Share()]
    cores = sorted(os.sched_getaffinity(0))
    gpus, chips = _gpus(), _tpu_chips()
    for what, there in (("CPU cores", cores), ("GPUs", gpus), ("TPU chips", chips)):
        if 0 < len(there) < workers:
            raise UserError(f"--workers={workers}: there are {len(there)} {what} to divide")
    if chips and (len(chips) % workers or len(chips) // workers not in _TPU_BOUNDS):
        raise UserError(f"--workers={workers}: must divide the {len(chips)} TPU chips")
    return [
        Share(
            tuple(_part(cores, i, workers)),
            _environ(_part(gpus, i, workers), _part(chips, i, workers)),
        )
        for i in range(workers)
    ]


def _part(items: Sequence, index: int, count: int) -> Sequence:
    """Neighbours: they share caches, and links."""
    return items[index * len(items) // count : (index + 1) * len(items) // count]


def _environ(gpus: Sequence[str], chips: Sequence[str]) -> dict[str, str]:
    found = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
    if chips:
        found["TPU_VISIBLE_CHIPS"] = ",".join(chips)
        found["TPU_CHIPS_PER_PROCESS_BOUNDS"] = _TPU_BOUNDS[len(chips)]
        found["TPU_PROCESS_BOUNDS"] = "1,1,1"
    return found


def _gpus() -> list[str]:
    """Without JAX, which would take them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [gpu for gpu in given.split(",") if gpu]
    return [str(i) for i in range(len(glob.glob("/dev/nvidia[0-9]*")))]


def _tpu_chips() -> list[str]:
    there = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    return [str(i) for i in range(len(there))]
