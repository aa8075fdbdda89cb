"""The card of a prompt: written cards are read again, anything else is an error of one line."""

import contextlib
import dataclasses
import json
import warnings

import numpy as np
import pytest

from prompt_tuning.checkpoint import card, fingerprint, prompts
from prompt_tuning.checkpoint.card import Card, TrainedWith
from prompt_tuning.checkpoint.formats import peft, safetensors_file
from prompt_tuning.errors import CheckpointError, UserError
from prompt_tuning.exchange import adapters
from prompt_tuning.families import preset
from prompt_tuning.methods import FromFile, LoRA
from prompt_tuning.methods.base import Backbone

CARD = Card(
    backbone="t5/small",
    fingerprint="0123456789abcdef",
    d_model=16,
    task="sst2",
    method="PromptTuning",
    length=4,
    placement="prefix",
    initialisation="Uniform(low=-0.5, high=0.5)",
    optimizer="adafactor",
    learning_rate=0.3,
    steps=400,
    metric={"rank/accuracy": 0.9},
    version="0.1.0",
    config="PROMPT_LENGTH = 4\n",
    trained_with=TrainedWith(
        {"PromptTuning.length": 4},
        ("a", "b"),
        ("sst2",),
        {"inputs": 16, "targets": 4},
        text_fields={"sst2": ("title", "text")},
        vocabulary="0f" * 8,
        model={"relative_max_distance": 128},
        bare_inputs=("sst2",),
    ),
    checksum="fedcba9876543210",
)
FIELDS = dataclasses.asdict(CARD)


def test_what_is_saved_is_read(tmp_path):
    card.save(tmp_path / "prompt_best.npy", CARD)
    assert [path.name for path in tmp_path.iterdir()] == ["prompt_best.card.json"]
    for name in ("prompt_best.npy", "prompt_best.safetensors"):
        assert card.read(tmp_path / name) == CARD
    written = json.loads((tmp_path / "prompt_best.card.json").read_text())
    assert written == json.loads(json.dumps(FIELDS))


PROMPT = np.arange(64, dtype=np.float32).reshape(4, 16)
RENAMED = "no card, and prompt_best.card.json in its folder was written for these values; rename"


@pytest.mark.parametrize("name", ["reviews.npy", "reviews.safetensors", "reviews.bin", "reviews"])
def test_a_prompt_that_was_renamed_without_its_card_is_refused(name, tmp_path):
    written = tmp_path / f"prompt_best{'.safetensors' if 'safe' in name else '.npy'}"
    prompts.save(written, PROMPT)
    card.save(written, CARD, PROMPT)
    written.rename(tmp_path / name)
    with pytest.raises(CheckpointError, match=RENAMED):
        card.read(tmp_path / name)


def test_an_adapter_that_was_renamed_without_its_card_is_refused(tmp_path):
    peft.save_prompt(tmp_path / "reviews", PROMPT)
    card.save(tmp_path / "prompt_best", CARD, PROMPT)
    with pytest.raises(CheckpointError, match=RENAMED):
        card.read(tmp_path / "reviews")


def test_leaves_that_were_renamed_without_their_card_are_refused(tmp_path):
    leaves = {"encoder/a/lora_a": np.ones((2, 3), np.float32), "b": np.zeros(2, np.float32)}
    written = tmp_path / "trained_best.safetensors"
    safetensors_file.write(written, leaves, np.dtype("float32"))
    card.save(written, CARD, leaves)
    written.rename(tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match=r"rename it to lora\.card\.json"):
        card.read(tmp_path / "lora.safetensors")


def test_prompts_without_a_card_beside_cards_of_others(tmp_path):
    """A card whose file is there is that file's, whatever else has the same values."""
    original = tmp_path / "prompt_best.npy"
    prompts.save(original, PROMPT)
    card.save(original, CARD, PROMPT)
    for name, prompt in (("copy.npy", PROMPT), ("other.npy", PROMPT + 1)):
        prompts.save(tmp_path / name, prompt)
        assert card.read(tmp_path / name) is None
    original.unlink()
    (tmp_path / "odd.card.json").write_bytes(b'{"task": "caf\xe9"}')
    (tmp_path / "folder.card.json").mkdir()
    (tmp_path / "gone.card.json").symlink_to(tmp_path / "nothing")
    (tmp_path / "text.npy").write_text("no prompt")
    for name in ("other.npy", "text.npy", "missing.npy"):
        assert card.read(tmp_path / name) is None


