"""Does a run survive? Kills runs at random moments, and breaks what they write to.

Each run is `python -m prompt_tuning.train` on a backbone and data made here, in a process forked
from one that has imported everything; what it leaves is compared with an uninterrupted run.
"""

import collections
import contextlib
import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags

from prompt_tuning.checkpoint import backbone, manifest, run
from prompt_tuning.errors import CheckpointError
from prompt_tuning.methods import ModelTuning
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.runtime.files import write_json
from prompt_tuning.t5.config import preset

PHASES = ("start", "steps", "evaluation", "saving", "end")
STEPS = 120
AT_WORK = f"/{STEPS}  loss"
CONFIG = dataclasses.replace(preset("nano"), num_encoder_layers=1, num_decoder_layers=1)
NANO = """
from __gin__ import dynamic_registration
include 'common/t5.gin'
import seqio
from prompt_tuning.t5 import config
MODEL = @config.T5Config()
config.T5Config.dropout_rate = %DROPOUT_RATE
VOCABULARY = @seqio.ByteVocabulary()
seqio.ByteVocabulary.extra_ids = 0
"""
_FORK = multiprocessing.get_context("forkserver")


class Ended(NamedTuple):
    """How a run ended: exit status (negative: by a signal), what it printed, where it was."""

    status: int
    out: str
    err: str
    phase: str


class Bench:
    """Folders of inputs and outputs, and the command's arguments."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rng = np.random.default_rng(0)
        shapes = ParamSplit.of(CONFIG, ModelTuning()).shapes
        leaves = {path: rng.normal(0, 0.1, leaf.shape) for path, leaf in shapes.items()}
        backbone.save(folder / "nano.safetensors", leaves, "float32")
        sizes = {name: value for name, value in vars(CONFIG).items() if type(value) is int}
        lines = (f"config.T5Config.{name} = {value}\n" for name, value in sizes.items())
        (folder / "nano.gin").write_text(NANO + "".join(lines))
        rows = [{"text": f"{rng.integers(10**6)}", "label": "yn"[i % 2]} for i in range(64)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def arguments(self, model_dir: Path, *more: str) -> list[str]:
        macros = {
            "MODEL_DIR": model_dir,
            "INITIAL_CHECKPOINT_PATH": self.folder / "nano.safetensors",
            "TRAIN_FILE": self.folder / "rows.jsonl",
            "VALIDATION_FILE": self.folder / "rows.jsonl",
            "CLASS_LABELS": "('y', 'n')",
            "TASK_FEATURE_LENGTHS": "{'inputs': 8, 'targets': 4}",
            "BATCH_SIZE": 8,
            "PROMPT_LENGTH": 4,
            "SampledVocabulary.top": 100,
            "TRAIN_STEPS": STEPS,
            "CHECKPOINT_PERIOD": 4,
            "EVAL_PERIOD": 6,
            "LOG_PERIOD": 5,
        }
        files = ("nano.gin", "methods/prompt_tuning.gin", "runs/finetune.gin")
        return [
            "train",
            f"--gin_search_paths={self.folder}",
            *(f"--gin_file={name}" for name in files),
            *(f"--gin.{name}={value}" for name, value in macros.items()),
            *more,
        ]

    def start(self, model_dir: Path, *more: str, before: Callable[[], None] | None = None) -> "Run":
        return Run(self, self.arguments(model_dir, *more), before)


class Run:
    """A run in a process of its own."""

    def __init__(
        self, bench: Bench, argv: Sequence[str], before: Callable[[], None] | None
    ) -> None:
        self._out = Path(tempfile.mkdtemp(dir=bench.folder))
        self._phase, self._saving = _FORK.Value("i", 0), _FORK.Value("i", 0)
        given = (argv, str(self._out), self._phase, self._saving, before)
        self.process = _FORK.Process(target=_train, args=given)
        self.process.start()

    def wait_for(self, line: str) -> bool:
        """Returns when the run has printed a line with these words, or has ended (False)."""
        while self.process.is_alive():
            if line in self._text("out"):
                return True
            time.sleep(0.005)
        return False

    def kill(self) -> Ended:
        os.kill(self.process.pid, signal.SIGKILL)
        return self.ended()

    def ended(self, timeout: float = 300) -> Ended:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise RuntimeError("a run hangs")
        phase = "saving" if self._saving.value else PHASES[self._phase.value]
        return Ended(self.process.exitcode, self._text("out"), self._text("err"), phase)

    def _text(self, name: str) -> str:
        path = self._out / name
        return path.read_text() if path.exists() else ""


def _train(argv: Sequence[str], out: str, phase: Any, saving: Any, before: Any) -> None:
    """The command, in the forked process; notes in shared memory what it is at."""
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(f"{out}/{name}", os.O_WRONLY | os.O_CREAT, 0o666), number)
    sys.stdout.reconfigure(line_buffering=True)
    from prompt_tuning.checkpoint.run import RunCheckpoints
    from prompt_tuning.cli import gin_command
    from prompt_tuning.evaluation import validation
    from prompt_tuning.runs import train
    from prompt_tuning.training import loop

    def noted(function: Callable, value: Any, during: int, after: int) -> Callable:
        def noting(*arguments: Any, **named: Any) -> Any:
            value.value = during
            try:
                return function(*arguments, **named)
            finally:
                value.value = after

        return noting

    RunCheckpoints._commit = noted(RunCheckpoints._commit, saving, 1, 0)
    validation.Validation.__call__ = noted(validation.Validation.__call__, phase, 2, 1)
    loop.Fit.__call__ = noted(loop.Fit.__call__, phase, 1, PHASES.index("end"))
    if before:
        before()
    sys.argv = list(argv)
    gin_command.main(train.train)


def result_of(folder: Path) -> dict[str, Any]:
    """What a run made, less times, its own folder's name, and where it was resumed."""
    found: dict[str, Any] = {}
    for path in (*folder.glob("prompt_*.*"), *folder.glob("trained_*"), folder / "result.json"):
        found[path.name] = path.read_bytes()
        if path.suffix == ".json":
            fields = json.loads(path.read_text())
            for name in ("config", "seconds", "resumed_from_step"):
                fields.pop(name, None)
            found[path.name] = fields
    for path in folder.glob("**/metrics.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found[str(path.relative_to(folder))] = [
            {name: value for name, value in line.items() if not name.startswith("timing/")}
            for line in lines
        ]
    return found


