"""Short tasks that are steered by the words in front, made from the corpus and labelled sets.

Each task is a function (corpus, generator) -> (input text, target text), or None where the random
draw gives no example. They teach the backbone to follow what stands in front of its input and to
answer in a word (docs/backbone.md).
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from prompt_tuning.data.readers.compressed import open_text
from prompt_tuning.errors import UserError
from prompt_tuning.pretraining.corpus import documents

Pair = tuple[str, str]  # input text, target text

GENRES = {
    "imdb_unsup": "film",
    "imdb_train": "film",
    "wikipedia_vital": "encyclopedia",
    "wikipedia_bio": "biography",
    "wikipedia_lead": "encyclopedia",
    "books": "book",
    "medquad": "medicine",
    "python_peps": "software",
    "rust_rfcs": "software",
    "swift_evolution": "software",
    "powershell_docs": "software",
    "freecodecamp_guide": "software",
    "20newsgroups": "forum",
    "state_union": "speech",
    "inaugural": "speech",
    "multilexsum": "law",
    "world_factbook": "geography",
    "onestopenglish": "news",
}
OPPOSITES = (
    ("good", "bad"),
    ("great", "terrible"),
    ("best", "worst"),
    ("excellent", "awful"),
    ("wonderful", "horrible"),
    ("love", "hate"),
    ("loved", "hated"),
    ("better", "worse"),
    ("enjoyed", "disliked"),
    ("beautiful", "ugly"),
    ("fun", "boring"),
    ("funny", "stupid"),
    ("brilliant", "dull"),
    ("amazing", "disappointing"),
    ("perfect", "poor"),
    ("interesting", "tedious"),
    ("recommend", "avoid"),
)
# Phrases that give a review's verdict away: a review with two more of one kind than of the other
# gets that label (distant supervision).
PRAISE = (
    "highly recommend", "must see", "must-see", "loved this", "love this", "masterpiece",
    "one of the best", "excellent", "wonderful", "brilliant", "superb", "fantastic", "8/10", "9/10",
    "10/10", "great movie", "great film", "well worth", "don't miss", "a gem", "my favorite",
)  # fmt: skip
BLAME = (
    "waste of time", "waste your time", "worst", "awful", "terrible", "horrible", "don't bother",
    "avoid", "boring", "pathetic", "1/10", "2/10", "3/10", "so bad", "poorly", "lame", "garbage",
    "complete mess", "stay away", "not worth", "disappointing", "ridiculous", "crap",
)  # fmt: skip
VERDICTS = (
    ("sentiment: ", "positive", "negative"),
    ("positive or negative? ", "positive", "negative"),
    ("is it good or bad? ", "good", "bad"),
    ("does the writer like it? ", "yes", "no"),
    ("verdict: ", "great", "terrible"),
)
WH_WORDS = ("what", "who", "where", "when", "why", "how", "which", "whose", "whom")


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Texts and the labelled sets derived from them."""

    texts: Sequence[Pair]  # source, text
    ends: np.ndarray  # cumulated characters, so that long texts are drawn more often
    verdicts: Sequence[tuple[str, bool]]  # review text, whether it praises
    labelled: Mapping[str, Sequence[Pair]]  # task name to (text, label words)

    @classmethod
    def load(cls, folder: Path, supervised: Path | None) -> "Corpus":
        texts = list(documents(folder))
        reviews = [text for source, text in texts if source.startswith("imdb")]
        verdicts = [(text, sign > 0) for text in reviews if (sign := verdict(text))]
        labelled = dict(read_supervised(supervised)) if supervised else {}
        verdicts += [
            (text, label == "positive")
            for name in list(labelled)
            if {label for _, label in labelled[name]} == {"positive", "negative"}
            for text, label in labelled.pop(name)
        ]
        ends = np.cumsum([len(text) for _, text in texts])
        return cls(texts, ends, verdicts, labelled)

    def pick(self, rng: np.random.Generator) -> Pair:
        """A random (source, text), by length."""
        return self.texts[int(np.searchsorted(self.ends, rng.integers(self.ends[-1]), "right"))]

    def sentences(self, rng: np.random.Generator) -> tuple[str, list[str]]:
        """The source and the sentences of a random paragraph with at least two."""
        while True:
            source, text = self.pick(rng)
            paragraphs = text.split("\n\n")
            sentences = split_sentences(paragraphs[int(rng.integers(len(paragraphs)))])
            if len(sentences) > 1:
                return source, sentences


