"""The PyTorch peer's environment: transformers and PEFT, pinned, apart from ours.

`python()` is its interpreter. What runs in it must import nothing of this package.
"""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from usage import Usage

from prompt_tuning import families
from prompt_tuning.transformer.config import Config

PINNED = ("torch==2.13.0", "transformers==5.23.0", "peft==0.21.2", "safetensors==0.8.0")
PRECISIONS = ("float32", "bfloat16")
_COMPLETE = "complete"


def python() -> Path:
    """The interpreter, in the user's cache; the first call makes the environment, in minutes.

    Raises:
      CalledProcessError: if pip cannot install it.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    name = hashlib.sha256(" ".join((sys.version, *PINNED)).encode()).hexdigest()[:12]
    folder = root / "prompt_tuning" / f"peer-{name}"
    interpreter = folder / "bin" / "python"
    if not (folder / _COMPLETE).exists():
        print(f"making {folder}: {', '.join(PINNED)}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([interpreter, "-m", "pip", "install", "--quiet", *PINNED], check=True)
        (folder / _COMPLETE).touch()
    return interpreter


@contextlib.contextmanager
def timed(script: str, settings: Mapping[str, Any]) -> Iterator[Callable[[str], Usage]]:
    """Runs a script of this folder in the environment; yields what asks it for a measurement.

    The script reads `settings` as a line of JSON, then one word per line, and answers each with a
    line of JSON, the fields of a `Usage`. In between it waits. It has our environment variables.
    """
    command = [python(), Path(__file__).with_name(script)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        asked, answers = process.stdin, process.stdout
        assert asked and answers
        asked.write(json.dumps(settings) + "\n")

        def measured(word: str) -> Usage:
            asked.write(f"{word}\n")
            if not (line := answers.readline()):
                sys.exit("the peer has stopped; its message is above")
            return Usage(*json.loads(line))

        yield measured
        asked.close()


def steps(
    config: Config, prompt: int, batches: Sequence[Mapping[str, Any]], dtype: str
) -> AbstractContextManager[Callable[[str], Usage]]:
    """Times the peer's training steps, as `timed` does: on the batch with the number that is asked.

    Args:
      config, prompt, batches, dtype: as in `step_settings`.
    """
    return timed("step_torch.py", step_settings(config, prompt, batches, dtype))


def step_settings(
    config: Config, prompt: int, batches: Sequence[Mapping[str, Any]], dtype: str
) -> dict[str, Any]:
    """Settings of step_torch.py.

    Args:
      config: of the backbone; its weights are random.
      prompt: vectors that are trained.
      batches: of `batch`.
      dtype: of weights and activations.
    """
    described = families.of(config).huggingface.config_fields(config, np.dtype("float32"))
    return {
        "config": {**described, "dropout_rate": config.dropout_rate},
        "dtype": dtype,
        "prompt": prompt,
        "batches": batches,
    }


def batch(features: Mapping[str, np.ndarray]) -> dict[str, list[list[int]]]:
    """A padded batch, 0 at padding, as the peer takes it."""
    names = {"inputs": "encoder_input_tokens", "targets": "decoder_target_tokens"}
    return {name: features[feature].tolist() for name, feature in names.items()}