def whole(folder: Path) -> list[int]:
    """Steps of a run's checkpoints; raises CheckpointError unless all are whole."""
    found = run.steps(folder)
    for step in found:
        manifest.read(run.epath.Path(folder) / f"checkpoint_{step}")
    return found


def kill_campaign(
    bench: Bench, kills: int, reference: dict[str, Any], start: float
) -> dict[str, Any]:
    """SIGKILLs until there are `kills` of them, each run until it ends, however often it takes;
    `start` is how many seconds a run takes to its first step.
    """
    rng = random.Random(0)
    done, identical, runs, lost = 0, 0, 0, 0
    phases: collections.Counter[str] = collections.Counter()
    while done < kills:
        folder, newest = bench.folder / f"run_{runs}", 0
        runs += 1
        while True:
            process, began = bench.start(folder), time.perf_counter()
            # A third of the kills somewhere in the start, the others of runs at work.
            if rng.random() < 1 / 3:
                time.sleep(rng.uniform(0, start))
            elif process.wait_for(AT_WORK):
                start = min(start, time.perf_counter() - began)
                time.sleep(rng.uniform(0, 1.5))
            alive = done < kills and process.process.is_alive()
            ended = process.kill() if alive else process.ended()
            went_on = f"resuming from step {newest}\n" in ended.out
            lost += "resuming from step" in ended.out and not went_on
            if ended.status != -signal.SIGKILL:
                if ended.status:
                    raise RuntimeError(f"a run failed: {ended.err}")
                break
            done += 1
            phases[ended.phase] += 1
            try:
                found = max(whole(folder), default=0)
            except CheckpointError as error:
                print(f"lost: {error}", flush=True)
                found = -1
            lost += found < newest
            newest = max(found, newest)
            if done % 10 == 0:
                print(f"{done} kills, {runs} runs, step {newest}", flush=True)
        identical += result_of(folder) == reference
        shutil.rmtree(folder)
    return {
        "kills": done,
        "identical": identical == runs,
        "lost": lost,
        "runs": runs,
        "killed_while": {phase: phases[phase] for phase in PHASES},
    }


