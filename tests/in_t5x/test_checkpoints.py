"""What T5X restores before a prompt is trained and writes with it, in both of its layouts."""

import functools

import jax
import numpy as np
import pytest

pytest.importorskip("t5x", reason="T5X is not installed: make t5x")

import t5x_models
from flax import core
from t5x import partitioning, trainer, utils
from t5x_models import changed, golden, golden_batch, leaves_of_mini

from prompt_tuning.checkpoint import backbone, card, fingerprint, prompts
from prompt_tuning.checkpoint.formats import t5x, t5x_orbax
from prompt_tuning.in_t5x.checkpoints import SavePrompt, backbone_alone, fingerprint_of
from prompt_tuning.in_t5x.model import FromBackbone, prompted
from prompt_tuning.methods import PromptTuning, Uniform
from prompt_tuning.methods.prompt import PROMPT_PATH
from prompt_tuning.testing import random_batch
from prompt_tuning.training import optim
from prompt_tuning.transformer.paths import flatten

METHOD = PromptTuning(length=10)
PROMPT = golden_batch()[1]
WRITTEN = t5x_models.GOLDEN.parents[1] / "t5x_adapter"
BATCH = random_batch(batch=8, inputs=12, targets=4, vocab_size=96)
CARD = card.Card(
    backbone="other",
    fingerprint="f" * 16,
    d_model=24,
    task="x",
    method="PromptTuning",
    length=10,
    placement="prefix",
    initialisation="x",
    optimizer="x",
    learning_rate=0.1,
    steps=1,
    metric={},
    version="0",
    config="",
)
LAYOUTS = pytest.mark.parametrize("use_orbax", [True, False], ids=["orbax", "native"])


def restored(path, folder, *, use_orbax, resuming=False, method=METHOD, partitions=1, **changes):
    """The state that `t5x.train` restores, its axes, the manager that saves it, the partitioner.

    The mesh is that of all simulated devices, `partitions` of them in its axis `model`.
    """
    start = lambda method: {PROMPT_PATH: PROMPT}  # noqa: E731
    tuned = prompted(t5x_models.model(**changes), method, start)
    # On CPUs T5X's mesh has one axis for processes and one for their devices.
    partitioner = partitioning.PjitPartitioner(model_parallel_submesh=(1, partitions))
    initializer = utils.TrainStateInitializer(
        optimizer_def=tuned.optimizer_def,
        init_fn=tuned.get_initial_variables,
        input_shapes={name: array.shape for name, array in BATCH.items()},
        partitioner=partitioner,
    )
    transform = functools.partial(backbone_alone, is_resuming=resuming)
    saving = SavePrompt(
        folder=str(folder),
        method=method,
        optimizer=optim.adafactor,
        learning_rate=lambda step: 0.25,
        checkpoint=str(path),
        task="mini",
    )
    state, manager = utils.create_checkpoint_manager_and_restore(
        initializer,
        partitioner,
        utils.RestoreCheckpointConfig(
            path=str(path),
            mode="specific",
            dtype="float32",
            fallback_to_scratch=not resuming,
            state_transformation_fns=(transform,),
        ),
        str(path),
        jax.random.PRNGKey(0),
        save_checkpoint_cfg=utils.SaveCheckpointConfig(period=1, keep=None),
        model_dir=str(folder),
        use_orbax=use_orbax,
    )
    save = functools.partial(manager.save, state_transformation_fns=(saving,))
    return tuned, state, initializer.train_state_axes, save, manager, partitioner


def leaves_of(state):
    return flatten(core.unfreeze(jax.tree.map(np.asarray, state.params)))


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The golden weights as `convert` writes them, in both of T5X's layouts."""
    folder = tmp_path_factory.mktemp("backbones")
    t5x.write_checkpoint(folder / "native" / "checkpoint_7", golden("weights"), step=7)
    t5x_orbax.write_checkpoint(folder / "orbax" / "checkpoint_7", golden("weights"), step=7)
    return folder


