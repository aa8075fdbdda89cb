"""Vocabularies without TensorFlow give SeqIO's ids and texts."""

import json
import warnings
from pathlib import Path

import pytest
import sentencepiece
import seqio
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_tuning import embedded
from prompt_tuning.data import tasks
from prompt_tuning.errors import UserError
from prompt_tuning.transformer import vocabulary

PAIRS = {
    "embedded": (
        vocabulary.read(embedded.vocabulary()),
        seqio.SentencePieceVocabulary(embedded.vocabulary(), extra_ids=100),
    ),
    "bytes": (vocabulary.read("bytes"), seqio.ByteVocabulary(extra_ids=100)),
}
TEXTS = [
    "",
    "A dull film.",
    "über 12,5 % \u2014 caf\u00e9 \U0001f600",
    "a <extra_id_0> b <extra_id_99>",
    "  x ",
]
pairs = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)


@pairs
@pytest.mark.parametrize("text", TEXTS)
def test_ids_of_texts(pair, text):
    ours, theirs = pair
    assert ours.encode(text) == theirs.encode(text)


@pairs
@given(text=st.text(max_size=40))
@settings(max_examples=100, deadline=None)
def test_ids_of_any_text(pair, text):
    ours, theirs = pair
    text = text.replace("\0", "")
    ids = ours.encode(text)
    assert ids == theirs.encode(text)
    assert ours.decode([*ids, 1, 5]) == theirs.decode([*ids, 1, 5])


@pairs
@given(ids=st.lists(st.integers(0, 9_000), max_size=12))
@settings(max_examples=100, deadline=None)
def test_texts_of_any_ids(pair, ids):
    ours, theirs = pair
    assert ours.decode(ids) == theirs.decode(ids)


def test_a_model_with_other_special_ids_is_refused(tmp_path):
    """The defaults of SentencePiece's trainer: 0 is unknown, 1 begins and 2 ends texts."""
    path, lines = tmp_path / "own.model", (f"a film number {i}, and a cook" for i in range(300))
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_writer=file, vocab_size=40, minloglevel=2
        )
    for read in (vocabulary.read, tasks.vocabulary):
        with pytest.raises(UserError, match=r"own\.model: pads with the id -1 and ends .* with 2;"):
            read(str(path))


@pytest.mark.parametrize("read", [vocabulary.read, tasks.vocabulary])
def test_tokens_that_a_folder_adds_are_told(read, tmp_path):
    (tmp_path / "spiece.model").write_bytes(Path(embedded.vocabulary()).read_bytes())
    known = {"added_tokens_decoder": {"1": {"content": "</s>"}, "8": {"content": "<extra_id_9>"}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(known))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(str(tmp_path))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<sep>": 8100, "<extra_id_0>": 8099}))
    with pytest.warns(UserWarning, match=r"the tokens that it adds \(<sep>\) are not read"):
        read(str(tmp_path))


def test_sentinels_have_the_highest_ids():
    ours = PAIRS["embedded"][0]
    assert ours.encode("<extra_id_0>")[-1] == 8_099
    assert ours.encode("<extra_id_99>")[-1] == 8_000


def test_a_vocabulary_of_seqio_is_one():
    assert isinstance(tasks.vocabulary(embedded.vocabulary()), vocabulary.Vocabulary)


def test_what_is_no_vocabulary_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"/no/a\.model: no such file"):
        vocabulary.read("/no/a.model")
    (tmp_path / "a.model").write_text("no model")
    with pytest.raises(UserError, match=r"a\.model: not a SentencePiece model"):
        vocabulary.read(tmp_path / "a.model")
