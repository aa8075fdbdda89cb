"""Fixtures of all tests; eight simulated CPU devices, for what is about sharding."""

import lzma
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from jaxtyping import install_import_hook

# Arrays of the core are held to the shapes in its annotations.
CORE = (
    "transformer.layers",
    "transformer.blocks",
    "transformer.network",
    "transformer.sites",
    "t5.network",
    "gemma.network",
    "methods",
    "training.loss",
    "training.step",
    "decoding.beam",
    "decoding.model",
    "decoding.sample",
    "decoding.step",
)
install_import_hook([f"prompt_tuning.{name}" for name in CORE], "shape_checks.typechecker")

# Only takes effect before JAX starts its backends, so not in a fixture.
jax.config.update("jax_num_cpu_devices", 8)
# Tests, and the commands that they start, compile more than they compute.
# What one test has compiled, the other workers, child processes and later runs read from here.
COMPILED = Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ["PROMPT_TUNING_PRODUCTS"] = "float32"  # so that results are those of any CPU
os.environ["PROMPT_TUNING_HUGE_PAGES"] = "0"  # no line on stderr
for name, value in {
    "jax_disable_most_optimizations": True,
    "jax_compilation_cache_dir": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(COMPILED)),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}.items():
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)


@pytest.fixture(scope="session", autouse=True)
def _no_cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Runs keep tokenised examples in the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of released checkpoints and golden arrays; skips the test where there is none."""
    beside_repository = Path(__file__).parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("PROMPT_TUNING_SHARED_DATA", beside_repository))
    if not folder.is_dir():
        pytest.skip("no shared data; set PROMPT_TUNING_SHARED_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def first_rows(shared_data, tmp_path_factory) -> Path:
    """The first eight rows of each file of the shared tasks, in a folder of the same layout."""
    folder = tmp_path_factory.mktemp("tasks")
    for path in (shared_data / "tasks").glob("*/*.jsonl*"):
        with (lzma.open if path.suffix == ".xz" else open)(path, "rb") as file:
            lines = [line for line, _ in zip(file, range(8), strict=False)]
        (folder / path.parent.name).mkdir(exist_ok=True)
        (folder / path.parent.name / path.name.removesuffix(".xz")).write_bytes(b"".join(lines))
    return folder
