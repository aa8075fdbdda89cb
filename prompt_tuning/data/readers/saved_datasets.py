"""Reads Hugging Face data sets that `Dataset.save_to_disk` wrote: Arrow files and an index.

The `datasets` library is not needed, so no script, network access or pickle is involved.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prompt_tuning.data.unicode_form import composed
from prompt_tuning.errors import UserError

INDEX = "state.json"


def is_saved(folder: Path) -> bool:
    """Whether a folder contains a saved data set (one split)."""
    return (folder / INDEX).is_file()


def rows(folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields each row's number, from 1, and fields; a nested field is a dict or a list.

    Raises:
      UserError: If the folder contains no saved data set, or it cannot be read.
    """
    try:
        import pyarrow as pa
    except ImportError as error:
        raise UserError(
            f"{folder}: to read a saved data set, pip install 'prompt-tuning[datasets]' ({error})"
        ) from error
    if (folder / "dataset_dict.json").is_file():
        splits = _json(folder / "dataset_dict.json")["splits"]
        raise UserError(f"{folder}: has the splits {', '.join(splits)}; give one of these folders")
    if not is_saved(folder):
        raise UserError(f"{folder}: folder contains no saved data set ({INDEX})")
    index, number = _json(folder / INDEX), 0
    if index.get("_indices_data_files"):
        raise UserError(f"{folder}: saved by an old version of `datasets`; save it with a new one")
    try:
        for file in index["_data_files"]:
            with pa.memory_map(str(folder / file["filename"])) as source:
                for batch in pa.ipc.open_stream(source):
                    for fields in batch.to_pylist():
                        number += 1
                        yield number, fields
    except (OSError, KeyError, pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{folder}: cannot be read ({error})") from error


def class_names(folder: Path, field: str) -> list[str]:
    """The names of a field that is a `ClassLabel`, in the order of its numbers; empty if it is not.

    Args:
      folder: Folder of a saved data set, or another one.
      field: Name of the field, in any Unicode form.
    """
    info = folder / "dataset_info.json"
    features = (_json(info).get("features") or {}) if info.is_file() else {}
    by_name = {composed(name): feature for name, feature in features.items()}
    feature = by_name.get(composed(field))
    return list((feature.get("names") if isinstance(feature, dict) else None) or ())


def check_order(folder: Path, field: str, labels: Sequence[str]) -> None:
    """Checks that the numbers of a `ClassLabel` are indices into the words `labels`.

    Raises:
      UserError: If it numbers one of the words, in whatever case, as another one.
    """
    names = class_names(folder, field)
    places: dict[str, set[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(folded(name), set()).add(place)
    for place, word in enumerate(labels if names else ()):
        known = {names.index(word)} if word in names else places.get(folded(word), {place})
        if place not in known:
            raise UserError(
                f"{folder}: its {field!r} numbers {', '.join(names)} from 0, not "
                f"{', '.join(labels)}"
            )


def folded(name: str) -> str:
    """A class's name without what names of the same class may differ in."""
    return composed(name).strip().casefold()


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from error
