"""Reading the pre-training corpus: JSON lines of {"text", "source"}, plain or `.xz`."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from prompt_tuning.data.readers.compressed import open_text

# Sources under a research-only or non-commercial licence, and news and leaflets whose publisher
# holds the copyright: the embedded backbone is published under Apache-2.0. Of some that are left
# (reviews, forum posts) the source states no licence; docs/backbone.md lists them.
EXCLUDED_SOURCES = (
    "race_train",
    "reuters21578",
    "brown",
    "odin_project",
    "dialogsum",
    "progit2",
    "treebank_wsj",
    "mctest",
    "nltk_abc",
    "xsum",
    "pil",
)


def documents(
    folder: str | Path, exclude: Sequence[str] = EXCLUDED_SOURCES
) -> Iterator[tuple[str, str]]:
    """Yields (source, text) of every document in `folder`, in file order.

    Raises:
      FileNotFoundError: if the folder holds no `.jsonl*` file.
    """
    files = sorted(Path(folder).glob("*.jsonl*"))
    if not files:
        raise FileNotFoundError(f"{folder}: no .jsonl, .jsonl.gz or .jsonl.xz file in it")
    for file in files:
        with open_text(file) as lines:
            for line in lines:
                row = json.loads(line)
                if row["source"] not in exclude:
                    yield row["source"], row["text"]
