"""Makes a second set of paraphrases, besides MRPC, from STS-B's pairs of image captions.

  python scripts/stsb_captions.py --data=FOLDER --output=CAPTIONS

reads FOLDER/stsb and writes CAPTIONS/stsb_captions, `train.jsonl` and so on, with the label 1 for a
similarity of 4 or more of 5 ("mostly equivalent") and 0 for less. The other genres are left out:
STS-B's news pairs overlap with MRPC's.
"""

import json
import lzma
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from prompt_tuning.cli import plain_command
from prompt_tuning.errors import UserError
from prompt_tuning.runtime.files import renamed_when_done

GENRE = "main-captions"
EQUIVALENT = 4.0
SPLITS = ("train", "validation", "test")

_DATA = flags.DEFINE_string("data", None, "Folder of the data sets.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to make the new one in.", required=True)


def captions(path: Path) -> Iterator[dict[str, str | int]]:
    with (lzma.open if path.suffix == ".xz" else open)(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row["genre"] == GENRE:
                pair = {name: row[name] for name in ("sentence1", "sentence2")}
                yield {**pair, "label": int(row["score"] >= EQUIVALENT)}


def main() -> None:
    for split in SPLITS:
        files = sorted(Path(_DATA.value, "stsb").glob(f"{split}.jsonl*"))
        if not files:
            raise UserError(f"--data={_DATA.value}: there is no stsb/{split}.jsonl in it")
        rows = list(captions(files[0]))
        path = Path(_OUTPUT.value, "stsb_captions", f"{split}.jsonl")
        with renamed_when_done(path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
        print(f"{split}: {len(rows)} pairs, {sum(row['label'] for row in rows)} equivalent")


if __name__ == "__main__":
    plain_command.main(main)
