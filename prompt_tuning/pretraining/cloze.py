"""Cloze questions: a paragraph, and one of its sentences with a phrase asked for."""

import re

import numpy as np

from prompt_tuning.pretraining.sentences import Documents, choose

CONTEXT = 330  # characters of the paragraph
# The phrase is the first group.
_NUMBER = re.compile(r"(\$?\d[\d,.]*\d|\$?\d)")
_NAME = re.compile(r"[a-z,] ([A-Z][a-z]+(?: (?:of |the )?[A-Z][a-z]+){0,3})\b")
_WORDS = re.compile(r"\b(?:the|a|an|of|in|by) ([a-z]{4,}(?: [a-z]{4,})?)")
ASKED = {  # kind of phrase: where it is, what asks for it
    "number": (_NUMBER, ("how many", "when", "what number", "how much")),
    "name": (_NAME, ("who", "what", "where", "which")),
    "words": (_WORDS, ("what", "which", "what kind of")),
}
FORMS = (
    "question: {question} context: {context}",
    "{question} | {context}",
    "{context} question: {question}",
)
NEIGHBOURS = 12  # words of the sentence on either side of the phrase that the question has
DROPPED = 0.15  # share of the question's other words that are left out, so that it is no copy


def draw(rng: np.random.Generator, documents: Documents) -> tuple[str, str] | None:
    """Draws an input and the phrase that answers it; None where the draw gives none."""
    sentences = documents.pick(rng).sentences
    start = int(rng.integers(len(sentences)))
    context: list[str] = []
    for sentence in sentences[start:]:
        if context and sum(map(len, context)) + len(sentence) > CONTEXT:
            break
        context.append(sentence)
    asked = choose(rng, context)
    pattern, words = ASKED[choose(rng, ("number", "name", "name", "words"))]
    phrases = list(pattern.finditer(asked))
    if not phrases:
        return None
    phrase = choose(rng, phrases)
    before = _thinned(rng, asked[: phrase.start(1)].split()[-NEIGHBOURS:])
    after = _thinned(rng, asked[phrase.end(1) :].rstrip(".!?").split()[:NEIGHBOURS])
    if len(before) + len(after) < 3:
        return None
    word = choose(rng, words)
    match int(rng.integers(3)):
        case 0:
            question = " ".join([*before, "_", *after])
        case 1:
            question = " ".join([*before, word, *after]) + "?"
        case _:
            question = " ".join([word, *after, *before]) + "?"
    text = choose(rng, FORMS).format(question=question, context=" ".join(context))
    return text, phrase[1]


def _thinned(rng: np.random.Generator, words: list[str]) -> list[str]:
    return [word for word in words if rng.random() >= DROPPED]
