"""Runs several processes (hosts) as one run, over `jax.distributed`.

When a process dies, JAX ends the others from C++: pages on stderr, then abort(). So a command forks
before it joins a run (`join`): the parent copies the child's stderr without the lines of the
coordination service, and writes one line in their place that names the dead process.
"""

import contextlib
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import IO, Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from prompt_tuning.errors import UserError
from prompt_tuning.runtime.exit_status import RESUMABLE, USAGE_ERROR

HEARTBEAT_SECONDS = 30  # of silence, after which a process counts as dead
CONNECT_SECONDS = 120  # until all processes must have joined

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_LOG_LINE = re.compile(r"[IWEF]\d{4} [\d:.]+ +\d+ (\w+\.\w+):\d+\]")
_OF_THE_SERVICE = re.compile(r"coordination_service\w*\.cc|preemption_\w+\.cc|client\.h")
_DEAD = re.compile(r"stopped sending heartbeats\):\s*((?:\d+\s+)+)")
_HOST_BYTES = 64


def join(
    coordinator_address: str | None = None,
    process_count: int | None = None,
    process_index: int | None = None,
) -> None:
    """Makes a command one process of a run, in a child of this process; returns in the child.

    Afterwards, a process that finds another one dead ends with one line on stderr and status 75, at
    most about `HEARTBEAT_SECONDS` after the death. If not all processes join, those that have
    joined end with one line and status 2. Only process 0 prints and warns.

    Args:
      coordinator_address: HOST:PORT of process 0, which opens the port.
      process_count, process_index: number of processes, and number of this one. All three are None
        to find them on Cloud TPU, Slurm, Open MPI or Kubernetes.

    Raises:
      UserError: if the arguments are invalid, or None where they cannot be found.
    """
    arguments = (coordinator_address, process_count, process_index)
    if arguments != (None, None, None):
        _check(*arguments)
    hosts = _in_child(coordinator_address)
    try:
        jax.distributed.initialize(
            *arguments,
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
    with hosts:
        hosts.writelines(bytes(row).rstrip(b"\0") + b"\n" for row in names)


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
    """Whether this process writes files and prints: process 0, or the only process."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def to_host(array: Any) -> np.ndarray:
    """Copies an array to the host, also from devices of other processes; all must call this."""
    if isinstance(array, jax.Array) and not (
        array.is_fully_addressable or array.is_fully_replicated
    ):
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def of_main(number: int) -> int:
    """Returns the number that process 0 passes, on all processes."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def barrier(name: str) -> None:
    """Waits until all processes have called this."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def ends_for_all() -> Iterator[None]:
    """Context of a whole command that may call `join`: an error ends this process at once.

    Otherwise JAX would wait, at exit, for the other processes, which would not notice the error.
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
    """Delays the error of a collective that was interrupted by the death of another process.

    Within the heartbeat's time JAX finds out which process it was, and then ends this one.
    """
    try:
        yield
    except Exception as error:
        if jax.distributed.is_initialized() and _is_of_a_collective(error):
            time.sleep(HEARTBEAT_SECONDS + 15)
        raise


def _is_of_a_collective(error: BaseException | None) -> bool:
    """Whether an error, or a cause of it, may come from a collective or a barrier."""
    if error is None:
        return False
    runtime = isinstance(error, jax.errors.JaxRuntimeError)
    named = re.search("Gloo|CoordinationService", str(error)) is not None
    return runtime or named or _is_of_a_collective(error.__cause__ or error.__context__)


def _leave(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.process_index() == 0:
        time.sleep(2)  # the others learn of the error from the service in this process
    os._exit(status)


def _in_child(address: str | None) -> IO[bytes]:
    """Forks; returns, in the child, a file to write the names of the hosts to.

    The parent forwards signals to the child, copies its stderr, and ends as it ends. The child gets
    its own process group, so that Ctrl-C reaches it once, and ends if the parent is killed. To be
    called before JAX has devices.
    """
    hosts = tempfile.TemporaryFile()  # noqa: SIM115 (closed by the caller)
    stderr_of_child, stderr = os.pipe()
    parent_is_gone, parent_lives = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of JAX and Python, on forks of a process with threads
        child = os.fork()
    if child:
        os.close(stderr)
        _supervise(child, stderr_of_child, hosts, address)
    os.setpgid(0, 0)
    os.close(parent_lives)
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)  # Python's own lines need not be filtered
    os.dup2(stderr, 2)
    os.close(stderr)

    def end_with_parent() -> None:
        os.read(parent_is_gone, 1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=end_with_parent, daemon=True).start()
    return hosts


def _supervise(child: int, stderr: int, hosts: IO[bytes], address: str | None) -> NoReturn:
    """Waits for a child, and ends as it ends; an abort() of JAX is explained in one line."""
    for number in _FORWARDED:
        signal.signal(number, lambda number, _: os.kill(child, number))
    service_lines: list[str] = []

    def copy_stderr() -> None:
        from_service = False
        with os.fdopen(stderr, errors="replace") as lines:
            for line in lines:
                if match := _LOG_LINE.match(line):
                    from_service = bool(_OF_THE_SERVICE.fullmatch(match[1]))
                if from_service:
                    service_lines.append(line)
                else:
                    os.write(2, line.encode())

    reader = threading.Thread(target=copy_stderr, daemon=True)
    reader.start()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    reader.join(timeout=5)  # another process may have inherited the child's stderr
    if status == -signal.SIGABRT:
        hosts.seek(0)
        names = hosts.read().decode(errors="replace").splitlines()
        text = "".join(service_lines)
        if explanation := _explained(text, names, address):
            line, status = explanation
            text = f"error: {line}\n"
        os.write(2, text.encode())
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def _explained(
    service_lines: str, hosts: Sequence[str], address: str | None
) -> tuple[str, int] | None:
    """Message and exit status of an abort; None if the coordination service did not cause it."""
    if not re.search(r"^F\d{4} ", service_lines, re.MULTILINE):
        return None
    if not hosts:
        flag = f"--coordinator_address={address}" if address else "--multiprocess"
        return (
            f"{flag}: not all processes joined within {CONNECT_SECONDS} seconds; check the "
            "address, --process_count, and that each process runs"
        ), USAGE_ERROR
    if match := _DEAD.search(service_lines):
        dead = sorted({int(index) for index in match[1].split()})
    elif "Failed to send RPC to coordination service" in service_lines:
        dead = [0]
    else:
        return f"another process died: {' '.join(service_lines.split())[:300]}", RESUMABLE
    names = " and ".join(f"process {i} of {len(hosts)} (on {hosts[i]})" for i in dead)
    return (
        f"{names} died or cannot be reached; see its own output, then start all processes again "
        "to resume from the latest checkpoint"
    ), RESUMABLE
