"""Checks SeqIO's offline cache of a task before it is read: a half-made one is an error."""

import functools
import json
from pathlib import Path

from prompt_tuning.data.quiet import seqio, tf
from prompt_tuning.errors import UserError

_MOST_COUNTED = 1_000_000  # examples of a cache that is read once more to count them


def check(task: seqio.Task, split: str) -> None:
    """Checks that a split's cache has all its files and examples, if the task can be cached.

    Raises:
      UserError: If the task is not cached, or a file is missing, damaged or cut.
    """
    if not task.supports_caching:
        return
    if not task.cache_dir:
        raise UserError(f"{task.name}: is not cached; set USE_CACHED_TASKS = False")
    if fault := _fault(task.cache_dir, split):
        raise UserError(
            f"{task.cache_dir}: the cache of {task.name} is not complete: {fault}; make it again "
            "with seqio_cache_tasks, or set USE_CACHED_TASKS = False"
        )


@functools.cache
def _fault(folder: str, split: str) -> str:
    """What is wrong with a split's cache; "" if nothing is."""
    info = seqio.utils.get_cached_info_path(folder, split)
    stats = seqio.utils.get_cached_stats_path(folder, split)
    prefix = seqio.utils.get_cached_tfrecord_prefix(folder, split)
    path = info
    try:
        shards = _field(info, "num_shards")
        expected = _field(path := stats, "examples")
        counted = 0
        for path in (f"{prefix}-{i:05d}-of-{shards:05d}" for i in range(shards)):
            if expected > _MOST_COUNTED:
                tf.io.gfile.stat(path)
            else:
                counted += sum(1 for _ in tf.data.TFRecordDataset(path))
    except (tf.errors.OpError, ValueError, KeyError, TypeError):
        return f"{Path(path).name} is missing or damaged"
    complete = expected > _MOST_COUNTED or counted == expected
    return "" if complete else f"{counted} of {expected} examples of the split {split!r}"


def _field(path: str, name: str) -> int:
    with tf.io.gfile.GFile(path) as file:
        return int(json.load(file)[name])