@pytest.mark.parametrize(
    ("source", "use_orbax"),
    [("native", True), ("native", False), ("orbax", True)],
)
def test_starts_from_what_convert_writes(converted, tmp_path, source, use_orbax):
    path = converted / source / "checkpoint_7"
    _, state, *_ = restored(path, tmp_path, use_orbax=use_orbax)
    assert int(state.step) == 7
    assert changed(leaves_of_mini(PROMPT), leaves_of(state)) == set()


@pytest.mark.parametrize(
    ("path", "use_orbax"),
    [
        (WRITTEN / "checkpoint_2", True),
        (WRITTEN / "native" / "checkpoint_2", True),
        (WRITTEN / "native" / "checkpoint_2", False),
    ],
)
def test_a_prompt_and_optimizer_state_in_the_checkpoint_are_not_taken(tmp_path, path, use_orbax):
    _, state, *_ = restored(path, tmp_path, use_orbax=use_orbax)
    assert changed(leaves_of_mini(PROMPT), leaves_of(state)) == set()


@pytest.mark.parametrize(
    ("layers", "part"),
    [
        (4, r"the checkpoint lacks target/encoder/layers_3/attention/key/kernel, .* more; give"),
        (2, r"has, without use in the network, target/encoder/layers_2/attention/key/kernel, "),
    ],
)
@pytest.mark.parametrize(
    ("source", "use_orbax"),
    [("native", True), ("native", False), ("orbax", True)],
)
def test_a_backbone_that_does_not_fit_is_named(
    converted, tmp_path, source, use_orbax, layers, part
):
    """T5X by itself trains on random values in place of missing leaves, and drops others."""
    path = converted / source / "checkpoint_7"
    with pytest.raises(ValueError, match=part):
        restored(path, tmp_path, use_orbax=use_orbax, num_encoder_layers=layers)


@LAYOUTS
def test_saved_and_resumed(converted, tmp_path, use_orbax):
    """A step of T5X's trainer on a 4 x 2 mesh, saved, read by both sides, and resumed."""
    path = converted / "native" / "checkpoint_7"
    tuned, state, axes, save, manager, partitioner = restored(
        path, tmp_path, use_orbax=use_orbax, partitions=2
    )
    assert axes.params["encoder"]["prompt"]["prompt"]["prompt"] == jax.P(None, None)
    steps = trainer.Trainer(
        tuned, state, partitioner, [], None, axes, jax.random.PRNGKey(0), lambda step: 0.25, None
    )
    batch = BATCH | {"decoder_loss_weights": np.ones_like(BATCH["decoder_target_tokens"])}
    stepped, _ = steps._partitioned_train_step(state, batch)
    after = leaves_of(stepped)
    assert changed(leaves_of_mini(PROMPT), after) == {PROMPT_PATH}
    save(stepped)
    manager.wait_until_finished()
    manager.close()
    file, folder = tmp_path / "prompts" / "prompt_8.npy", tmp_path / "checkpoint_8"
    for actual in (prompts.load(file), prompts.load(folder)):
        np.testing.assert_array_equal(actual, after[PROMPT_PATH])
    written = card.read(file)
    assert (written.steps, written.length, written.d_model) == (8, 10, 24)
    assert (written.task, written.optimizer, written.learning_rate) == ("mini", "adafactor", 0.25)
    assert written.fingerprint == fingerprint.of(golden("weights")) == fingerprint_of(str(folder))
    for name, leaf in golden("weights").items():
        np.testing.assert_array_equal(backbone.load_leaf(folder, name), leaf)
    _, resumed, *_ = restored(folder, tmp_path / "x", use_orbax=use_orbax, resuming=True)
    jax.tree.map(np.testing.assert_array_equal, stepped.state_dict(), resumed.state_dict())


