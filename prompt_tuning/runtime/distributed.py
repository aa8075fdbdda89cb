"""Several processes (hosts) as one run, over `jax.distributed`.

Where a process dies, JAX ends the others from C++: pages on stderr, then abort(). Here that becomes
one line that names the process: stderr passes through a thread, which keeps back what the
coordination service says, and a signal handler in C reads it when abort() comes.
"""

import contextlib
import ctypes
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from prompt_tuning.errors import UserError
from prompt_tuning.runtime.exit_status import RESUMABLE, USAGE_ERROR

HEARTBEAT_SECONDS = 30  # of silence, after which a process counts as dead
CONNECT_SECONDS = 120  # until all processes must have come together

_LOG_LINE = re.compile(r"[IWEF]\d{4} [\d:.]+ +\d+ (\w+\.\w+):\d+\]")
_OF_THE_SERVICE = re.compile(r"coordination_service\w*\.cc|preemption_\w+\.cc|client\.h")
_DEAD = re.compile(r"stopped sending heartbeats\):\s*((?:\d+\s+)+)")
_HOST_BYTES = 64


def initialize(
    coordinator_address: str | None = None,
    process_count: int | None = None,
    process_index: int | None = None,
) -> None:
    """Makes this process one of several; to be called before JAX uses a device.

    From then on a process that finds another one dead ends with a line on stderr and status 75, at
    most `HEARTBEAT_SECONDS` and a few more after the death. Where not all come together, those that
    are there end with a line and status 2. Prints and warnings come from process 0 alone.

    Args:
      coordinator_address: HOST:PORT of process 0, which opens the port.
      process_count, process_index: how many processes there are, and which this is. None, with the
        address, to find all three on Cloud TPU, Slurm, Open MPI or Kubernetes.

    Raises:
      UserError: for arguments that cannot be, or where nothing tells them.
    """
    given = (coordinator_address, process_count, process_index)
    if given != (None, None, None):
        _check(*given)
    hosts: list[str] = []
    _one_line_for_an_abort(lambda said: _explained(said, hosts, coordinator_address))
    try:
        jax.distributed.initialize(
            *given,
            initialization_timeout=CONNECT_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"--multiprocess: cannot join ({error}); outside of Cloud TPU, Slurm, Open MPI and "
            "Kubernetes give --coordinator_address, --process_count and --process_index"
        ) from error
    if jax.process_index():
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        warnings.simplefilter("ignore")
    name = socket.gethostname().encode()[:_HOST_BYTES].ljust(_HOST_BYTES, b"\0")
    names = multihost_utils.process_allgather(np.frombuffer(name, np.uint8))
    hosts += [bytes(row).rstrip(b"\0").decode(errors="replace") for row in names]


def _check(address: str | None, count: int | None, index: int | None) -> None:
    if address is None or count is None or index is None:
        raise UserError(
            f"--coordinator_address={address} --process_count={count} --process_index={index}: "
            "give all three, or --multiprocess alone"
        )
    if not re.fullmatch(r"\S+:\d{1,5}", address) or not 0 < int(address.rpartition(":")[2]) < 2**16:
        raise UserError(f"--coordinator_address={address}: must be HOST:PORT of process 0")
    if count < 1:
        raise UserError(f"--process_count={count}: must be at least 1")
    if not 0 <= index < count:
        raise UserError(
            f"--process_index={index}: must be from 0 to {count - 1}, below --process_count"
        )
    if index == 0:
        both = socket.has_dualstack_ipv6()
        place = ("", int(address.rpartition(":")[2]))
        family = socket.AF_INET6 if both else socket.AF_INET
        try:  # where JAX cannot open it, it may crash
            socket.create_server(place, family=family, dualstack_ipv6=both).close()
        except OSError as error:
            raise UserError(
                f"--coordinator_address={address}: process 0 cannot open the port "
                f"({error.strerror}); choose another"
            ) from error