def test_a_card_of_an_earlier_version_is_read(tmp_path):
    earlier = dataclasses.replace(CARD, trained_with=None, checksum="")
    card.save(tmp_path / "prompt.npy", earlier)
    written = json.loads((tmp_path / "prompt.card.json").read_text())
    assert {"trained_with", "checksum"}.isdisjoint(written)
    assert card.read(tmp_path / "prompt.npy") == earlier


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": {"inputs": 0, "targets": 4}}, "'lengths' must be .* from 1 to 65536"),
        ({"lengths": {"inputs": 16, "targets": 0}}, "'lengths' must be"),
        ({"lengths": {"inputs": 2**31}}, "'lengths' must be"),
        ({"lengths": {"inputs": True}}, "'lengths' must be"),
        ({"lengths": {"inputs": 16.0}}, "'lengths' must be"),
        ({"d_model": -1}, "'d_model' must be a whole number from 0"),
        ({"length": -1}, "'length' must be a whole number from 0"),
        ({"steps": 2**40}, "'steps' must be a whole number from 0 to 2147483647"),
        ({"learning_rate": float("inf")}, "'learning_rate' must be a finite number"),
        ({"learning_rate": float("nan")}, "'learning_rate' must be a finite number"),
    ],
)
def test_numbers_out_of_their_range(changes, message):
    fields = json.loads(json.dumps(FIELDS))
    (fields["trained_with"] if "lengths" in changes else fields).update(changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        card.parse(json.dumps(fields), "p.card.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("vocabulary", "model", "differs"),
    [
        ("0f" * 8, {"relative_max_distance": 128}, ""),
        ("", {}, ""),
        ("", {"relative_buckets": 8}, ""),  # which the card does not say
        ("f0" * 8, {}, "was trained with the vocabulary 0f0f0f0f0f0f0f0f, but this one is f0f0"),
        ("", {"relative_max_distance": 16}, "relative_max_distance = 128, not 16"),
    ],
)
def test_what_weights_do_not_say_is_compared(vocabulary, model, differs):
    def check(said):
        card.check_model(said, "p.npy", vocabulary=vocabulary, model=model)

    check(None)
    check(dataclasses.replace(CARD.trained_with, vocabulary="", model={}))  # an earlier version's
    with pytest.raises(CheckpointError, match=differs) if differs else contextlib.nullcontext():
        check(CARD.trained_with)


def test_each_file_has_a_card_of_its_own(tmp_path):
    """Prompts of the original code have no suffix, and dots in their names."""
    names = ("encoder.prompt.prompt.prompt", "encoder.prompt", "encoder.npy", "adapter")
    assert len({card.path_of(tmp_path / name) for name in names}) == len(names)
    assert all(card.read(tmp_path / name) is None for name in names)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", "is not valid JSON"),
        ('{"backbone": ', "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", "is not a JSON object"),
        ("null", "is not a JSON object"),
        ("{}", "lacks the field 'backbone'"),
        (json.dumps(FIELDS | {"more": 1}), "has an unknown field 'more'"),
        (json.dumps({k: v for k, v in FIELDS.items() if k != "steps"}), "lacks the field 'steps'"),
        (json.dumps(FIELDS | {"steps": "400"}), "the field 'steps' must be a whole number from 0"),
        (json.dumps(FIELDS | {"steps": True}), "the field 'steps' must be a whole number from 0"),
        (json.dumps(FIELDS | {"length": -1}), "the field 'length' must be a whole number from 0"),
        (
            json.dumps(FIELDS | {"learning_rate": None}),
            "the field 'learning_rate' must be a finite number",
        ),
        (json.dumps(FIELDS | {"backbone": ["a"]}), "the field 'backbone' must be a string"),
        (json.dumps(FIELDS | {"metric": 0.9}), "the field 'metric' must be an object of numbers"),
        (
            json.dumps(FIELDS | {"metric": {"a": "b"}}),
            "the field 'metric' must be an object of numbers",
        ),
        (json.dumps(FIELDS | {"config": "x" * 2**20}), "is larger than 1048576 bytes"),
        *(
            (
                json.dumps(FIELDS | {"trained_with": FIELDS["trained_with"] | change}),
                f"the field {next(iter(change))!r} must be {kind}",
            )
            for change, kind in (
                ({"settings": 1}, "an object"),
                ({"labels": "ab"}, "a list of strings"),
                ({"tasks": [1]}, "a list of strings"),
                ({"lengths": {"inputs": -1}}, "an object of whole numbers from 1"),
                ({"target_prefix": None}, "a string"),
                ({"text_fields": {"sst2": "text"}}, "an object of lists of strings"),
            )
        ),
        (json.dumps(FIELDS | {"trained_with": {}}), "lacks the field 'labels'"),
        (json.dumps(FIELDS | {"trained_with": None}), "the field 'trained_with' must be an object"),
    ],
)
def test_a_damaged_card_is_one_line(tmp_path, content, part):
    path = tmp_path / "prompt.card.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError) as error:
        card.read(tmp_path / "prompt.npy")
    message = str(error.value)
    assert message.startswith(f"{path}: ") and part in message and "\n" not in message