def damages(content: bytes) -> Iterator[tuple[str, bytes | None]]:
    yield "missing", None
    if content:
        yield "empty", b""
        yield "cut by a byte", content[:-1]
        yield "cut in half", content[: len(content) // 2]
        for place in sorted({0, len(content) // 3, len(content) // 2, len(content) - 1}):
            flipped = bytes([content[place] ^ 1 << place % 8])
            yield f"bit of byte {place}", content[:place] + flipped + content[place + 1 :]


def each_file(bench: Bench, finished: Path) -> tuple[str, bool]:
    """Each file of the newest of two checkpoints, in each way: the one before is used."""
    cases = detected = 0
    newest = f"checkpoint_{max(run.steps(finished))}"
    for name in sorted(p.relative_to(finished) for p in (finished / newest).rglob("*")):
        path = finished / name
        if path.is_dir():
            continue
        content = path.read_bytes()
        for _, damaged in damages(content):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                found = run.RunCheckpoints(finished).latest
            cases += 1
            detected += found == min(run.steps(finished)) and newest in str(told[0].message)
            path.write_bytes(content)
    return f"{detected} of {cases} cases detected", detected == cases


def second_run(bench: Bench, reference: dict[str, Any]) -> tuple[str, bool]:
    folder = bench.folder / "second"
    first = bench.start(folder)
    first.wait_for("validation at")
    second = bench.start(folder).ended()
    same = first.ended().status == 0 and result_of(folder) == reference
    return told(second), second.status == 2 and "another run" in second.err and same


def disk_full(bench: Bench, reference: dict[str, Any]) -> tuple[str, bool]:
    """A file system of 16 MiB that fills up while the run is at work, and is emptied again."""
    with SmallDisk(bench) as disk:
        if disk is None:
            return "skipped: no leave to mount a tmpfs", True
        process = bench.start(disk / "run")
        process.wait_for("validation at")
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while process.process.is_alive():
                file.write(b"0" * 4096)
        ended = process.ended()
        filler.unlink(missing_ok=True)
        again = bench.start(disk / "run").ended()
        same = again.status == 0 and result_of(disk / "run") == reference
        return f"{told(ended)}; then identical: {same}", ended.status == 2 and same


def read_only(bench: Bench, reference: dict[str, Any]) -> tuple[str, bool]:
    with SmallDisk(bench) as disk:
        if disk is None:
            return "skipped: no leave to mount a tmpfs", True
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        ended = bench.start(disk / "run").ended()
        return told(ended), ended.status == 2


def no_permission(bench: Bench, reference: dict[str, Any]) -> tuple[str, bool]:
    folder = bench.folder / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    ended = bench.start(folder / "run", before=_nobody if os.getuid() == 0 else None).ended()
    return told(ended), ended.status == 2 and "ermission" in ended.err


def _nobody() -> None:
    """Root may write anywhere; what comes after may not even be allowed to import."""
    "".encode("utf-8-sig")
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)


def clock(bench: Bench, reference: dict[str, Any]) -> tuple[str, bool]:
    """Newer checkpoints with older times, all of them in the future, and a clock of the past."""
    folder = bench.folder / "clock"
    process = bench.start(folder, "--gin.CHECKPOINT_KEEP=3")
    process.wait_for("step 60/")
    process.kill()
    steps = run.steps(folder)
    for i, step in enumerate(steps):
        for path in (folder / f"checkpoint_{step}").rglob("*"):
            os.utime(path, (4e9 - 1e6 * i,) * 2)
        os.utime(folder / f"checkpoint_{step}", (4e9 - 1e6 * i,) * 2)
    ended = bench.start(folder, "--gin.CHECKPOINT_KEEP=3", before=_long_ago).ended()
    good = ended.status == 0 and f"resuming from step {max(steps)}" in ended.out
    same = good and result_of(folder) == reference
    return f"{len(steps)} checkpoints; then identical: {same}", same


def _long_ago() -> None:
    now, ago = time.time, 10**9
    time.time = lambda: now() - ago


def sigterm(bench: Bench, reference: dict[str, Any]) -> tuple[str, bool]:
    folder, statuses = bench.folder / "sigterm", []
    rng = random.Random(0)
    while True:
        process = bench.start(folder)
        if len(statuses) < 5 and process.wait_for("going on" if statuses else "validation at"):
            time.sleep(rng.uniform(0, 1))
            process.process.terminate()
        ended = process.ended()
        statuses.append(ended.status)
        if ended.status != 75:
            break
    same = ended.status == 0 and result_of(folder) == reference
    return f"exit status 75 {len(statuses) - 1} times; then identical: {same}", same


def told(ended: Ended) -> str:
    """The exit status, and the one line, or the last and how many."""
    lines = ended.err.strip().splitlines() or [""]
    return f"status {ended.status}: {lines[-1][:200]}" + f" ({len(lines)} lines)" * (len(lines) > 1)


class SmallDisk:
    """A mounted tmpfs; None where there is no leave to mount one."""

    def __init__(self, bench: Bench) -> None:
        self._folder = Path(tempfile.mkdtemp(dir=bench.folder))

    def __enter__(self) -> Path | None:
        mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(self._folder)]
        self._mounted = not subprocess.run(mount, capture_output=True, check=False).returncode
        return self._folder if self._mounted else None

    def __exit__(self, *error: object) -> None:
        if self._mounted:
            subprocess.run(["umount", "-l", str(self._folder)], check=True)


def main(argv: Sequence[str]) -> None:
    del argv
    began = time.perf_counter()
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    _FORK.set_forkserver_preload(
        ["prompt_tuning.cli.gin_command", "prompt_tuning.runs.train", "prompt_tuning.data.source"]
    )
    bench = Bench(folder)
    finished = folder / "reference"
    process = bench.start(finished, "--gin.CHECKPOINT_KEEP=2")
    process.wait_for(AT_WORK)
    start = time.perf_counter() - began
    ended = process.ended()
    if ended.status:
        sys.exit(ended.err)
    reference = result_of(finished)
    print(f"the uninterrupted run: {time.perf_counter() - began:.0f} s", flush=True)
    found = kill_campaign(bench, flags.FLAGS.kills, reference, start)
    print(json.dumps(found), flush=True)
    rows = {"each file of a checkpoint damaged": each_file(bench, finished)}
    cases = {
        "second run in one MODEL_DIR": second_run,
        "disk full": disk_full,
        "read-only file system": read_only,
        "no permission": no_permission,
        "clock going backwards": clock,
        "SIGTERM": sigterm,
    }
    for name, case in cases.items():
        rows[name] = case(bench, reference)
        print(f"{'good' if rows[name][1] else 'BAD '}  {name}: {rows[name][0]}", flush=True)
    for name, (what, good) in rows.items():
        print(f"{'good' if good else 'BAD '}  {name}: {what}")
    print(json.dumps(found))
    if flags.FLAGS.json:
        cases_json = {name: {"told": what, "good": good} for name, (what, good) in rows.items()}
        seconds = round(time.perf_counter() - began)
        write_json(flags.FLAGS.json, found | {"cases": cases_json, "seconds": seconds})
    shutil.rmtree(folder)
    if not all(good for _, good in rows.values()) or found["lost"] or not found["identical"]:
        sys.exit(1)


if __name__ == "__main__":
    flags.DEFINE_integer("kills", 100, "SIGKILLs.", lower_bound=1)
    flags.DEFINE_string("json", None, "File to write the figures to.")
    app.run(main)
