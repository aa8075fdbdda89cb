"""python -m prompt_tuning.experiments run|table|plot FILE: an experiment, its table, its figures.

`run` runs the cells that have no record yet, `table` collects the records into `table.jsonl` and
prints them, `plot` draws them. FILE is a gin file such as `experiments/e1_scaling.gin`; its macros
are set by --gin.NAME=VALUE, for all three alike.
"""

import copy
import signal
import sys
from collections.abc import Sequence

from absl import flags, logging

from prompt_tuning.cli import gin_command, gin_parsing, plain_command  # noqa: F401 (flags)
from prompt_tuning.errors import UserError
from prompt_tuning.experiments import schedulers
from prompt_tuning.experiments.grid import Cell, Experiment
from prompt_tuning.runtime import exit_status, files, preemption

FAILED = 1
_NOT_HERE = ("gin_file", "multiprocess", "coordinator_address", "process_count", "process_index")


def main(words: Sequence[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    if len(words) != 2 or words[0] not in COMMANDS:
        raise UserError(
            f"{' '.join(words) or 'nothing to do'}: say {', '.join(COMMANDS)} and one gin file, as "
            "in: run experiments/e1_scaling.gin"
        )
    if wrong := [name for name in _NOT_HERE if flags.FLAGS[name].present]:
        raise UserError(f"--{wrong[0]}: not for experiments: one gin file, and a host a cell")
    bound = gin_parsing.parse(Experiment, [words[1]], flags.FLAGS.gin_bindings, kind="experiments")
    experiment = Experiment(**copy.deepcopy(bound))
    cells = experiment.cells(gin_parsing.gin_folders())
    COMMANDS[words[0]](experiment, cells)


def run(experiment: Experiment, cells: list[Cell]) -> None:
    given = flags.FLAGS
    index, count, source = schedulers.part(given.cell_index, given.cell_count)
    if source:
        print(f"part {index} of {count}, by {source}", flush=True)
    cells = schedulers.mine(cells, index, count)
    if given.dry_run:
        from prompt_tuning.experiments import dry_run

        dry_run.check(experiment, cells, given.devices)
        return
    from prompt_tuning.experiments import devices
    from prompt_tuning.experiments.runner import Runner

    runner = Runner(
        experiment,
        cells,
        devices.shares(given.workers),
        _passed_on(),
        given.retry_failed,
        experiment.modules(gin_parsing.gin_folders()),
    )
    signal.signal(signal.SIGTERM, preemption.stop)
    try:
        found = runner.run()
    except (KeyboardInterrupt, preemption.Preempted) as stop:
        print("stopped: the same command goes on with what is missing", file=sys.stderr)
        sys.exit(
            exit_status.INTERRUPTED
            if isinstance(stop, KeyboardInterrupt)
            else exit_status.RESUMABLE
        )
    if found["failed"]:
        print(
            f"error: {found['failed']} cells failed; --retry_failed runs them again",
            file=sys.stderr,
        )
        sys.exit(FAILED)
    if found["missing"]:
        sys.exit(exit_status.RESUMABLE)


def table(experiment: Experiment, cells: list[Cell]) -> None:
    from prompt_tuning.experiments import records
    from prompt_tuning.experiments.results import tables

    found = records.write_table(experiment, cells)
    made = tables.of(found)
    print(tables.markdown(made, experiment.paper) if made.rows else "no cell is done yet")
    failed = sum(record["status"] == "failed" for record in found)
    missing = len(cells) - len(found)
    print(
        f"\n{len(cells)} cells: {len(found) - failed} done, {missing} missing, {failed} failed; "
        f"in {experiment.folder / records.TABLE}"
    )
    if flags.FLAGS.json:
        files.write_json(flags.FLAGS.json, tables.as_json(made))


def plot(experiment: Experiment, cells: list[Cell]) -> None:
    from prompt_tuning.experiments import records
    from prompt_tuning.experiments.results import plot

    found, _ = records.collect(experiment, cells)
    for path in plot.write(found, experiment.folder):
        print(path)


COMMANDS = {"run": run, "table": table, "plot": plot}


def _passed_on() -> list[str]:
    """The flags that every cell's commands get as well."""
    given = flags.FLAGS
    names = ("gin_search_paths", "tfds_data_dir", "seqio_additional_cache_dirs", "skip_bad_rows")
    return [given[name].serialize() for name in names if given[name].present]


if __name__ == "__main__":
    flags.DEFINE_integer("workers", 1, "Cells at a time; the host's devices are divided.", 1)
    flags.DEFINE_integer("cell_index", None, "Which part of the cells this job runs, from 0.")
    flags.DEFINE_integer("cell_count", None, "How many parts there are.")
    flags.DEFINE_bool("retry_failed", False, "Run cells again that have failed.")
    flags.DEFINE_integer("devices", None, "Devices to simulate in a dry run.", 1)
    flags.DEFINE_string("json", None, "File to write the printed table to.")
    sys.argv = gin_parsing.expand_gin_flags(sys.argv)
    plain_command.run_with_words(main)
