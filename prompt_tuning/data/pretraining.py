"""The pre-training mixture of the embedded backbone: T5's objectives and short steered tasks.

A batch is a pure function of (seed, step), so a run resumes at any step with no state of its own.
The short tasks are made from the corpus and put their name in front of the input: they teach the
backbone to follow what stands in front and to answer in a word (docs/backbone.md).
"""

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from prompt_tuning.data.corpus import EXCLUDED_SOURCES, documents, open_text

Example = tuple[list[int], list[int]]  # input ids, target ids; no end tokens
Pair = tuple[str, str]  # input text, target text
EOS = 1
SENTINELS = 100

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
class Phase:
    """Weights of the kinds of batch in one phase of pre-training.

    Attributes:
      until: the phase lasts while step < until.
      span_corruption, prefix_lm, short: relative frequency of each kind of batch.
    """

    until: int
    span_corruption: float
    prefix_lm: float
    short: float


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Pre-training batches, `mixture(step)`; all randomness comes from (seed, step).

    Attributes:
      corpus: folder of the corpus.
      supervised: JSON-lines files of {"text", "label"} by task name, with the label words.
      vocabulary: SentencePiece model.
      phases: in order.
      batch_size: examples in a batch of the long objectives; short tasks take twice as many.
      input_length, target_length: of the long objectives.
      short_input_length, short_target_length: of the short tasks.
      verdict_share: share of the short examples that ask for a verdict or an opposite.
    """

    corpus: str
    vocabulary: str
    supervised: str = ""
    phases: Sequence[Phase] = (Phase(1, 1, 0, 0),)
    batch_size: int = 32
    input_length: int = 128
    target_length: int = 32
    short_input_length: int = 64
    short_target_length: int = 8
    verdict_share: float = 0.5
    seed: int = 0

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        """The batch of a step: arrays [B, T] and [B, L] int32 under T5X's feature names."""
        rng = np.random.default_rng([self.seed, step])
        phase = next((p for p in self.phases if step < p.until), self.phases[-1])
        weights = np.array([phase.span_corruption, phase.prefix_lm, phase.short])
        match rng.choice(3, p=weights / weights.sum()):
            case 0:
                make, lengths = self._span_corruption, (self.input_length, self.target_length)
            case 1:
                make, lengths = self._prefix_lm, (self.input_length, self.target_length)
            case _:
                make, lengths = self._short, (self.short_input_length, self.short_target_length)
        size = self.batch_size * (2 if make == self._short else 1)
        return pad([make(rng) for _ in range(size)], *lengths)

    @functools.cached_property
    def _pieces(self) -> sentencepiece.SentencePieceProcessor:
        return sentencepiece.SentencePieceProcessor(model_file=self.vocabulary)

    @functools.cached_property
    def _corpus(self) -> "Corpus":
        return Corpus.load(Path(self.corpus), Path(self.supervised) if self.supervised else None)

    def _encode(self, text: str) -> list[int]:
        return self._pieces.encode(text)

    def _window(self, rng: np.random.Generator, length: int) -> list[int]:
        """`length` consecutive tokens of a random place of the corpus, or a whole short text."""
        _, text = self._corpus.pick(rng)
        characters = 6 * length
        start = int(rng.integers(max(1, len(text) - characters // 2)))
        if start:
            start = text.find(" ", start) + 1
        return self._encode(text[start : start + characters])[:length]

    def _span_corruption(self, rng: np.random.Generator) -> Example:
        # 15 % of `raw` tokens leave and one sentinel a span of 3 comes back.
        raw = int((self.input_length - 2) / (1 - 0.15 + 0.15 / 3))
        ids = self._window(rng, raw)
        first = self._pieces.vocab_size() + SENTINELS - 1
        return span_corruption(ids, noise_mask(len(ids), rng), first)

    def _prefix_lm(self, rng: np.random.Generator) -> Example:
        ids = self._window(rng, self.input_length + self.target_length - 2)
        split = max(1, len(ids) - self.target_length + 1, int(rng.integers(1, len(ids) + 1)))
        split = min(split, self.input_length - 1)
        return ids[:split], ids[split : split + self.target_length - 1]

    def _short(self, rng: np.random.Generator) -> Example:
        tasks = VERDICT_TASKS if rng.random() < self.verdict_share else OTHER_TASKS
        while True:
            task = tasks[int(rng.integers(len(tasks)))]
            if pair := task(self._corpus, rng):
                return self._encode(pair[0]), self._encode(pair[1])


def pad(
    examples: Sequence[Example], input_length: int, target_length: int
) -> dict[str, np.ndarray]:
    """Examples to a batch: cut, ended by EOS and padded, targets shifted right for the decoder."""

    def rows(lists: list[list[int]], length: int) -> np.ndarray:
        out = np.zeros((len(lists), length), np.int32)
        for row, ids in zip(out, lists, strict=True):
            ids = [*ids[: length - 1], EOS]
            row[: len(ids)] = ids
        return out

    targets = rows([target for _, target in examples], target_length)
    return {
        "encoder_input_tokens": rows([source for source, _ in examples], input_length),
        "decoder_target_tokens": targets,
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_loss_weights": (targets > 0).astype(np.int32),
    }


def noise_mask(
    length: int, rng: np.random.Generator, density: float = 0.15, mean_span: float = 3.0
) -> np.ndarray:
    """[length] bool, True at noise: random spans as in T5, never the first token."""
    noise = int(np.clip(round(length * density), 1, max(1, length - 1)))
    spans = max(1, min(round(noise / mean_span), noise, length - noise))

    def segments(items: int) -> np.ndarray:
        cuts = np.sort(rng.choice(np.arange(1, items), size=spans - 1, replace=False))
        return np.diff(np.concatenate([[0], cuts, [items]]))

    lengths = np.stack([segments(length - noise), segments(noise)], axis=1).reshape(-1)
    return np.repeat(np.arange(2 * spans) % 2 == 1, lengths)


def span_corruption(ids: Sequence[int], noise: np.ndarray, first_sentinel: int) -> Example:
    """Replaces each noise span by a sentinel; the target is the sentinels with their spans."""
    source: list[int] = []
    target: list[int] = []
    sentinel = first_sentinel + 1
    for i, token in enumerate(ids):
        if noise[i]:
            if i == 0 or not noise[i - 1]:
                sentinel -= 1
                source.append(sentinel)
                target.append(sentinel)
            target.append(token)
        else:
            source.append(token)
    return source, target


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Texts and the labelled sets derived from them."""

    texts: Sequence[Pair]  # source, text
    ends: np.ndarray  # cumulated characters, so that long texts are drawn more often
    verdicts: Sequence[tuple[str, bool]]  # review text, whether it praises
    labelled: Mapping[str, Sequence[Pair]]  # task name to (text, label words)

    @classmethod
    def load(cls, folder: Path, supervised: Path | None) -> "Corpus":
        texts = list(documents(folder, EXCLUDED_SOURCES))
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
            found = split_sentences(paragraphs[int(rng.integers(len(paragraphs)))])
            if len(found) > 1:
                return source, found


def read_supervised(folder: Path) -> Iterator[tuple[str, list[Pair]]]:
    """(name, pairs) of each data set in `folder`: its train split, labels as words."""
    for info in sorted(folder.glob("*/dataset_info.json")):
        about = json.loads(info.read_text(encoding="utf-8"))
        with open_text(info.parent / about["splits"]["train"]["file"]) as lines:
            rows = [json.loads(line) for line in lines]
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
    if rng.random() < 0.25:  # only who reads what stands in front can tell
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
