"""What the teacher is to embed: windows of the corpus, option words, pairs of sentences."""

import itertools
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from prompt_tuning.pretraining.sentences import Document, Documents, choose

WINDOWS = 130_000
QUESTIONS = 6  # every sixth window is a question
LABELLED_SHARE = 16  # a labelled set adds at most a sixteenth of the corpus's windows
WINDOW_LENGTHS = (25, 400)  # characters
PAIRED_WORDS = 8_000  # options of two words
RAREST, MOST_FREQUENT = 12, 0.05  # documents with an option word: at least, and at most (share)
PAIRS = 24_000
SENTENCE_LENGTHS = (30, 120)  # characters of each sentence of a pair

_WORD = re.compile(r"\b[a-z]{4,}\b")
_ANY_WORD = re.compile(r"[a-z]+")


def options(documents: Sequence[Document]) -> list[str]:
    """Words of the documents, neither rare nor common, and frequent pairs of words."""
    words, pairs = Counter[str](), Counter[str]()
    for _, sentences in documents:
        text = " ".join(sentences).lower()
        words.update(set(_WORD.findall(text)))
        tokens = _ANY_WORD.findall(text)
        pairs.update(
            {
                f"{first} {second}"
                for first, second in itertools.pairwise(tokens)
                if min(len(first), len(second)) > 3
                and first not in ENGLISH_STOP_WORDS
                and second not in ENGLISH_STOP_WORDS
            }
        )
    most = MOST_FREQUENT * len(documents)
    kept = (w for w, n in words.items() if RAREST <= n <= most and w not in ENGLISH_STOP_WORDS)
    return sorted(kept) + sorted(p for p, n in pairs.most_common(PAIRED_WORDS) if n >= RAREST)


def windows(
    documents: Documents, rng: np.random.Generator, count: int = WINDOWS
) -> list[tuple[str, str]]:
    """(text, source) of `count` windows of the corpus, and of texts of the labelled sets."""
    seen: set[str] = set()
    rows: list[tuple[str, str]] = []
    while len(rows) < count:
        source, sentences = documents.pick(rng)
        if len(rows) % QUESTIONS == 0:
            asked = [sentence for sentence in sentences if sentence.endswith("?")]
            text = choose(rng, asked) if asked else ""
        else:
            start = int(rng.integers(len(sentences)))
            text = " ".join(sentences[start : start + int(rng.integers(1, 4))])
        if WINDOW_LENGTHS[0] <= len(text) <= WINDOW_LENGTHS[1] and text not in seen:
            seen.add(text)
            rows.append((text, source))
    texts = {name: [t for t, _ in pairs] for name, pairs in sorted(documents.labelled.items())}
    texts["verdict"] = [sentences[0] for sentences, _ in documents.verdicts if len(sentences) == 1]
    for name, own_texts in texts.items():
        shuffled = [own_texts[i] for i in rng.permutation(len(own_texts))]
        fitting = (t for t in shuffled if len(t) <= WINDOW_LENGTHS[1] and t not in seen)
        rows += [(text, name) for text in itertools.islice(fitting, count // LABELLED_SHARE)]
    return [rows[i] for i in rng.permutation(len(rows))]


def pairs(
    texts: Sequence[str],
    vectors: np.ndarray,
    words: Sequence[str],
    word_vectors: np.ndarray,
    rng: np.random.Generator,
    count: int = PAIRS,
) -> list[tuple[str, str]]:
    """Pairs of sentences, from near in meaning to far, for the teacher to compare.

    A third is a sentence and one that is near by the teacher, a third a sentence and its edited
    form, and a third a sentence and the edited form of a near one.

    Args:
      texts: Windows; those of one sentence of a fitting length are used.
      vectors: Rows [windows, width] of unit length.
      words: Options, for the edits.
      word_vectors: Rows [options, width] of unit length.
      rng: Source of all randomness.
      count: Number of pairs.
    """
    low, high = SENTENCE_LENGTHS
    fitting = np.array([i for i, text in enumerate(texts) if low <= len(text) <= high])
    near_words = _NearWords(words, word_vectors)
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        pool = rng.choice(fitting, size=min(3_000, len(fitting)), replace=False)
        of_pool = vectors[pool].astype(np.float32)
        first = rng.integers(len(pool), size=min(600, count - len(pairs)))
        similarity = of_pool[first] @ of_pool.T
        similarity[np.arange(len(first)), first] = -1
        nearest = np.argsort(-similarity, axis=1)[:, :3]
        for i, row in zip(first, nearest, strict=True):
            text, near = texts[pool[i]], texts[pool[choose(rng, row)]]
            kind = int(rng.integers(3))
            second = near if kind == 0 else _edited(rng, text if kind == 1 else near, near_words)
            pairs.append((text, second) if rng.random() < 0.5 else (second, text))
    return pairs


class _NearWords:
    """Words that the teacher holds to be near a word."""

    def __init__(self, words: Sequence[str], vectors: np.ndarray) -> None:
        single = [i for i, word in enumerate(words) if " " not in word]
        self.words = [words[i] for i in single]
        self._index = {word: i for i, word in enumerate(self.words)}
        self._vectors = vectors[single].astype(np.float32)
        self._near: dict[str, list[str]] = {}

    def near(self, word: str) -> list[str]:
        """The three nearest others; none if the word is no option."""
        if word not in self._index:
            return []
        if word not in self._near:
            similarity = self._vectors @ self._vectors[self._index[word]]
            best = np.argpartition(-similarity, 4)[:4]
            self._near[word] = [self.words[i] for i in best if self.words[i] != word][:3]
        return self._near[word]


def _edited(rng: np.random.Generator, text: str, near: _NearWords) -> str:
    """`text` with words left out, exchanged for near or other ones, or its parts swapped."""
    words = text.split()
    for _ in range(int(rng.integers(1, 4))):
        place = int(rng.integers(len(words)))
        bare = re.sub(r"\W", "", words[place].lower())
        match int(rng.integers(4)):
            case 0 if len(words) > 5:
                count = int(rng.integers(1, 3))
                words = words[:place] + words[place + count :]
            case 1 if others := near.near(bare):
                words[place] = re.sub(r"\w+", choose(rng, others), words[place], count=1)
            case 2 if len(bare) > 3:
                words[place] = re.sub(r"\w+", choose(rng, near.words), words[place], count=1)
            case 3 if 3 < place < len(words) - 3:
                words = words[place:] + words[:place]
    return " ".join(words)
