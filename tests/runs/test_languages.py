"""One prompt for several languages: a narrow mT5 on a mixture, measured on a third language."""

import dataclasses
import json
from collections.abc import Iterator

import pytest
import seqio

from prompt_tuning import embedded, methods, sharding
from prompt_tuning.checkpoint import backbone, prompts
from prompt_tuning.data import source, tasks
from prompt_tuning.data.batches import TaskData
from prompt_tuning.data.files import Row, TextFiles
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.runs.eval import evaluate
from prompt_tuning.runs.train import train
from prompt_tuning.t5.config import preset
from prompt_tuning.testing import clean_registries, random_leaves
from prompt_tuning.training.loop import Fit

# mT5's activations and separate output layer; all else is small.
CONFIG = dataclasses.replace(
    preset("mt5_small"),
    vocab_size=preset("demo").vocab_size,
    d_model=8,
    num_heads=2,
    head_dim=4,
    d_ff=16,
    num_encoder_layers=1,
    num_decoder_layers=1,
)
WORDS = {
    "de": ("ein guter Film", "ein schlechter Film"),
    "fr": ("un bon film", "un mauvais film"),
    "es": ("una buena película", "una mala película"),
}
LABELS = ("positive", "negative")


@pytest.fixture
def languages() -> Iterator[None]:
    """A task per language, with the same label words, and the mixture of two of them."""
    vocabulary = tasks.vocabulary(embedded.vocabulary())
    with clean_registries():
        for language, texts in WORDS.items():
            rows = [Row(text, label) for text, label in zip(texts, LABELS, strict=True)] * 8
            splits = dict.fromkeys(("train", "validation"), rows.copy)
            tasks.register(f"films_{language}", splits, vocabulary, labels=LABELS)
        seqio.MixtureRegistry.add("films_de_fr", ["films_de", "films_fr"], default_rate=1.0)
        yield


def test_mt5_has_a_large_vocabulary_and_a_separate_output_layer():
    shapes = ParamSplit.of(preset("mt5_small"), methods.PromptTuning(1)).shapes
    assert shapes["token_embedder/embedding"].shape == (250_112, 512)
    assert shapes["decoder/logits_dense/kernel"].shape == (512, 250_112)


def test_one_prompt_serves_several_languages(languages, tmp_path):
    checkpoint = tmp_path / "backbone.safetensors"
    backbone.save(checkpoint, random_leaves(ParamSplit.of(CONFIG, methods.ModelTuning()).shapes))

    data: TaskData = source.task_data(
        task="films_de_fr",
        files=TextFiles(),
        vocabulary=tasks.vocabulary(embedded.vocabulary()),
        lengths={"inputs": 16, "targets": 4},
        batch_size=8,
    )
    settings = {
        "config": CONFIG,
        "layout": sharding.layout(),
        "initial_checkpoint": str(checkpoint),
    }
    result = train(
        model_dir=str(tmp_path / "run"),
        method=methods.PromptTuning(length=4),
        data=data,
        fit=Fit(total_steps=2, eval_period=2),
        eval_batch_size=8,
        eval_methods=("auto",),
        **settings,
    )
    assert result.trained_parameters == 4 * CONFIG.d_model
    assert result.scores.keys() == {"films_de", "films_fr"}
    prompts.load(tmp_path / "run" / "prompt_last.npy", (4, CONFIG.d_model))

    unseen = evaluate(
        output_dir=str(tmp_path / "eval"),
        method=methods.PromptTuning(
            length=4, initializer=methods.FromFile(str(tmp_path / "run" / "prompt_last.npy"))
        ),
        data=dataclasses.replace(data, task="films_es"),
        split="validation",
        eval_methods=("auto",),
        **settings,
    )
    lines = (tmp_path / "eval" / "films_es-validation-rank.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert {row["input"] for row in rows} == set(WORDS["es"])
    correct = [max(row["scores"], key=row["scores"].get) == row["target"] for row in rows]
    assert unseen == {"films_es": {"rank/accuracy": sum(correct) / 16}}
