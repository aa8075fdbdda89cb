"""What a request's texts become, and what its tokens are called; without a device."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import seqio
from server_parts import SHAPES, MadeUp, client, started, tiny_model

from prompt_tuning import embedded
from prompt_tuning.data import tasks as data_tasks
from prompt_tuning.server.questions import Questions, Settings, TooLong
from prompt_tuning.server.tasks import Served
from prompt_tuning.serving import texts
from prompt_tuning.transformer.vocabulary import Bytes, SentencePiece, with_pieces

GEMMA = Path(__file__).parents[1] / "fixtures" / "gemma" / "vocabulary" / "tokenizer.model"
OURS, BYTES, WITH_BEGIN = SentencePiece(embedded.vocabulary()), Bytes(), SentencePiece(GEMMA)


def questions(vocabulary) -> Questions:
    config = SimpleNamespace(vocab_size=40_000)
    model = SimpleNamespace(vocabulary=vocabulary, config=config)
    return Questions(SimpleNamespace(model=model, shapes=SHAPES))


def served(input_length: int = 16) -> Served:
    return Served("a", "", "a", (), None, (0,), (3,), input_length, "", 0)


@pytest.mark.parametrize("text", ["A dull film.", "great", "", "a longer text of several words"])
@pytest.mark.parametrize("vocabulary", [OURS, BYTES, WITH_BEGIN])
@pytest.mark.parametrize("length", [3, 16, 64])
def test_ids_are_those_of_python_and_of_training(vocabulary, text, length):
    """With what begins an input, which counts among the tokens, and the same cut everywhere."""
    feature = seqio.Feature(data_tasks.vocabulary(GEMMA)) if vocabulary is WITH_BEGIN else None
    begin = data_tasks.begin_of(feature.vocabulary) if feature else []
    whole = [*begin, *vocabulary.encode(text)]
    expected = [*whole[: length - 1], 1]
    assert texts.encoded(vocabulary, text, length).ids == expected
    asked = questions(vocabulary).embed(served(length), [text], truncate=True)
    assert asked.rows[0][1].ids == expected and asked.tokens == len(expected)
    is_long = len(whole) + 1 > length
    said = ["truncated"] * is_long + ["empty"] * (not text)
    assert [each.code for each in asked.warnings] == said
    if is_long:
        with pytest.raises(TooLong, match=f"a text of {len(whole) + 1} tokens: model 'a' takes"):
            questions(vocabulary).embed(served(length), [text], truncate=False)


@pytest.mark.parametrize(
    ("vocabulary", "same"),
    [
        (data_tasks.vocabulary(GEMMA), WITH_BEGIN),
        (data_tasks.vocabulary(embedded.vocabulary()), OURS),
        (seqio.ByteVocabulary(), BYTES),
    ],
)
def test_a_vocabulary_of_seqio_s_begins_inputs_too(vocabulary, same):
    ours = with_pieces(vocabulary)
    for text in ("A dull film.", "日本"):
        assert texts.encoded(ours, text, 16) == texts.encoded(same, text, 16)
    assert ours.fingerprint == data_tasks.fingerprint(vocabulary) == same.fingerprint


@pytest.mark.parametrize(
    ("text", "is_readable"),
    [
        ("很好", False),
        ("فيلم رائع", False),
        ("素晴らしい映画でした。 20", False),
        ("😀😀 😀", False),
        ("χ", False),
        ("a film that was great 很好", True),
        ("great 😀", True),
        ("", True),
        ("  ", True),
    ],
)
def test_texts_that_the_vocabulary_does_not_know(text, is_readable):
    assert texts.encoded(OURS, text, 64).is_readable == is_readable
    assert texts.encoded(BYTES, text, 64).is_readable
    asked = questions(OURS).embed(served(64), ["great", text], truncate=False)
    found = [(each.code, each.index) for each in asked.warnings]
    said = [("unknown_characters", 1)] * (not is_readable) + [("empty", 1)] * (not text.strip())
    assert found == said


@pytest.mark.parametrize(
    ("vocabulary", "stops", "never"),
    [
        (OURS, ("\n", ".", " ", "the end", "s"), ["\n"]),
        (OURS, ("  ", "很", "™", "ﬁ", " a\n"), ["  ", "很", "™", "ﬁ", " a\n"]),
        (BYTES, ("\n", "  ", "很", "™"), []),
    ],
)
def test_stop_texts_that_no_answer_can_have(vocabulary, stops, never):
    asked = questions(vocabulary).complete(served(), ["a"], False, Settings(4, stop=stops))
    found = [(each.code, each.message) for each in asked.warnings]
    message = "stop = {!r}: the vocabulary does not write it, so no text ends there"
    assert found == [("stop_not_written", message.format(stop)) for stop in never]


def tokens_of(vocabulary, steps: Sequence[tuple[int, float, dict[int, float]]]):
    """The tokens of a completion: for each step the token, its log p, and the likeliest ones."""
    ids = np.array([[token for token, *_ in steps]])
    log_p = np.array([[value for _, value, _ in steps]])
    top = np.array([[list(likeliest) for *_, likeliest in steps]])
    top_log_p = np.array([[list(likeliest.values()) for *_, likeliest in steps]])
    rows = list(zip(ids, log_p.sum(-1), log_p, top, top_log_p, strict=True))
    asked = questions(vocabulary).complete(served(), ["a"], False, Settings(8, alternatives=5))
    [answer] = asked.answers(rows)
    return answer.text, [(each.text, each.log_p, each.top, each.offset) for each in answer.tokens]


def test_tokens_that_are_bytes_are_named():
    e5, a5, bd, a = (byte + 3 for byte in (0xE5, 0xA5, 0xBD, 0x61))
    steps = [
        (a, -1.0, {e5: -0.5, a: -1.0, a5: -2.0}),
        (e5, -0.1, {e5: -0.1, a: -3.0, a5: -4.0}),
        (a5, -0.2, {a5: -0.2, bd: -3.0, e5: -4.0}),
        (bd, -0.3, {bd: -0.3, a5: -3.0, a: -4.0}),
        (a, -0.4, {a: -0.4, 1: -3.0, e5: -4.0}),
    ]
    names = {e5: "bytes:\\xe5", a5: "bytes:\\xa5", bd: "bytes:\\xbd", a: "a", 1: ""}
    text, listed = tokens_of(BYTES, steps)
    assert text == "a好a"
    offsets = (0, 1, 1, 1, 2)
    assert listed == [
        (names[token], log_p, {names[i]: value for i, value in top.items()}, offset)
        for (token, log_p, top), offset in zip(steps, offsets, strict=True)
    ]


def piece(text: str) -> int:
    return OURS.pieces.index(text)


@pytest.mark.parametrize("first", [True, False])
def test_of_tokens_with_one_text_the_token_s_own_and_then_the_most_likely_counts(first):
    """At the first position the piece of a word's start and that within a word are one text."""
    start, within, other = piece("▁a"), piece("a"), piece("▁the")
    token, likeliest = (start, within) if first else (within, start)
    steps = [
        (token, -1.5, {likeliest: -0.4, token: -1.5, other: -2.0, 1: -3.0, 0: -4.0}),
        (other, -0.2, {other: -0.2, start: -2.0, within: -3.0, 1: -4.0, 0: -5.0}),
    ]
    _, listed = tokens_of(OURS, steps)
    assert listed[0] == ("a", -1.5, {"a": -1.5, "the": -2.0, "": -3.0}, 0)
    assert listed[1] == (" the", -0.2, {" the": -0.2, " a": -2.0, "a": -3.0, "": -4.0}, 1)


@pytest.mark.parametrize("route", ["classify", "embeddings", "completions", "stream", "rows"])
def test_warnings_are_in_each_answer_and_counted(route):
    """2 is the unknown piece."""
    with started(MadeUp(tiny_model())) as service:

        async def ask(text: str):
            name = "free" if route in ("completions", "stream") else "a"
            field = "prompt" if name == "free" else "input"
            body = {"model": name, field: text, "truncate": True}
            path = "completions" if route == "stream" else route
            async with client(service) as http:
                body |= {"stream": True} if route == "stream" else {}
                answer = await http.post(f"/v1/{path}", json=body)
                content = answer.text.split("\n\n")[0].removeprefix("data: ")
                return json.loads(content), (await http.get("/metrics")).text

        plain, _ = asyncio.run(ask("3 4"))
        assert "warnings" not in plain
        warned, metrics = asyncio.run(ask("2 " * 40))
    found = [(each["code"], each["index"]) for each in warned["warnings"]]
    assert found == [("truncated", 0), ("unknown_characters", 0)]
    assert warned["warnings"][0]["message"] == "41 tokens were cut to 16"
    assert 'warnings_total{code="truncated"} 1.0' in metrics
