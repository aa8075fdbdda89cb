"""The flag --skip_bad_rows, of every command that reads data."""

from absl import flags

SKIP_BAD_ROWS = flags.DEFINE_integer(
    "skip_bad_rows", None, "Most malformed rows, of all files, to skip; 0 unless set.", 0
)
