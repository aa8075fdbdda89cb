"""A whole run on a tiny backbone: what it writes, resumes from, and measures."""

import copy
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
import seqio
from orbax.checkpoint import v1 as ocp

from prompt_tuning import __version__, embedded, methods, sharding
from prompt_tuning.analysis import learning_curve
from prompt_tuning.checkpoint import backbone, card, fingerprint, prompts
from prompt_tuning.checkpoint.formats.safetensors_file import stored
from prompt_tuning.checkpoint.run import load_trained
from prompt_tuning.data import source, tasks
from prompt_tuning.data.batches import TaskData
from prompt_tuning.data.files import Row, TextFiles
from prompt_tuning.errors import CheckpointError, UserError
from prompt_tuning.evaluation import validation as validation
from prompt_tuning.evaluation.validation import Validation
from prompt_tuning.methods.prompt import PROMPT_PATH
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.runs.eval import evaluate
from prompt_tuning.runs.result_file import Result
from prompt_tuning.runs.train import train
from prompt_tuning.sharding import Layout
from prompt_tuning.t5.config import preset
from prompt_tuning.testing import clean_registries, random_leaves, tiny_config
from prompt_tuning.training.loop import Fit
from prompt_tuning.training.metrics_writer import read_metrics
from prompt_tuning.training.optim import adafactor
from prompt_tuning.transformer import vocabulary

CONFIG = tiny_config(vocab_size=preset("demo").vocab_size)
TOTAL = ParamSplit.of(CONFIG, methods.ModelTuning()).shapes
PROMPT = methods.PromptTuning(length=4)
T5X_METRICS = {
    "step",
    "loss",
    "loss_per_nonpadding_target_token",
    "cross_ent_loss",
    "z_loss",
    "accuracy",
    "learning_rate",
    "timing/seconds",
    "timing/compilations",
    "timing/steps_per_second",
    "timing/seqs_per_second",
    "timing/target_tokens_per_second",
    "non_padding_fraction/encoder_input_tokens",
    "non_padding_fraction/decoder_target_tokens",
}


def sizes(shapes) -> int:
    return sum(math.prod(leaf.shape) for leaf in shapes.values())


