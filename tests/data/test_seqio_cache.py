"""SeqIO's offline cache: read if it is whole; a half-made one is an error of one line."""

import json

import pytest

from prompt_tuning import embedded
from prompt_tuning.data import tasks
from prompt_tuning.data.batches import TaskData
from prompt_tuning.data.quiet import seqio, tf
from prompt_tuning.data.readers import seqio_cache
from prompt_tuning.errors import UserError
from prompt_tuning.testing import clean_registries

VOCABULARY = tasks.vocabulary(embedded.vocabulary())
TEXTS = {"inputs": ["a dull film", "a great film"], "targets": ["negative", "positive"]}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A whole cache of the split "train" of the task `cached`."""
    monkeypatch.setattr(seqio.utils, "_GLOBAL_CACHE_DIRECTORIES", [str(tmp_path)])
    seqio_cache._fault.cache_clear()
    with clean_registries():
        dataset = tf.data.Dataset.from_tensor_slices(TEXTS)
        task = tasks.add(
            "cached",
            source=seqio.FunctionDataSource(lambda split, shuffle_files: dataset, ["train"]),
            preprocessors=[
                seqio.preprocessors.tokenize,
                seqio.CacheDatasetPlaceholder(),
                seqio.preprocessors.append_eos_after_trim,
            ],
            output_features=tasks.features(VOCABULARY),
        )
        examples = list(
            seqio.preprocessors.tokenize(dataset, task.output_features).as_numpy_iterator()
        )
        kinds = {name: ([None], "int32") for name in TEXTS}
        kinds |= {f"{name}_pretokenized": ([], "string") for name in TEXTS}
        features = {name: {"shape": shape, "dtype": kind} for name, (shape, kind) in kinds.items()}
        info = {"num_shards": 1, "seqio_version": seqio.__version__, "features": features}
        (tmp_path / "cached").mkdir()
        (tmp_path / "cached" / "COMPLETED").touch()
        (tmp_path / "cached" / "info.train.json").write_text(json.dumps(info))
        (tmp_path / "cached" / "stats.train.json").write_text('{"examples": 2}')
        with tf.io.TFRecordWriter(str(tmp_path / "cached" / SHARD)) as file:
            for example in examples:
                file.write(seqio.utils.dict_to_tfexample(example).SerializeToString())
        yield tmp_path / "cached"


SHARD = "train.tfrecord-00000-of-00001"


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


FAULTS = {
    "no folder": (
        lambda folder: (folder / "COMPLETED").unlink(),
        "cached: is not cached; set USE_",
    ),
    "no info": (lambda folder: (folder / "info.train.json").unlink(), "info.train.json is missing"),
    "no stats": (lambda folder: (folder / "stats.train.json").unlink(), "stats.train.json is"),
    "half of info": (lambda folder: cut(folder / "info.train.json", 30), "info.train.json is"),
    "no examples": (lambda folder: (folder / SHARD).unlink(), f"{SHARD} is missing or damaged"),
    "half an example": (lambda folder: cut(folder / SHARD, -9), f"{SHARD} is missing or damaged"),
    "fewer examples": (lambda folder: cut(folder / SHARD, 0), "0 of 2 examples of the split"),
}


def batches():
    data = TaskData("cached", {"inputs": 8, "targets": 4}, 2, use_cached=True)
    return next(data.train_batches(0))


def test_a_whole_cache(folder):
    assert batches()["encoder_input_tokens"].shape == (2, 8)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_half_made_cache(folder, fault):
    spoil, message = FAULTS[fault]
    spoil(folder)
    with pytest.raises(UserError, match=message) as error:
        batches()
    assert "\n" not in str(error.value) and "USE_CACHED_TASKS = False" in str(error.value)
