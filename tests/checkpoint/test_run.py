"""Checkpoints of a run: no save is lost."""

import jax.numpy as jnp
import numpy as np

from prompt_tuning.checkpoint.run import RunCheckpoints


def test_a_save_waits_for_the_one_before(tmp_path):
    checkpoints = RunCheckpoints(tmp_path, keep=2)
    for step in (3, 12):
        checkpoints.save(step, {"leaf": jnp.full((2_000, 1_000), step, jnp.float32)})
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint_12", "checkpoint_3"]
    again = RunCheckpoints(tmp_path)
    step, state = again.restore({"leaf": jnp.zeros((2_000, 1_000))})
    assert step == 12
    np.testing.assert_array_equal(state["leaf"], np.full((2_000, 1_000), 12, np.float32))