def one_device() -> Layout:
    """Eight would hold eight copies."""
    return sharding.layout(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def backbone_file(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("backbone") / "backbone.safetensors"
    backbone.save(path, random_leaves(TOTAL), "float32")
    return str(path)


@pytest.fixture(scope="module")
def data() -> TaskData:
    """Short inputs: what is learned does not matter here."""
    return source.task_data(
        task="demo_reviews",
        files=TextFiles(),
        vocabulary=tasks.vocabulary(embedded.vocabulary()),
        lengths={"inputs": 8, "targets": 4},
        batch_size=16,
    )


def run(
    data: TaskData,
    model_dir: Path,
    steps: int,
    *,
    backbone: str,
    method=PROMPT,
    eval_methods=("rank",),
    on_start=lambda folder: None,
    init_seed=0,
    measure_again=True,
    **settings,
) -> Result:
    """Trains with dropout, so that a resumed run has to find its random key again."""
    return train(
        model_dir=str(model_dir),
        config=dataclasses.replace(CONFIG, dropout_rate=0.1),
        method=method,
        layout=one_device(),
        data=data,
        initial_checkpoint=backbone,
        fit=Fit(total_steps=steps, log_period=1, **{"eval_period": 2, **settings}),
        eval_methods=eval_methods,
        eval_batch_size=64,
        seed=init_seed,
        on_start=on_start,
        measure_again=measure_again,
    )


@pytest.fixture(scope="module")
def finished(data, backbone_file, tmp_path_factory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("run") / "model"
    started = []

    def on_start(path) -> str:
        assert [path.name for path in path.iterdir()] == ["lock"]  # nothing is written before it
        started.append(str(path))
        return "PROMPT_LENGTH = 4"

    result = run(data, folder, 4, backbone=backbone_file, on_start=on_start)
    assert started == [str(folder)]
    return folder, result


def test_files(finished):
    folder, _ = finished
    names = {path.name for path in folder.iterdir()}
    prompt = {
        f"prompt_{which}.{kind}" for which in ("best", "last") for kind in ("npy", "safetensors")
    }
    trained = {f"trained_{which}.safetensors" for which in ("best", "last")}
    cards = {
        f"{what}_{which}.card.json" for what in ("prompt", "trained") for which in ("best", "last")
    }
    results = {"result.json", "learning_curve.png", "lock"}
    folders = {"train", "inference_eval", "checkpoint_4", "best"}
    assert names == prompt | trained | cards | results | folders
    assert (folder / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert np.load(folder / "prompt_best.npy").shape == (4, CONFIG.d_model)


def test_only_trained_leaves_are_saved(finished):
    folder, _ = finished
    prompt = (4, CONFIG.d_model)
    for which in ("best", "last"):
        leaves = stored(folder / f"trained_{which}.safetensors")
        assert {path: leaf.shape for path, leaf in leaves.items()} == {PROMPT_PATH: prompt}
    step, trained = load_trained(folder)
    assert (step, trained.keys()) == (4, {PROMPT_PATH})
    for saved in (folder / "checkpoint_4", *(folder / "best").iterdir()):
        tree = ocp.metadata(saved).metadata
        # The step, Adafactor's count and its unused slots have one element or none.
        shapes = {tuple(leaf.shape) for leaf in jax.tree.leaves(tree)}
        assert {prompt} <= shapes <= {prompt, (), (1,)}


def test_result(finished):
    folder, result = finished
    assert Result.read(folder) == result
    assert result.summary["majority_accuracy"] == 0.5
    assert (result.task, result.splits) == ("demo_reviews", {"demo_reviews": "test"})
    assert result.trained_parameters == 4 * CONFIG.d_model
    assert result.total_parameters == sizes(TOTAL) + 4 * CONFIG.d_model
    assert result.seconds > 0


def test_logs(finished):
    folder, result = finished
    lines = read_metrics(folder / "train" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(line.keys() >= T5X_METRICS for line in lines)
    assert all(line["learning_rate"] == pytest.approx(0.3) for line in lines)
    lines = read_metrics(folder / "inference_eval" / "demo_reviews" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 2, 4]
    assert all(line.keys() == {"step", "rank/accuracy"} for line in lines)
    # The first of the best ones.
    assert max(lines, key=lambda line: line["rank/accuracy"])["step"] == result.best_step
    for kind in ("train", "inference_eval/demo_reviews"):
        assert list((folder / kind).glob("events.out.tfevents.*"))


def test_the_card(finished, backbone_file):
    folder, result = finished
    best, last = (card.read(folder / f"prompt_{which}.npy") for which in ("best", "last"))
    assert best == card.Card(
        backbone=backbone_file,
        fingerprint=best.fingerprint,
        d_model=CONFIG.d_model,
        task="demo_reviews",
        method="PromptTuning",
        length=4,
        placement="prefix",
        initialisation=str(PROMPT.initializer),
        optimizer="adafactor",
        learning_rate=0.3,
        steps=result.best_step,
        metric={"rank/accuracy": result.validation["rank/accuracy"]},
        version=__version__,
        config="PROMPT_LENGTH = 4",
        trained_with=card.TrainedWith(
            settings=PROMPT.settings,
            labels=("negative", "positive"),
            tasks=("demo_reviews",),
            lengths={"inputs": 8, "targets": 4},
            text_fields={"demo_reviews": ("text",)},
            vocabulary=vocabulary.read(embedded.vocabulary()).fingerprint,
            model=CONFIG.of_model,
        ),
        checksum=card.checksum_of(prompts.load(folder / "prompt_best.safetensors")),
    )
    assert (last.steps, last.length) == (4, 4)
    leaves = {name: np.asarray(leaf) for name, leaf in stored(Path(backbone_file)).items()}
    assert best.fingerprint == fingerprint.of(leaves)
    of_leaves = card.read(folder / "trained_last.safetensors")
    checksum = card.checksum_of(stored(folder / "trained_last.safetensors"))
    assert of_leaves == dataclasses.replace(last, length=0, checksum=checksum)


def test_a_resumed_run_is_the_same_run(data, backbone_file, finished, tmp_path):
    """Interrupted in the evaluation at step 2, from whose checkpoint it resumes."""
    score, results = validation.score, [True, False]

    def score_once(*arguments) -> dict[str, float]:
        if results.pop(0):
            return score(*arguments)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "score", score_once)
        with pytest.raises(KeyboardInterrupt):
            run(data, tmp_path / "model", 4, backbone=backbone_file, checkpoint_period=2)
    log = tmp_path / "model" / "train" / "metrics.jsonl"
    log.write_text(log.read_text() + '{"step": 3, "loss": 0}\n{"step": 4, "lo')
    result = run(data, tmp_path / "model", 4, backbone=backbone_file, checkpoint_period=3)
    assert result.resumed_from_step == 2
    for name in ("prompt_last.npy", "prompt_best.npy", "trained_last.safetensors"):
        assert (tmp_path / "model" / name).read_bytes() == (finished[0] / name).read_bytes()
    for kind in ("train", "inference_eval/demo_reviews"):
        ours, theirs = (
            [untimed(line) for line in (folder / kind / "metrics.jsonl").read_text().splitlines()]
            for folder in (tmp_path / "model", finished[0])
        )
        assert ours == theirs


def untimed(line: str) -> dict[str, float]:
    return {k: v for k, v in json.loads(line).items() if not k.startswith("timing/")}


def test_a_finished_run_writes_its_results_again(data, backbone_file, finished):
    folder, result = finished
    last = (folder / "prompt_last.npy").read_bytes()
    (folder / "prompt_last.npy").unlink()
    again = run(data, folder, 4, backbone=backbone_file)
    assert (result.resumed_from_step, again.resumed_from_step) == (0, 4)
    of_process = {"seconds": 0.0, "resumed_from_step": 0}
    assert dataclasses.replace(again, **of_process) == dataclasses.replace(result, **of_process)
    assert (folder / "prompt_last.npy").read_bytes() == last


def test_a_finished_run_keeps_its_card_and_says_that_it_is_finished(
    data, backbone_file, finished, capsys
):
    def never(path) -> str:
        raise AssertionError("config.gin would be written")

    run(data, finished[0], 4, backbone=backbone_file, on_start=never)
    said = capsys.readouterr().out
    assert "finished, all 4 steps" in said and "other examples" not in said
    assert card.read(finished[0] / "prompt_last.npy").config == "PROMPT_LENGTH = 4"


def test_a_finished_run_says_that_it_measures_other_examples(data, backbone_file, finished, capsys):
    path = finished[0] / "result.json"
    of_before = json.loads(path.read_text())
    of_before["examples"] = dict.fromkeys(of_before["examples"], "0" * 16)
    path.write_text(json.dumps(of_before))
    run(data, finished[0], 4, backbone=backbone_file)
    said = "warning: demo_reviews, test split: other examples than before; result.json will be"
    assert said in capsys.readouterr().out


def test_a_finished_run_keeps_the_rate_of_its_training(data, backbone_file, finished):
    before = card.read(finished[0] / "trained_last.safetensors")
    run(data, finished[0], 4, backbone=backbone_file, learning_rate=0.1, resume_with_changes=True)
    after = card.read(finished[0] / "trained_last.safetensors")
    assert after.learning_rate == before.learning_rate != 0.1
    assert card.read(finished[0] / "prompt_best.npy").learning_rate == before.learning_rate


def test_a_result_without_a_checkpoint_is_not_trained_again_for_other_examples(
    data, backbone_file, finished, tmp_path
):
    (tmp_path / "result.json").write_bytes((finished[0] / "result.json").read_bytes())
    start = {"backbone": backbone_file, "measure_again": False, "on_start": lambda _: 1 / 0}
    with pytest.warns(UserWarning, match="a result but no checkpoint; its settings are not"):
        assert run(data, tmp_path, 4, **start).scores == finished[1].scores
    fewer = dataclasses.replace(data, eval_examples=3)
    with (
        pytest.warns(UserWarning, match="no checkpoint"),
        pytest.raises(
            UserError, match=r"there is no checkpoint to measure again; restore"
        ) as error,
    ):
        run(fewer, tmp_path, 4, **start)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_a_backbone_that_was_replaced_at_its_path_is_refused(data, backbone_file, finished):
    """The old numbers would be shown as those of the new one."""
    start = {"backbone": backbone_file, "measure_again": False, "on_start": lambda _: 1 / 0}
    path = Path(backbone_file)
    content, leaves = path.read_bytes(), {k: np.asarray(v) for k, v in stored(path).items()}
    assert run(data, finished[0], 4, **start).scores == finished[1].scores
    try:
        backbone.save(path, {name: leaf * 2 for name, leaf in leaves.items()}, "float32")
        with pytest.raises(CheckpointError, match="its weights have changed"):
            run(data, finished[0], 4, **start)
        backbone.save(path, leaves, "bfloat16")  # the same one
        assert run(data, finished[0], 4, **start).scores == finished[1].scores
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.1}, "LEARNING_RATE = 0.3, now 0.1"),
        ({"init_seed": 1}, "RANDOM_SEED (initialisation) = 0, now 1"),
        ({"method": methods.PromptTuning(4, initializer=methods.Uniform())}, ".initializer = "),
        ({"batch_size": 8}, "BATCH_SIZE = 16, now 8"),
        ({"data_seed": 3}, "RANDOM_SEED (data) = 0, now 3"),
        ({"lengths": {"inputs": 4, "targets": 4}}, "TASK_FEATURE_LENGTHS = "),
        ({"file": "a\tb\n"}, "training examples = "),
        ({"eval_examples": 3}, "validation examples = "),
        ({"labels": ("positive", "negative")}, "CLASS_LABELS = "),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("steps", [4, 6], ids=["finished", "more steps"])
def test_a_second_start_with_other_settings_is_refused(
    change, message, steps, data, backbone_file, finished
):
    """Before anything is written, so that the card and `config.gin` stay those of the training."""
    change = dict(change)
    replaced = {
        name: change.pop(name)
        for name in ("batch_size", "lengths", "eval_examples")
        if name in change
    }
    if "data_seed" in change:
        replaced["seed"] = change.pop("data_seed")
    data = dataclasses.replace(data, **replaced)
    if change.pop("file", ""):
        rows = [dataclasses.replace(part, inputs=part.inputs + 1) for part in data._training_tokens]
        data.__dict__["_training_tokens"] = rows
    if labels := change.pop("labels", ()):
        provider = copy.copy(data.provider)
        provider.labels = labels
        data = dataclasses.replace(data, provider=provider)
    before = {path: path.read_bytes() for path in finished[0].rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError) as error:
        run(data, finished[0], steps, backbone=backbone_file, on_start=lambda _: 1 / 0, **change)
    assert message in str(error.value) and "\n" not in str(error.value)
    after = {path: path.read_bytes() for path in finished[0].rglob("*") if path.is_file()}
    assert after == before


def test_a_run_refuses_fewer_steps_than_it_has(data, backbone_file, finished):
    with pytest.raises(UserError, match=r"TRAIN_STEPS = 2: .* is already at step 4"):
        run(data, finished[0], 2, backbone=backbone_file)


def test_a_run_refuses_another_task(data, backbone_file, finished):
    other = dataclasses.replace(data, task="demo_topics")
    names = "MIXTURE_OR_TASK_NAME = demo_reviews, now demo_topics"
    with pytest.raises(CheckpointError, match=names):
        run(other, finished[0], 4, backbone=backbone_file)


def test_the_saved_prompt_predicts_what_the_trained_leaves_do(
    data, backbone_file, finished, tmp_path
):
    folder, result = finished
    method = methods.PromptTuning(4, initializer=methods.FromFile(str(folder / "prompt_best.npy")))
    by_prompt = measured(data, tmp_path / "a", method, backbone=backbone_file)
    trained = str(folder / "trained_best.safetensors")
    by_leaves = measured(data, tmp_path / "b", PROMPT, backbone=backbone_file, trained_file=trained)
    assert by_prompt == by_leaves
    assert by_leaves == {"demo_reviews": {"rank/accuracy": result.summary["prompt_accuracy"]}}
    scores = "demo_reviews-test-rank.jsonl"
    assert (tmp_path / "a" / scores).read_bytes() == (tmp_path / "b" / scores).read_bytes()


def measured(
    data: TaskData, folder: Path, method: methods.Method, *, backbone: str, **settings
) -> dict:
    return evaluate(
        output_dir=str(folder),
        config=CONFIG,
        method=method,
        layout=one_device(),
        data=dataclasses.replace(data, batch_size=64),
        initial_checkpoint=backbone,
        **settings,
    )


@pytest.mark.slow
def test_model_tuning(data, backbone_file, tmp_path):
    result = run(
        data,
        tmp_path / "model",
        2,
        backbone=backbone_file,
        method=methods.ModelTuning(),
        learning_rate=0.001,
        optimizer=lambda rate: adafactor(rate, multiply_by_parameter_scale=True, factored=True),
    )
    assert result.trained_parameters == result.total_parameters == sizes(TOTAL)
    assert not list((tmp_path / "model").glob("prompt_*"))
    trained = str(tmp_path / "model" / "trained_best.safetensors")
    tuning = methods.ModelTuning()
    actual = measured(data, tmp_path / "eval", tuning, backbone=backbone_file, trained_file=trained)
    assert actual == {"demo_reviews": {"rank/accuracy": result.summary["prompt_accuracy"]}}
    curve = read_metrics(tmp_path / "model" / "train" / "metrics.jsonl")
    assert curve[0]["loss"] != curve[1]["loss"]


@pytest.fixture
def mixture(data) -> Iterator[TaskData]:
    """Reviews, and texts without labels that have no test split."""
    rows = [Row(f"number {i}", f"{i}") for i in range(16)]
    splits = dict.fromkeys(("train", "validation"), rows.copy)
    with clean_registries():
        tasks.register("numbers", splits, tasks.vocabulary(embedded.vocabulary()))
        seqio.MixtureRegistry.add(
            "reviews_and_numbers", ["demo_reviews", "numbers"], default_rate=1.0
        )
        yield dataclasses.replace(data, task="reviews_and_numbers")


@pytest.mark.slow
def test_a_mixture(mixture, data, backbone_file, tmp_path, capsys):
    folder = tmp_path / "model"
    with pytest.raises(UserError, match="'rank', but the task numbers has no labels"):
        run(mixture, folder, 2, backbone=backbone_file, eval_methods=("rank",))
    assert not folder.exists()
    result = run(mixture, folder, 2, backbone=backbone_file, eval_methods=("auto",))
    assert Result.read(folder) == result
    assert result.task == "reviews_and_numbers"
    assert result.splits == {"demo_reviews": "test", "numbers": "validation"}
    metrics = {"demo_reviews": "rank/accuracy", "numbers": "generate/accuracy"}
    logs = {
        task: read_metrics(folder / "inference_eval" / task / "metrics.jsonl") for task in metrics
    }
    for task, metric in metrics.items():
        assert [line.keys() for line in logs[task]] == [{"step", metric}] * 2
    means = {
        step: (logs["demo_reviews"][i]["rank/accuracy"] + logs["numbers"][i]["generate/accuracy"])
        / 2
        for i, step in enumerate((0, 2))
    }
    assert result.best_step == max(means, key=means.get)
    for name, row in (("majority", "majority"), ("frozen", "frozen"), ("prompt", "trained")):
        values = [result.scores[task][row][metric] for task, metric in metrics.items()]
        assert result.summary[f"{name}_mean"] == pytest.approx(sum(values) / 2)
    out = capsys.readouterr().out
    assert "majority class" in out and "most frequent answer" in out
    assert "demo_reviews, test split, step" in out and "numbers, validation split, step" in out
    for other in (data, dataclasses.replace(data, task="numbers")):
        with pytest.raises(
            CheckpointError, match="MIXTURE_OR_TASK_NAME = reviews_and_numbers, now"
        ):
            run(other, folder, 2, backbone=backbone_file, eval_methods=("auto",))
    # `eval` on the same leaves: a file of metrics and one of predictions for each task.
    actual = measured(
        mixture,
        tmp_path / "eval",
        PROMPT,
        backbone=backbone_file,
        trained_file=str(folder / "trained_best.safetensors"),
        split="validation",
        eval_methods=("auto",),
    )
    best = {
        task: {name: value for name, value in line.items() if name != "step"}
        for task, log in logs.items()
        for line in log
        if line["step"] == result.best_step
    }
    assert actual == best
    names = {path.name for path in (tmp_path / "eval").iterdir()}
    assert names == {
        "demo_reviews-validation-metrics.json",
        "demo_reviews-validation-rank.jsonl",
        "numbers-validation-metrics.json",
        "numbers-validation-generate.jsonl",
        "parameters.json",
    }


def test_only_steps_at_which_each_task_was_measured_count(tmp_path, mixture):
    sets = mixture.eval_sets("validation")
    lines = {"demo_reviews": [(0, 0.5), (2, 0.75)], "numbers": [(0, 0.25)]}
    for data in sets:
        log = tmp_path / "inference_eval" / data.task / "metrics.jsonl"
        log.parent.mkdir(parents=True)
        log.write_text(
            "".join(json.dumps({"step": s, "a/b": value}) + "\n" for s, value in lines[data.task])
        )
    assert Validation(tmp_path, sets, ("auto",), 16).history == [{"step": 0, "mean": 0.375}]


def test_metrics_of_a_run_that_was_stopped(tmp_path):
    log = tmp_path / "metrics.jsonl"
    assert read_metrics(log) == []
    log.write_text('{"step": 1, "a": 1}\n{"step": 2, "a": 2}\n{"step": 2, "a": 3}\n{"step": 3, "')
    assert read_metrics(log) == [{"step": 1, "a": 1}, {"step": 2, "a": 3}]


def test_learning_curve_of_metrics_that_came_later(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(learning_curve.style, "save", lambda figure, path: figures.append(figure))
    train = [{"step": 1, "loss_per_nonpadding_target_token": 1.0}]
    validation = [{"step": 0, "rank/accuracy": 0.5}, {"step": 1, "generate/accuracy": 0.5}]
    learning_curve.learning_curve(
        tmp_path / "curve.png", train, validation, {"majority class": 0.5}
    )
    lines = {line.get_label(): line for line in figures[0].axes[1].lines}
    points = {name: line.get_xydata().tolist() for name, line in lines.items()}
    assert points["rank/accuracy"] == [[0, 0.5]]
    assert points["generate/accuracy"] == [[1, 0.5]]
    assert "majority class" in points
