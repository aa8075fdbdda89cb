"""Flags of the commands that read data."""

from collections.abc import Sequence

from absl import flags

from prompt_tuning.cli import plain_command


def define_skip_bad_rows() -> flags.FlagHolder[int | None]:
    return flags.DEFINE_integer(
        "skip_bad_rows", None, "Most malformed rows to skip, over all files; default 0.", 0
    )


def define_flags() -> plain_command.Flags:
    """Defines the flags of the arguments of `bindings`."""
    return {
        "skip_bad_rows": define_skip_bad_rows(),
        "tfds_data_dir": flags.DEFINE_string(
            "tfds_data_dir", None, "Folder of data prepared by TFDS."
        ),
        "cache_dirs": flags.DEFINE_list(
            "seqio_additional_cache_dirs",
            [],
            "Folders of SeqIO's offline cache, for USE_CACHED_TASKS.",
        ),
    }


def bindings(
    *, skip_bad_rows: int | None, tfds_data_dir: str | None, cache_dirs: Sequence[str]
) -> list[str]:
    """Applies the flags of folders to SeqIO; returns the others as gin bindings."""
    if tfds_data_dir or cache_dirs:
        from prompt_tuning.data.quiet import seqio

        seqio.set_tfds_data_dir_override(tfds_data_dir)
        seqio.add_global_cache_dirs(cache_dirs)
    return [] if skip_bad_rows is None else [f"SKIP_BAD_ROWS = {skip_bad_rows}"]