def read_supervised(folder: Path) -> Iterator[tuple[str, list[Pair]]]:
    """(name, pairs) of each data set in `folder`: its train split, labels as words."""
    for info in sorted(folder.glob("*/dataset_info.json")):
        about = json.loads(info.read_text(encoding="utf-8"))
        with open_text(info.parent / about["splits"]["train"]["file"]) as lines:
            rows = [json.loads(line) for line in lines]
        if "text" not in rows[0]:
            raise UserError(
                f"LABELLED = {str(folder)!r}: {about['name']} has no field 'text'; link the sets "
                "of docs/backbone.md into a folder of their own"
            )
        words = [label.replace("_", " ") for label in about["labels"]]
        yield about["name"], [(row["text"], words[row["label"]]) for row in rows]


def verdict(text: str) -> int:
    """1 for praise, -1 for blame, 0 where a review's phrases do not tell."""
    low = text.lower()
    score = sum(p in low for p in PRAISE) - sum(p in low for p in BLAME)
    return 0 if abs(score) < 2 else int(np.sign(score))


def split_sentences(text: str) -> list[str]:
    """Sentences of 20 to 300 characters."""
    return [s for s in re.split(r"(?<=[.!?])\s+(?=[A-Z\"'])", text) if 20 <= len(s) <= 300]


def choose(rng: np.random.Generator, items: Sequence):
    return items[int(rng.integers(len(items)))]


def verdict_task(corpus: Corpus, rng: np.random.Generator) -> Pair | None:
    if not corpus.verdicts:
        return None
    text, praised = choose(rng, corpus.verdicts)
    sentences = split_sentences(text) or [text]
    count = int(rng.integers(1, 5))
    # Reviews tend to end with their verdict: half of the windows are a review's end.
    last = max(0, len(sentences) - count)
    start = last if rng.random() < 0.5 else int(rng.integers(last + 1))
    ask, praise, blame = choose(rng, VERDICTS)
    if rng.random() < 0.5:  # only who reads what stands in front can tell which word to say
        ask, praise, blame = "the opposite of " + ask, blame, praise
    return ask + " ".join(sentences[start : start + count]), praise if praised else blame


def opposite_task(corpus: Corpus, rng: np.random.Generator) -> Pair | None:
    """Which of two opposite words was there."""
    review, _ = choose(rng, corpus.verdicts) if corpus.verdicts else corpus.pick(rng)[::-1]
    sentences = split_sentences(review)
    rng.shuffle(sentences)
    for sentence in sentences:
        for pair in OPPOSITES:
            for word in pair:
                if re.search(rf"\b{word}\b", sentence):
                    blank = re.sub(rf"\b{word}\b", "_", sentence, count=1)
                    first, second = pair if rng.random() < 0.5 else pair[::-1]
                    return f"{first} or {second}? {blank}", word
    return None


def labelled_task(corpus: Corpus, rng: np.random.Generator) -> Pair | None:
    if not corpus.labelled:
        return None
    name = choose(rng, sorted(corpus.labelled))
    text, label = choose(rng, corpus.labelled[name])
    return f"{name} intent: {text}", label


def missing_word_task(corpus: Corpus, rng: np.random.Generator) -> Pair | None:
    _, sentences = corpus.sentences(rng)
    here, other = choose(rng, sentences), choose(rng, corpus.sentences(rng)[1])
    words = re.findall(r"\b[a-z]{4,}\b", here)
    wrong = [w for w in re.findall(r"\b[a-z]{4,}\b", other) if w not in words]
    if not words or not wrong:
        return None
    word, decoy = choose(rng, words), choose(rng, wrong)
    blank = re.sub(rf"\b{word}\b", "_", here, count=1)
    pair = (word, decoy) if rng.random() < 0.5 else (decoy, word)
    return f"{pair[0]} or {pair[1]}? {blank}", word


