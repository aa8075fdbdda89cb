"""TensorFlow, its Datasets and SeqIO, imported without their chatter and kept off the GPUs.

TensorFlow's C++ side writes to standard error before any level can be set, so the file descriptor
itself is turned away while it starts; Python's own exceptions still come through.
"""

import contextlib
import os
from collections.abc import Iterator

# TensorFlow reads it when it is imported; JAX itself sets 1.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"


@contextlib.contextmanager
def _no_standard_error() -> Iterator[None]:
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


with _no_standard_error():
    import seqio
    import tensorflow as tf
    import tensorflow_datasets as tfds

    # TensorFlow would take most of the memory of the GPUs that JAX trains on.
    tf.config.set_visible_devices([], "GPU")

__all__ = ["seqio", "tf", "tfds"]