def is_main() -> bool:
    """Whether this process writes files and prints: process 0, or the only one."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def to_host(array: Any) -> np.ndarray:
    """The whole of an array that may lie on the devices of several processes; to be called by all
    of them.
    """
    if isinstance(array, jax.Array) and not (
        array.is_fully_addressable or array.is_fully_replicated
    ):
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def of_main(number: int) -> int:
    """Process 0's number, on all processes."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def barrier(name: str) -> None:
    """Returns when all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def ends_for_all() -> Iterator[None]:
    """The whole of a command, in which `initialize` may be called: an error in this process ends it
    at once, so that the others hear of it; at an ordinary exit JAX waits for them.
    """
    try:
        yield
    except SystemExit as end:
        if not jax.distributed.is_initialized() or end.code in (None, 0, RESUMABLE):
            raise
        _leave(end.code if isinstance(end.code, int) else 1)
    except Exception:
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        _leave(1)


@contextlib.contextmanager
def deaths_first() -> Iterator[None]:
    """Holds back the error of a collective that another process's death broke off: JAX takes until
    the end of the heartbeat's time to tell which process it was, and then ends this one.
    """
    try:
        yield
    except Exception as error:
        if jax.distributed.is_initialized() and _is_broken_off(error):
            time.sleep(HEARTBEAT_SECONDS + 15)
        raise


def _is_broken_off(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, may be of a collective or a barrier."""
    if error is None:
        return False
    runtime = isinstance(error, jax.errors.JaxRuntimeError)
    named = re.search("Gloo|CoordinationService", str(error)) is not None
    return runtime or named or _is_broken_off(error.__cause__ or error.__context__)


def _leave(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.process_index() == 0:
        time.sleep(2)  # the others hear of what happened through this process
    os._exit(status)


def _explained(said: str, hosts: Sequence[str], address: str | None) -> tuple[str, int] | None:
    """What an abort means, and the exit status; None if it is not the coordination service's."""
    if not re.search(r"^F\d{4} ", said, re.MULTILINE):
        return None
    if not hosts:
        flag = f"--coordinator_address={address}" if address else "--multiprocess"
        return (
            f"{flag}: not all processes came together within "
            f"{CONNECT_SECONDS} seconds; check the address, --process_count, and that each runs"
        ), USAGE_ERROR
    if found := _DEAD.search(said):
        dead = sorted({int(index) for index in found[1].split()})
    elif "Failed to send RPC to coordination service" in said:
        dead = [0]
    else:
        return f"another process died: {' '.join(said.split())[:300]}", RESUMABLE
    names = " and ".join(f"process {i} of {len(hosts)} (on {hosts[i]})" for i in dead)
    return (
        f"{names} died or cannot be reached; see its own output, then start all processes again: "
        "they go on from the newest checkpoint"
    ), RESUMABLE


def _one_line_for_an_abort(explained: Callable[[str], tuple[str, int] | None]) -> None:
    """Puts one line and an exit status in place of an abort() that `explained` can explain by what
    the coordination service has said.
    """
    stderr = os.dup(2)
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)  # what Python says need not pass the pipe
    read, write = os.pipe()
    os.dup2(write, 2)
    os.close(write)
    said: list[str] = []

    def pass_on() -> None:
        held = False
        with os.fdopen(read, errors="replace") as lines:
            for line in lines:
                if found := _LOG_LINE.match(line):
                    held = bool(_OF_THE_SERVICE.fullmatch(found[1]))
                if held:
                    said.append(line)
                else:
                    os.write(stderr, line.encode())

    def aborted(number: int) -> None:
        time.sleep(0.5)  # for the thread to have read all
        if (meaning := explained("".join(said))) is None:
            os.write(stderr, "".join(said).encode())
            return  # abort() goes on
        line, status = meaning
        if status == RESUMABLE and jax.process_index() == 0:
            time.sleep(2)  # the others hear of it through this process
        os.write(stderr, f"error: {line}\n".encode())
        os._exit(status)

    threading.Thread(target=pass_on, daemon=True).start()
    # Python's own handlers run in the main thread, which abort() leaves no time.
    global _handler
    _handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted)
    ctypes.CDLL(None).signal(signal.SIGABRT, _handler)


_handler: Any = None  # what C calls must not be collected
