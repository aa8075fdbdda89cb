"""Rows of GLUE and SuperGLUE as their sites write them, with TensorFlow Datasets' fields."""

import dataclasses
from pathlib import Path

from prompt_tuning.data.readers import records
from prompt_tuning.data.readers.local_files import (
    Fields,
    LocalFiles,
    checked_row,
    file_of,
    subfolder,
)
from prompt_tuning.data.readers.records import BadRows
from prompt_tuning.errors import UserError


def boolq_row(row: Fields, _: str) -> Fields:
    # SuperGLUE's passages begin with the title, which BoolQ has in a field of its own.
    title = row.pop("title", None)
    return row if title is None else row | {"passage": f"{title} -- {row['passage']}"}


def multirc_answers(fields: Fields) -> list[Fields]:
    """The answers to all questions on one of SuperGLUE's passages."""
    if "passage" not in fields:
        return [fields]
    passage = fields["passage"]
    return [
        {
            "paragraph": passage["text"],
            "question": question["question"],
            "answer": answer["text"],
            "pid": fields["idx"],
            "qid": question["idx"],
            "aid": answer["idx"],
            **{name: answer[name] for name in ("label",) if name in answer},
        }
        for question in passage["questions"]
        for answer in question["answers"]
    ]


def multirc_rows(rows: list[Fields], path: Path) -> list[Fields]:
    has_texts = ["paragraph" in row for row in rows]
    texts = {} if all(has_texts) else _multirc_texts(rows, path)
    parts = {"paragraph": "pid", "question": "qid", "answer": "aid"}
    return [
        row
        | {
            "paragraph": row.get("paragraph") or texts[row["pid"]],
            "idx": {part: row[number] for part, number in parts.items()},
        }
        for row in rows
    ]


def _multirc_texts(rows: list[Fields], path: Path) -> dict[int, str]:
    split = path.name.split(".")[0]
    passages = file_of(path.parent, (f"passages_{split}",))
    if passages is None:
        raise UserError(f"{path}: needs passages_{split}.jsonl in the same folder")
    columns = {"idx": int, "text": str}
    rows_read = records.read(
        passages, lambda fields, where: checked_row(fields, columns, where), BadRows()
    )
    texts = {passage["idx"]: passage["text"] for passage in rows_read}
    if missing := {row["pid"] for row in rows} - set(texts):
        raise UserError(f"{passages}: no passage {min(missing)}, which {path.name} refers to")
    return texts


def record_queries(fields: Fields) -> list[Fields]:
    """The queries on one of SuperGLUE's passages, with their entities and answers as sets."""
    if "qas" not in fields:
        return [fields]
    text = fields["passage"]["text"]
    spans = fields["passage"]["entities"]
    entities = sorted({text[span["start"] : span["end"] + 1] for span in spans})
    return [
        {
            "passage": text,
            "query": query["query"],
            "entities": entities,
            "answers": sorted({answer["text"] for answer in query.get("answers", ())}),
        }
        for query in fields["qas"]
    ]


def record_rows(rows: list[Fields], _: Path) -> list[Fields]:
    return [row | {"idx": {"passage": row["idx"], "query": row["idx"]}} for row in rows]


def wsc_spans(fields: Fields) -> list[Fields]:
    """A row of SuperGLUE, whose spans are in an object."""
    return [fields | fields.get("target", {})]


def wsc_row(row: Fields, where: str) -> Fields:
    spans = {f"{span}_text": _as_in_text(row, span) for span in ("span1", "span2")}
    if not spans["span1_text"] or spans["span2_text"] not in row["text"]:
        raise UserError(f"{where}: its spans are not in its text")
    return row | spans


def _as_in_text(row: Fields, span: str) -> str:
    """A span spelled as in the text, as TensorFlow Datasets' `wsc.fixed` corrects it."""
    words, text = row[f"{span}_text"], row["text"]
    at_index = text.split()[row[f"{span}_index"] :][:1]
    if words in text or not at_index:
        return words
    first = at_index[0][0]
    case = str.lower if first.islower() else str.upper
    return (case(words[0]) + words[1:]).rstrip(".").replace("\n", " ")


@dataclasses.dataclass(frozen=True)
class MrpcFiles(LocalFiles):
    """MRPC as its source distributes it, where GLUE's `dev_ids.tsv` names the validation rows."""

    def paths(self, root: Path) -> dict[str, Path]:
        folder = subfolder(root, self.folder)
        train, test = (folder / f"msr_paraphrase_{split}.txt" for split in ("train", "test"))
        paths = {"train": train, "validation": train, "test": test}
        return {split: path for split, path in paths.items() if path.is_file()}

    def rows(self, split: str, path: Path, bad_rows: BadRows) -> list[Fields]:
        rows = super().rows(split, path, bad_rows)
        if split == "test":
            return rows
        names = ("id1", "id2")
        ids = set(
            records.read(
                path.with_name("dev_ids.tsv"),
                lambda fields, _: tuple(fields[name] for name in names),
                BadRows(),
                columns=names,
            )
        )
        chosen = [
            row
            for row in rows
            if (tuple(row[name] for name in names) in ids) == (split == "validation")
        ]
        return [row | {"idx": number} for number, row in enumerate(chosen)]
