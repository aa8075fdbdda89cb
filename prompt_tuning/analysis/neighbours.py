"""python -m prompt_tuning.analysis.neighbours: which words a trained prompt stands near.

Lester et al. 2021, section 7: the tokens nearest to a prompt vector by cosine form clusters of
like words, and class labels that a prompt started from stay near.
"""

import collections
import dataclasses
import functools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from prompt_tuning.analysis import sources
from prompt_tuning.analysis.similarity import units
from prompt_tuning.checkpoint import backbone, card, prompts
from prompt_tuning.cli import plain_command
from prompt_tuning.errors import UserError
from prompt_tuning.runtime import files
from prompt_tuning.t5.network import EMBEDDING
from prompt_tuning.t5.vocabulary import SentencePiece

COUNT = 5  # the paper's
_LETTERS, _SHARE = 3, 0.6  # of a common beginning, and of the longer word
_PAIRS, _QUANTILE = 20_000, 0.999


def nearest(
    prompt: np.ndarray, table: np.ndarray, count: int = COUNT, leave_out: Collection[int] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of `table` [V, D] of the highest cosine with each prompt vector [P, D].

    Args:
      prompt, table: of floats.
      count: neighbours a vector.
      leave_out: rows that are no neighbours.

    Returns:
      Their numbers and cosines, both [P, count], highest first; of a zero vector the cosine is 0.

    Raises:
      UserError: if the widths differ, or fewer than `count` rows are left.
    """
    if prompt.shape[1] != table.shape[1]:
        raise UserError(
            f"--backbone: its embeddings are {table.shape[1]} wide, the prompt {prompt.shape[1]}; "
            "give the backbone that the prompt was trained on"
        )
    rows = np.setdiff1d(np.arange(len(table)), np.fromiter(leave_out, int))
    if count > len(rows):
        raise UserError(f"{count} neighbours of each vector: there are {len(rows)} tokens")
    cosines = units(prompt.astype(np.float32)) @ units(table.astype(np.float32))[rows].T
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
    return rows[order], np.take_along_axis(cosines, order, axis=1)


def share_stem(a: str, b: str) -> bool:
    """Whether two pieces begin alike, whatever their case: "▁Technology" and "technologies".

    At least 3 letters, and 60 % of the longer one; shorter pieces must be the same.
    """
    a, b = (piece.removeprefix("▁").lower() for piece in (a, b))
    common = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    letters = min(len(a), len(b)) if common is None else common
    return a == b or letters >= max(_LETTERS, _SHARE * max(len(a), len(b)))


def chance_cosine(table: np.ndarray, quantile: float = _QUANTILE, seed: int = 0) -> float:
    """The cosine that of random pairs of rows [V, D] one in 1 / (1 - quantile) exceeds."""
    left, right = np.random.default_rng(seed).integers(len(table), size=(2, _PAIRS))
    pairs = left != right
    cosines = np.sum(units(table[left[pairs]]) * units(table[right[pairs]]), axis=-1)
    return float(np.quantile(cosines, quantile))


def clusters(
    ids: Sequence[int], table: np.ndarray, pieces: Sequence[str], near: float
) -> list[tuple[int, ...]]:
    """Groups of two or more of a vector's neighbours that hang together, the largest first.

    Two hang together if their pieces share a stem or the cosine of their rows of `table` [V, D] is
    at least `near`; a group is what such pairs connect.
    """
    rows = units(table[list(ids)].astype(np.float32))
    tied = rows @ rows.T >= near
    groups: list[set[int]] = []
    for i in range(len(ids)):
        own = {i} | {
            j for j in range(i) if tied[i, j] or share_stem(pieces[ids[i]], pieces[ids[j]])
        }
        joined = [group for group in groups if group & own]
        groups = [group for group in groups if not group & own] + [own.union(*joined)]
    found = [tuple(ids[i] for i in sorted(group)) for group in groups if len(group) > 1]
    return sorted(found, key=len, reverse=True)


def mean_cosine(ids: np.ndarray, table: np.ndarray) -> float:
    """Mean cosine between two neighbours of one vector: ids [P, k] of rows of `table` [V, D]."""
    rows = units(table[ids].astype(np.float32))
    pairs = np.einsum("pid,pjd->pij", rows, rows)[:, *np.triu_indices(ids.shape[1], 1)]
    return float(pairs.mean())


def duplicates(ids: np.ndarray) -> dict[int, tuple[int, ...]]:
    """Positions by the token that is nearest to all of them, ids [P, k]; the most first."""
    positions = collections.defaultdict(list)
    for position, token in enumerate(ids[:, 0].tolist()):
        positions[token].append(position)
    shared = {token: tuple(own) for token, own in positions.items() if len(own) > 1}
    return dict(sorted(shared.items(), key=lambda item: -len(item[1])))


@dataclasses.dataclass(frozen=True)
class Persistence:
    """Where a class label's pieces are found after training.

    Attributes:
      label: the text.
      position: of the vector that `ClassLabels` starts from it.
      own: its pieces among that vector's neighbours.
      positions: of all vectors that have one of its pieces among their neighbours.
    """

    label: str
    position: int
    own: tuple[int, ...]
    positions: tuple[int, ...]


def persistence(ids: np.ndarray, labels: Mapping[str, Sequence[int]]) -> list[Persistence]:
    """Which labels the neighbours ids [P, k] hold; label i started vector i.

    Args:
      ids: neighbours of each vector.
      labels: each label's pieces, in the order of the task's labels; those beyond P have no vector.
    """
    return [
        Persistence(
            label,
            position,
            tuple(piece for piece in pieces if piece in ids[position]),
            tuple(np.flatnonzero(np.isin(ids, pieces).any(axis=1)).tolist()),
        )
        for position, (label, pieces) in enumerate(labels.items())
        if position < len(ids)
    ]


@dataclasses.dataclass(frozen=True, eq=False)
class Words:
    """A backbone's tokens.

    Attributes:
      table: their embeddings [V, D].
      pieces: their texts; the number of a row that has none.
      leave_out: rows that are no neighbours: unused ones, sentinels, special tokens.
    """

    table: np.ndarray
    pieces: Sequence[str]
    leave_out: Collection[int]

    @classmethod
    def of(cls, table: np.ndarray, vocabulary: SentencePiece, all_rows: bool = False) -> "Words":
        """`all_rows` leaves out nothing."""
        rows, known = range(len(table)), vocabulary.pieces
        leave_out = frozenset() if all_rows else frozenset(rows) - frozenset(vocabulary.words)
        return cls(table, [*known, *map(str, rows[len(known) :])], leave_out)

    @functools.cached_property
    def near(self) -> float:
        """`chance_cosine` of the rows that can be neighbours."""
        return chance_cosine(np.delete(self.table, list(self.leave_out), axis=0))

    def named(self, tokens: Iterable[int]) -> list[str]:
        return [self.pieces[token] for token in tokens]


def content(
    prompt: np.ndarray, words: Words, labels: Mapping[str, Sequence[int]] = {}, count: int = COUNT
) -> dict[str, Any]:
    """All of a prompt's report, as `--json` writes it; tokens by their pieces.

    Args:
      prompt: [P, D].
      words: of its backbone.
      labels: as `persistence`.
      count: neighbours a vector.

    Raises:
      UserError: as `nearest`.
    """
    ids, cosines = nearest(prompt, words.table, count, words.leave_out)
    chance = np.random.default_rng(0).normal(size=prompt.shape)
    random_ids, _ = nearest(chance, words.table, count, words.leave_out)
    groups, random_groups = (
        [clusters(own, words.table, words.pieces, words.near) for own in of.tolist()]
        for of in (ids, random_ids)
    )
    return {
        "neighbours": [
            {
                "position": position,
                "tokens": words.named(ids[position]),
                "cosines": [round(float(cosine), 4) for cosine in cosines[position]],
                "clusters": [words.named(group) for group in own],
            }
            for position, own in enumerate(groups)
        ],
        "cluster_cosine": words.near,
        "clustered": sum(map(bool, groups)),
        "clustered_of_random_vectors": sum(map(bool, random_groups)),
        "mean_cosine_of_neighbours": mean_cosine(ids, words.table),
        "mean_cosine_of_random_vectors_neighbours": mean_cosine(random_ids, words.table),
        "duplicates": [
            {"token": words.pieces[token], "positions": list(positions)}
            for token, positions in duplicates(ids).items()
        ],
        "labels": [
            {
                "label": found.label,
                "pieces": words.named(labels[found.label]),
                "position": found.position,
                "own": words.named(found.own),
                "positions": list(found.positions),
            }
            for found in persistence(ids, labels)
        ],
    }


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """`content` as text, a line a vector and what is below."""
    yield "nearest tokens by cosine; in braces those that hang together:"
    for row in found["neighbours"]:
        near = zip(row["tokens"], row["cosines"], strict=True)
        groups = "".join(f"  {{{' / '.join(group)}}}" for group in row["clusters"])
        yield f"  {row['position']}: {', '.join(f'{t} {c:.3f}' for t, c in near)}{groups}"
    yield (
        f"vectors with a cluster: {found['clustered']} of {len(found['neighbours'])}; of random "
        f"vectors {found['clustered_of_random_vectors']} (one stem, or a cosine from "
        f"{found['cluster_cosine']:.3f}, as one random pair of tokens in a thousand has)"
    )
    yield (
        "mean cosine between two neighbours of a vector: "
        f"{found['mean_cosine_of_neighbours']:.3f}; of random vectors "
        f"{found['mean_cosine_of_random_vectors_neighbours']:.3f}"
    )
    yield f"tokens that are nearest to several vectors: {len(found['duplicates'])}"
    for row in found["duplicates"]:
        yield f"  {row['token']}: {', '.join(map(str, row['positions']))}"
    if found["labels"]:
        yield "class labels among the neighbours; vector n started from label n, if labels did:"
    for row in found["labels"]:
        own = " ".join(row["own"]) or "none"
        near_by = ", ".join(map(str, row["positions"])) or "none"
        yield (
            f"  {row['label']} ({' '.join(row['pieces'])}): of vector {row['position']}: {own}; "
            f"vectors that have any: {near_by}"
        )


def summary(found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A line for each of several prompts' `content`, by name."""
    width = max(map(len, found))
    yield f"{'prompt':{width}}  clustered (random)  cosine (random)  shared tokens  labels kept"
    for name, own in found.items():
        clustered = f"{own['clustered']} ({own['clustered_of_random_vectors']})"
        cosine = (
            f"{own['mean_cosine_of_neighbours']:.3f} "
            f"({own['mean_cosine_of_random_vectors_neighbours']:.3f})"
        )
        kept = f"{sum(bool(row['own']) for row in own['labels'])} of {len(own['labels'])}"
        yield f"{name:{width}}  {clustered:>18}  {cosine:>15}  {len(own['duplicates']):13}  {kept}"


def main() -> None:
    given = flags.FLAGS
    paths = sources.chosen()
    vocabulary = SentencePiece(given.vocabulary)
    labels = {label: vocabulary.encode(label) for label in given.labels}

    @functools.cache
    def words_of(path: str) -> Words:
        return Words.of(backbone.load_leaf(path, EMBEDDING), vocabulary, given.all_rows)

    found = {}
    for name, path in paths.items():
        about = card.read(path)
        weights = given.backbone or (about.backbone if about else "")
        if not weights:
            raise UserError(f"{path}: no card tells its backbone; set --backbone")
        own = content(prompts.load(path), words_of(weights), labels, given.count)
        start = about.initialisation if about else None
        found[name] = {"path": path, "initialisation": start, **own}
        print(f"{name}, started from {start or 'what no card tells'}")
        print("\n".join(lines(found[name])), end="\n\n")
    print("\n".join(summary(found)))
    if given.json:
        files.write_json(given.json, found)


if __name__ == "__main__":
    sources.define_flags()
    flags.DEFINE_string("backbone", None, "Backbone of the prompts, if not that of their cards.")
    flags.DEFINE_string("vocabulary", None, "The backbone's SentencePiece model.", required=True)
    flags.DEFINE_list("labels", [], "The task's label words, in the order they started vectors.")
    flags.DEFINE_integer("count", COUNT, "Neighbours of each vector.", 2)
    flags.DEFINE_bool("all_rows", False, "Count sentinels, special tokens and unused rows too.")
    flags.DEFINE_string("json", None, "File to write the reports to.")
    plain_command.run(main)
