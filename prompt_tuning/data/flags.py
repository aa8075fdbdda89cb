"""Flags of the commands that read data."""

from absl import flags

SKIP_BAD_ROWS = flags.DEFINE_integer(
    "skip_bad_rows", None, "Most malformed rows, of all files, to skip; 0 unless set.", 0
)
_TFDS_DATA_DIR = flags.DEFINE_string("tfds_data_dir", None, "Where TFDS keeps prepared data.")
_CACHE_DIRS = flags.DEFINE_list(
    "seqio_additional_cache_dirs", [], "Folders of SeqIO's offline cache, for USE_CACHED_TASKS."
)


def setup() -> list[str]:
    """Points SeqIO to the folders of the flags; returns the gin bindings of the others."""
    if _TFDS_DATA_DIR.value or _CACHE_DIRS.value:
        from prompt_tuning.data.quiet import seqio

        seqio.set_tfds_data_dir_override(_TFDS_DATA_DIR.value)
        seqio.add_global_cache_dirs(_CACHE_DIRS.value)
    return [] if SKIP_BAD_ROWS.value is None else [f"SKIP_BAD_ROWS = {SKIP_BAD_ROWS.value}"]