def next_sentence_task(corpus: Corpus, rng: np.random.Generator) -> Pair | None:
    _, sentences = corpus.sentences(rng)
    i = int(rng.integers(len(sentences) - 1))
    follows = rng.random() < 0.5
    second = sentences[i + 1] if follows else choose(rng, corpus.sentences(rng)[1])
    return f"does it follow? {sentences[i]} | {second}", "yes" if follows else "no"


def genre_task(corpus: Corpus, rng: np.random.Generator) -> Pair | None:
    genre = choose(rng, sorted(set(GENRES.values())))
    for _ in range(40):  # by genre, so that the rare ones are seen as often
        source, sentences = corpus.sentences(rng)
        if GENRES.get(source) == genre:
            start = int(rng.integers(len(sentences)))
            return "topic: " + " ".join(sentences[start : start + 2]), genre
    return None


def contains_task(corpus: Corpus, rng: np.random.Generator) -> Pair | None:
    _, sentences = corpus.sentences(rng)
    sentence = choose(rng, sentences)
    present = rng.random() < 0.5
    words = re.findall(
        r"\b[a-z]{4,}\b", sentence if present else choose(rng, corpus.sentences(rng)[1])
    )
    if not words:
        return None
    word = choose(rng, words)
    answer = "yes" if re.search(rf"\b{word}\b", sentence) else "no"
    return f"is there the word {word}? {sentence}", answer


def position_task(corpus: Corpus, rng: np.random.Generator) -> Pair | None:
    words = choose(rng, corpus.sentences(rng)[1]).split()
    ask, word = choose(
        rng, [("first word: ", words[0]), ("last word: ", words[-1].strip(".!?\"'"))]
    )
    return ask + " ".join(words), word


def question_word_task(corpus: Corpus, rng: np.random.Generator) -> Pair | None:
    """The question word that was taken out."""
    for _ in range(10):
        for sentence in corpus.sentences(rng)[1]:
            first = sentence.split()[0].lower()
            if sentence.endswith("?") and first in WH_WORDS:
                return "question word: _ " + " ".join(sentence.split()[1:]), first
    return None


def answer_kind_task(corpus: Corpus, rng: np.random.Generator) -> Pair | None:
    """Whether the blank was a number, a name or a common word."""
    words = choose(rng, corpus.sentences(rng)[1]).split()
    kinds = {
        "number": [i for i, w in enumerate(words) if re.fullmatch(r"\$?\d[\d,.]*%?", w)],
        "name": [i for i, w in enumerate(words[1:], 1) if re.fullmatch(r"[A-Z][a-z]{2,}[,.]?", w)],
        "word": [i for i, w in enumerate(words) if re.fullmatch(r"[a-z]{4,}", w)],
    }
    kind = choose(rng, sorted(kinds))
    if not kinds[kind]:
        return None
    words[choose(rng, kinds[kind])] = "_"
    return "number, name or word? " + " ".join(words), kind


def order_task(corpus: Corpus, rng: np.random.Generator) -> Pair | None:
    _, sentences = corpus.sentences(rng)
    i = int(rng.integers(len(sentences) - 1))
    pair, answer = (sentences[i], sentences[i + 1]), "first"
    if rng.random() < 0.5:
        pair, answer = pair[::-1], "second"
    return f"which comes first? {pair[0]} | {pair[1]}", answer


Task = Callable[[Corpus, np.random.Generator], Pair | None]
VERDICT_TASKS: tuple[Task, ...] = (verdict_task, verdict_task, verdict_task, opposite_task)
OTHER_TASKS: tuple[Task, ...] = (
    labelled_task,
    labelled_task,
    missing_word_task,
    missing_word_task,
    next_sentence_task,
    genre_task,
    genre_task,
    contains_task,
    position_task,
    question_word_task,
    answer_kind_task,
    order_task,
)
