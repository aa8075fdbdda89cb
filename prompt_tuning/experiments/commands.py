"""What the words `run`, `table` and `plot` do with an experiment."""

import copy
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags, logging

from prompt_tuning.cli import gin_command, gin_parsing, plain_command
from prompt_tuning.data import flags as data_flags
from prompt_tuning.errors import UserError
from prompt_tuning.experiments import bindings, schedulers
from prompt_tuning.experiments.grid import Cell, Experiment
from prompt_tuning.experiments.wording import counted
from prompt_tuning.runtime import exit_status, preemption

FAILED = 1
_UNUSED = ("gin_file", "multiprocess", "coordinator_address", "process_count", "process_index")


def define_flags() -> plain_command.Flags:
    """Defines the flags of the command, in addition to those of gin; returns none, since words
    decide which ones apply.
    """
    data_flags.define_flags()
    flags.DEFINE_integer("workers", 1, "Cells at a time; the host's devices are divided.", 1)
    flags.DEFINE_integer("cell_index", None, "Which part of the cells this job runs, from 0.")
    flags.DEFINE_integer("cell_count", None, "Number of parts.")
    flags.DEFINE_bool("retry_failed", False, "Run failed cells again.")
    flags.DEFINE_integer("devices", None, "Devices to simulate in a dry run.", 1)
    flags.DEFINE_string("json", None, "File to which `table` writes the score of each run.")
    return {}


def main(words: Sequence[str]) -> None:
    """Runs `words`: a key of `COMMANDS` and a gin file."""
    logging.set_verbosity(logging.WARNING)
    if len(words) != 2 or words[0] not in COMMANDS:
        raise UserError(
            f"{' '.join(words) or 'no command'}: expected {', '.join(COMMANDS)} and one gin file, "
            "as in: run experiments/e1_scaling.gin"
        )
    if unused := [name for name in _UNUSED if flags.FLAGS[name].present]:
        raise UserError(
            f"--{unused[0]}: is not for experiments: they take one gin file, and run a cell on one "
            "host"
        )
    bound = gin_parsing.parse(Experiment, [words[1]], flags.FLAGS.gin_bindings, kind="experiments")
    experiment = Experiment(**copy.deepcopy(bound))
    folders = gin_parsing.gin_folders()
    experiment.check_rules(bindings.axis_values(words[1], tuple(folders)))
    cells = experiment.cells(folders)
    COMMANDS[words[0]](experiment, cells)


def run(experiment: Experiment, cells: list[Cell]) -> None:
    """Runs the cells of this job that have no record; ends the process with a status other than 0
    if some have failed or are missing.
    """
    values = flags.FLAGS
    index, count, source = schedulers.part(values.cell_index, values.cell_count)
    if source:
        print(f"part {index} of {count}, by {source}", flush=True)
    cells = schedulers.mine(cells, index, count)
    if gin_command.DRY_RUN.value:
        from prompt_tuning.experiments import dry_run

        data_flags.bindings(
            skip_bad_rows=values.skip_bad_rows,
            tfds_data_dir=values.tfds_data_dir,
            cache_dirs=values.seqio_additional_cache_dirs,
        )
        dry_run.check(experiment, cells, values.devices)
        return
    from prompt_tuning.experiments import devices
    from prompt_tuning.experiments.runner import Runner

    runner = Runner(
        experiment,
        cells,
        devices.shares(values.workers),
        _passed_on(),
        values.retry_failed,
        experiment.modules(gin_parsing.gin_folders()),
        gin_parsing.gin_folders(),
    )
    before = signal.signal(signal.SIGTERM, preemption.stop)
    try:
        counts = runner.run()
    except (KeyboardInterrupt, preemption.Preempted) as stop:
        print("stopped: run the same command again to resume", file=sys.stderr)
        sys.exit(
            exit_status.INTERRUPTED
            if isinstance(stop, KeyboardInterrupt)
            else exit_status.RESUMABLE
        )
    finally:
        signal.signal(signal.SIGTERM, before)
    if counts["failed"]:
        print(
            f"error: {counted(counts['failed'], 'cell')} failed; --retry_failed runs failed cells "
            "again",
            file=sys.stderr,
        )
        sys.exit(FAILED)
    if counts["missing"]:
        sys.exit(exit_status.RESUMABLE)


def table(experiment: Experiment, cells: list[Cell]) -> None:
    """Writes the table of the cells that have a record, and prints it."""
    from prompt_tuning.experiments import records
    from prompt_tuning.experiments.results import export, notes, tables

    _warn_of_changes(experiment, cells)
    lines = records.write_table(experiment, cells)
    made = tables.of(lines, experiment.row)
    print(tables.markdown(made, experiment.paper) if made.rows else "no cell is done yet")
    for note in notes.of(lines, made):
        print(f"\n{note}")
    print(f"\n{_counts(cells, lines)}; in {experiment.folder / records.TABLE}")
    if flags.FLAGS.json:
        export.write(flags.FLAGS.json, export.runs(lines, experiment.row))


def plot(experiment: Experiment, cells: list[Cell]) -> None:
    """Draws the cells that have a record, and prints the paths of the figures."""
    from prompt_tuning.experiments import records
    from prompt_tuning.experiments.results import notes, plot, tables

    _warn_of_changes(experiment, cells)
    lines, _ = records.collect(experiment, cells)
    for path in plot.write(lines, experiment.folder):
        print(path)
    for note in (*notes.of(lines, tables.of(lines)), _counts(cells, lines)):
        print(note)


def _counts(cells: Sequence[Cell], lines: Sequence[Mapping[str, Any]]) -> str:
    failed = sum(line["status"] == "failed" for line in lines)
    return (
        f"{counted(len(cells), 'cell')}: {len(lines) - failed} done, "
        f"{len(cells) - len(lines)} missing, {failed} failed"
    )


def _warn_of_changes(experiment: Experiment, cells: list[Cell]) -> None:
    from prompt_tuning.experiments import inputs

    if changed := inputs.changes(experiment, cells):
        print(f"warning: {changed}", file=sys.stderr)


COMMANDS = {"run": run, "table": table, "plot": plot}


def _passed_on() -> list[str]:
    """Returns the flags that every cell's commands get as well."""
    values = flags.FLAGS
    names = ("gin_search_paths", "tfds_data_dir", "seqio_additional_cache_dirs", "skip_bad_rows")
    return [values[name].serialize() for name in names if values[name].present]