def test_a_mesh_agrees_with_one_device(converted, tmp_path):
    tuned, state, axes, _, _, partitioner = restored(
        converted / "native" / "checkpoint_7", tmp_path, use_orbax=True, partitions=2
    )
    batch = BATCH | {"decoder_loss_weights": np.ones_like(BATCH["decoder_target_tokens"])}
    alone = t5x_models.state_of(tuned, leaves_of_mini(PROMPT))
    one = functools.partial(trainer.train_with_lr, model=tuned, num_microbatches=None)
    wanted, _ = jax.jit(one)(
        alone, batch, learning_rate=np.float32(0.25), dropout_rng=jax.random.PRNGKey(0)
    )
    steps = trainer.Trainer(
        tuned, state, partitioner, [], None, axes, jax.random.PRNGKey(0), lambda step: 0.25, None
    )
    actual, _ = steps._partitioned_train_step(state, batch)
    np.testing.assert_allclose(
        leaves_of(actual)[PROMPT_PATH], leaves_of(wanted)[PROMPT_PATH], rtol=0, atol=1e-5
    )


def test_initialisers_and_files(converted, tmp_path):
    """Each initialiser of the package works on the embeddings of T5X's checkpoint."""
    path = str(converted / "native" / "checkpoint_7")
    start = FromBackbone(path, seed=3)
    sampled = start(PromptTuning(length=10))[PROMPT_PATH]
    table = golden("weights")["token_embedder/embedding"]
    assert all((row == table).all(axis=1).any() for row in sampled)
    uniform = start(PromptTuning(length=10, initializer=Uniform(0.25, 0.5)))[PROMPT_PATH]
    assert uniform.min() >= 0.25 and uniform.max() < 0.5
    assert start(PromptTuning(length=10)) is start(PromptTuning(length=10))
    prompts.save(tmp_path / "prompt.npy", PROMPT)
    tuned = prompted(t5x_models.model(), METHOD, start, prompt_file=str(tmp_path / "prompt.npy"))
    np.testing.assert_array_equal(tuned.module.start(tuned.module.method)[PROMPT_PATH], PROMPT)
    longer = prompted(t5x_models.model(), METHOD, start, prompt_file=str(WRITTEN / "checkpoint_2"))
    assert longer.module.method.length == 10


@pytest.mark.parametrize("allowed", [False, True])
def test_a_prompt_of_another_backbone_is_refused(converted, tmp_path, allowed):
    file, path = tmp_path / "prompt.npy", converted / "native" / "checkpoint_7"
    prompts.save(file, PROMPT)
    card.save(file, CARD)
    tuned = prompted(
        t5x_models.model(),
        METHOD,
        FromBackbone(str(path)),
        prompt_file=str(file),
        allow_other_backbone=allowed,
    )
    if allowed:
        tuned.module.start(tuned.module.method)
        return
    with pytest.raises(ValueError, match="was trained on the backbone ffffffffffffffff"):
        tuned.module.start(tuned.module.method)


def test_a_prompt_of_another_placement_is_refused(tmp_path):
    file = tmp_path / "prompt.npy"
    prompts.save(file, PROMPT)
    card.save(file, CARD)
    with pytest.raises(ValueError, match=r"'suffix': .*prompt\.npy was trained with 'prefix'"):
        prompted(
            t5x_models.model(), PromptTuning(10, "suffix"), prompt_file=str(tmp_path / "prompt.npy")
        )


def test_a_prompt_of_another_width_is_refused(converted, tmp_path):
    prompts.save(tmp_path / "wide.npy", np.ones((10, 32), np.float32))
    start = FromBackbone(str(converted / "native" / "checkpoint_7"))
    tuned = prompted(t5x_models.model(), METHOD, start, prompt_file=str(tmp_path / "wide.npy"))
    with pytest.raises(ValueError, match="the prompt is 32 wide, the backbone 24"):
        tuned.module.start(tuned.module.method)
