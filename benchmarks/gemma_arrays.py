"""Writes tests/fixtures/gemma: random tiny T5Gemmas of transformers, and what they compute.

    python benchmarks/gemma_arrays.py

The peer's environment is made on the first use.
"""

import checkout

import subprocess
from pathlib import Path

import peer

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures" / "gemma"


def main() -> None:
    script = Path(__file__).with_name("gemma_arrays_torch.py")
    subprocess.run([peer.python(), script, FIXTURES], check=True)


if __name__ == "__main__":
    main()
