"""Writes a run's trained leaves, by path, as one `.safetensors` file."""

from collections.abc import Mapping

import numpy as np
from etils import epath
from safetensors.numpy import save as serialize

from prompt_tuning.runtime.files import renamed_when_done
from prompt_tuning.transformer.stacked_leaves import unstack


def save(path: epath.PathLike, leaves: Mapping[str, np.ndarray]) -> None:
    """Writes trained leaves, by path, in their own dtypes; scanned layers become one leaf each."""
    with renamed_when_done(path) as temporary:
        temporary.write_bytes(serialize(unstack(leaves)))
