"""A `tokenizer.json` gives the ids of Hugging Face's tokenizers.

benchmarks/gemma_vocabulary.py made the files.
"""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from prompt_tuning.data import tasks
from prompt_tuning.errors import UserError
from prompt_tuning.transformer import vocabulary

FOLDER = Path(__file__).parents[1] / "fixtures" / "gemma" / "vocabulary"
IDS = json.loads((FOLDER / "ids.json").read_text())


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def both(cache) -> tuple[vocabulary.SentencePiece, vocabulary.SentencePiece]:
    names = ("tokenizer.json", "tokenizer.model")
    converted, original = (vocabulary.SentencePiece(FOLDER / name) for name in names)
    return converted, original


@pytest.mark.parametrize("text", IDS)
def test_ids_are_those_of_hugging_face(both, text):
    for each in both:
        assert each.encode(text) == IDS[text]
        assert each.decode(IDS[text]) == text.replace("▁", " ")


@given(text=st.text(st.sampled_from("aeth ln.\n<>_▁é中\U0001f600"), max_size=30))
@settings(max_examples=100, deadline=None)
def test_both_formats_give_the_same_ids(both, text):
    converted, original = both
    assert converted.encode(text) == original.encode(text)


def test_what_is_special(both):
    for each in both:
        assert (each.size, each.begin, each.unknown) == (600, (2,), 3)
        assert len(each.pieces) == 600  # no sentinels
    assert both[0].words == both[1].words


@pytest.mark.parametrize(("piece", "number", "begin"), [("<s>", 2, ()), ("<bos>", -1, (2,))])
def test_the_begin_token_is_the_piece_of_that_name(piece, number, begin, tmp_path):
    """As SentencePiece has it, whatever the number says; SeqIO's reader and ours agree."""
    model = sentencepiece_model_pb2.ModelProto.FromString((FOLDER / "tokenizer.model").read_bytes())
    model.trainer_spec.bos_piece, model.trainer_spec.bos_id = piece, number
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    ours, theirs = vocabulary.SentencePiece(tmp_path), tasks.vocabulary(tmp_path)
    assert (ours.begin, tuple(tasks.begin_of(theirs))) == (begin, begin)
    assert len(ours.pieces) == theirs.vocab_size == (600 if begin else 700)


def test_a_folder_stands_for_its_vocabulary(cache, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((FOLDER / "tokenizer.json").read_bytes())
    alone = vocabulary.file_of(tmp_path)
    assert alone.parent == cache / "prompt_tuning"
    assert vocabulary.file_of(tmp_path) == alone  # converted once
    assert vocabulary.file_of(FOLDER).name == "tokenizer.model"
    seqios = tasks.vocabulary(FOLDER)
    assert (seqios.vocab_size, seqios.extra_ids, tasks.begin_of(seqios)) == (600, 0, [2])
    text = "A dull film."
    assert seqios.encode(text) == tasks.vocabulary(tmp_path).encode(text) == IDS[text]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"type": "Unigram"}}, "must be byte-pair encoding"),
        ({"normalizer": None}, "its normalizer must replace"),
    ],
)
def test_other_kinds_are_one_clear_line(cache, tmp_path, change, message):
    content = json.loads((FOLDER / "tokenizer.json").read_text()) | change
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as raised:
        vocabulary.file_of(tmp_path)
    assert "\n" not in str(raised.value) and "give its tokenizer.model" in str(raised.value)


def test_a_folder_without_a_vocabulary(tmp_path):
    with pytest.raises(UserError, match=r"has none of tokenizer\.model, spiece\.model, tokenizer"):
        vocabulary.file_of(tmp_path)
