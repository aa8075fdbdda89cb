"""Fixtures of all tests; eight simulated CPU devices, for what is about sharding."""

import os
from pathlib import Path

import jax
import pytest

# Only takes effect before JAX starts its backends, so not in a fixture.
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of released checkpoints and golden arrays; skips the test where there is none."""
    beside_repository = Path(__file__).parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("PROMPT_TUNING_SHARED_DATA", beside_repository))
    if not folder.is_dir():
        pytest.skip("no shared data; set PROMPT_TUNING_SHARED_DATA to its folder")
    return folder
