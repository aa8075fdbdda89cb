"""Imports TensorFlow, its Datasets and SeqIO without their messages, and keeps them off the GPUs.

TensorFlow's C++ code writes to standard error before any log level can be set, so the file
descriptor itself is redirected during the import. Python exceptions still propagate.
"""

import contextlib
import os
from collections.abc import Iterator

from prompt_tuning.errors import UserError

# TensorFlow reads this when it is imported; JAX sets it to 1.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"


@contextlib.contextmanager
def _no_standard_error() -> Iterator[None]:
    standard_error = os.dup(2)
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    try:
        yield
    finally:
        os.dup2(standard_error, 2)
        os.close(standard_error)
        os.close(devnull)


if os.path.expanduser("~") == "~":  # SeqIO's NLTK asks for it, even if nothing is kept there
    raise UserError("HOME is not set, and the user has no home folder: set HOME to any folder")

with _no_standard_error():
    import seqio
    import tensorflow as tf
    import tensorflow_datasets as tfds

    # Otherwise TensorFlow takes most of the memory of the GPUs that JAX trains on.
    tf.config.set_visible_devices([], "GPU")

__all__ = ["seqio", "tf", "tfds"]