@pytest.fixture
def embedding() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(9, 16)).astype(np.float32)


def test_a_prompt_of_another_backbone_is_refused(tmp_path, embedding):
    prompt, current = np.ones((4, 16), np.float32), fingerprint.of({"embedding": embedding})
    path = str(tmp_path / "prompt.npy")
    prompts.save(path, prompt)
    backbone = Backbone(embedding, fingerprint=lambda: current)

    def load(**settings) -> np.ndarray:
        return FromFile(path, **settings)(4, backbone, np.random.default_rng(0))

    np.testing.assert_array_equal(load(), prompt)  # no card
    card.save(path, dataclasses.replace(CARD, fingerprint=current), prompt)
    np.testing.assert_array_equal(load(), prompt)
    card.save(path, CARD, prompt)
    with pytest.raises(CheckpointError) as error:
        load()
    for part in (path, current, CARD.fingerprint, CARD.backbone, "ALLOW_OTHER_BACKBONE"):
        assert part in str(error.value)
    np.testing.assert_array_equal(load(allow_other_backbone=True), prompt)


PROMPT = np.arange(64, dtype=np.float32).reshape(4, 16)


@pytest.mark.parametrize(
    ("name", "other", "message"),
    [
        ("p.npy", PROMPT[:3], r"p\.npy: has 3 vectors, and its card says 4; restore the file"),
        ("p.npy", PROMPT[::-1], r"p\.npy: has other values .*, or delete p\.card\.json"),
        ("p.safetensors", PROMPT + np.eye(4, 16, dtype=np.float32), "has other values"),
        ("p", np.zeros_like(PROMPT), "has other values"),
        ("p.npy", PROMPT.astype(np.float64), ""),
        ("p.safetensors", PROMPT, ""),
    ],
)
@pytest.mark.parametrize("earlier", [False, True], ids=["", "earlier"])
def test_another_prompt_in_the_place_of_the_cards(name, other, message, earlier, tmp_path):
    path = tmp_path / name
    prompts.save(path, PROMPT)
    card.save(path, CARD, PROMPT)
    assert card.read(path) is not None
    if earlier:  # a card without checksum has the length alone
        card.save(path, dataclasses.replace(CARD, checksum=""))
        message = message if "vectors" in message else ""
    prompts.save(path, other)
    readers = (card.read, lambda path: card.check_prefix(path), _from_file)
    for read in readers:
        if not message:
            read(path)
            continue
        with pytest.raises(CheckpointError, match=message):
            read(path)


def _from_file(path) -> None:
    embedding = np.zeros((9, 16), np.float32)
    FromFile(str(path), allow_other_backbone=True)(
        len(prompts.load(path)), Backbone(embedding), np.random.default_rng(0)
    )


def test_other_leaves_in_the_place_of_the_cards(tmp_path):
    leaves = {"a/kernel": PROMPT, "b/kernel": PROMPT[:2]}
    assert card.checksum_of(leaves) == card.checksum_of(dict(reversed(leaves.items())))
    others = ({"a/kernel": PROMPT}, {"a/kernel": PROMPT[:2], "b/kernel": PROMPT}, PROMPT)
    assert len({card.checksum_of(each) for each in (leaves, *others)}) == 4


def test_lora_is_not_written_for_peft_under_the_names_of_a_t5(tmp_path):
    card = dataclasses.replace(
        CARD, trained_with=TrainedWith(model=preset("t5gemma_nano").of_model)
    )
    adaptation = adapters.Adaptation({}, LoRA(), card)
    with pytest.raises(UserError, match="trained on another family; use --format=trained"):
        adapters.write(str(tmp_path / "adapter"), "peft", adaptation)
    assert not any(tmp_path.iterdir())


def test_a_backbone_that_is_known_by_its_path_alone_is_told(tmp_path):
    """As that of a recycled prompt."""
    by_path = dataclasses.replace(CARD, fingerprint="", checksum="")
    for name, saved in {"a": by_path, "b": CARD, "c": by_path}.items():
        card.save(tmp_path / f"{name}.npy", saved)
    card.save(tmp_path / "d.npy", dataclasses.replace(by_path, backbone="other.safetensors"))
    with pytest.warns(UserWarning, match=f"names the backbone '{CARD.backbone}' by its path alone"):
        card.check(tmp_path / "a.npy", lambda: "0" * 16)
    with pytest.warns(UserWarning, match="do not say whether these are the same"):
        card.check_alike(tmp_path / "b.npy", tmp_path / "d.npy")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("c", "b"):
            card.check_alike(tmp_path / "a.npy", tmp_path / f"{name}.npy")
