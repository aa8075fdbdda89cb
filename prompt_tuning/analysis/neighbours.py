"""python -m prompt_tuning.analysis.neighbours: lists the words nearest to a trained prompt.

Lester et al. 2021, section 7: the tokens nearest to a prompt vector by cosine form clusters of
similar words, and class labels that a prompt was initialised from stay near.
"""

import ast
import collections
import dataclasses
import functools
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
from absl import flags

from prompt_tuning.analysis import sources
from prompt_tuning.analysis.similarity import units
from prompt_tuning.checkpoint import backbone, card, prompts
from prompt_tuning.cli import plain_command
from prompt_tuning.errors import UserError
from prompt_tuning.runtime import files
from prompt_tuning.transformer.paths import EMBEDDING
from prompt_tuning.transformer.vocabulary import SentencePiece, check_size

COUNT = 5  # the paper's
_STEM_LETTERS, _STEM_SHARE = 3, 0.6  # least length of a common stem, and share of the longer word
_PAIRS, _QUANTILE = 20_000, 0.999


def nearest(
    prompt: np.ndarray, table: np.ndarray, count: int = COUNT, leave_out: Collection[int] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the rows of `table` [V, D] with the highest cosine to each prompt vector [P, D].

    Args:
      prompt, table: arrays of floats.
      count: neighbours per vector.
      leave_out: rows that cannot be neighbours.

    Returns:
      Row numbers and cosines, both [P, count], highest first; the cosine to a zero vector is 0.

    Raises:
      UserError: if the widths differ, or fewer than `count` rows can be neighbours.
    """
    if prompt.shape[1] != table.shape[1]:
        raise UserError(
            f"--backbone: its embeddings are {table.shape[1]} wide, the prompt {prompt.shape[1]}; "
            "give the backbone that the prompt was trained on"
        )
    rows = np.setdiff1d(np.arange(len(table)), np.fromiter(leave_out, int))
    if count > len(rows):
        raise UserError(f"{count} neighbours of each vector: there are only {len(rows)} tokens")
    cosines = units(prompt.astype(np.float32)) @ units(table.astype(np.float32))[rows].T
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
    return rows[order], np.take_along_axis(cosines, order, axis=1)


def share_stem(a: str, b: str) -> bool:
    """Whether two pieces have a common stem, ignoring case: "▁Technology" and "technologies".

    A stem has at least 3 letters and 60 % of the longer piece; shorter pieces must be equal.
    """
    a, b = (piece.removeprefix("▁").lower() for piece in (a, b))
    common = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    letters = min(len(a), len(b)) if common is None else common
    return a == b or letters >= max(_STEM_LETTERS, _STEM_SHARE * max(len(a), len(b)))


def chance_cosine(table: np.ndarray, quantile: float = _QUANTILE, seed: int = 0) -> float:
    """Quantile of the cosine between random pairs of rows [V, D]."""
    left, right = np.random.default_rng(seed).integers(len(table), size=(2, _PAIRS))
    pairs = left != right
    cosines = np.sum(units(table[left[pairs]]) * units(table[right[pairs]]), axis=-1)
    return float(np.quantile(cosines, quantile))


def clusters(
    ids: Sequence[int], table: np.ndarray, pieces: Sequence[str], near: float
) -> list[tuple[int, ...]]:
    """Groups a vector's neighbours into clusters of two or more, the largest first.

    Two neighbours are linked if their pieces share a stem, or the cosine of their rows of `table`
    [V, D] is at least `near`. A cluster is a connected component of these links.
    """
    rows = units(table[list(ids)].astype(np.float32))
    similar = rows @ rows.T >= near
    groups: list[set[int]] = []
    for i in range(len(ids)):
        linked = {i} | {
            j for j in range(i) if similar[i, j] or share_stem(pieces[ids[i]], pieces[ids[j]])
        }
        joined = [group for group in groups if group & linked]
        groups = [group for group in groups if not group & linked] + [linked.union(*joined)]
    clusters = [tuple(ids[i] for i in sorted(group)) for group in groups if len(group) > 1]
    return sorted(clusters, key=len, reverse=True)


def mean_cosine(ids: np.ndarray, table: np.ndarray) -> float:
    """Mean cosine between two neighbours of a vector; ids [P, k] are rows of `table` [V, D]."""
    rows = units(table[ids].astype(np.float32))
    pairs = np.einsum("pid,pjd->pij", rows, rows)[:, *np.triu_indices(ids.shape[1], 1)]
    return float(pairs.mean())


def duplicates(ids: np.ndarray) -> dict[int, tuple[int, ...]]:
    """Positions with a common nearest token, by token; ids are [P, k]. Most positions first."""
    positions = collections.defaultdict(list)
    for position, token in enumerate(ids[:, 0].tolist()):
        positions[token].append(position)
    shared = {token: tuple(places) for token, places in positions.items() if len(places) > 1}
    return dict(sorted(shared.items(), key=lambda item: -len(item[1])))


@dataclasses.dataclass(frozen=True)
class Persistence:
    """Where a class label's pieces are near after training.

    Attributes:
      label: text of the label.
      position: position of the vector that `ClassLabels` initialises from the label.
      kept: pieces of the label among that vector's neighbours.
      positions: positions of all vectors with one of the pieces among their neighbours.
    """

    label: str
    position: int
    kept: tuple[int, ...]
    positions: tuple[int, ...]


def persistence(ids: np.ndarray, labels: Mapping[str, Sequence[int]]) -> list[Persistence]:
    """Finds class labels among the neighbours ids [P, k]; label i initialises vector i.

    Args:
      ids: neighbours of each vector.
      labels: pieces of each label, in the order of the task; labels beyond P have no vector.
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
    """The tokens of a backbone.

    Attributes:
      table: embeddings [V, D].
      pieces: text of each row; its number where the vocabulary has no piece.
      leave_out: rows that cannot be neighbours: unused ones, sentinels, special tokens.
    """

    table: np.ndarray
    pieces: Sequence[str]
    leave_out: Collection[int]

    @classmethod
    def of(cls, table: np.ndarray, vocabulary: SentencePiece, all_rows: bool = False) -> "Words":
        """The tokens of a vocabulary; with `all_rows`, every row can be a neighbour."""
        rows, pieces = range(len(table)), vocabulary.pieces
        leave_out = frozenset() if all_rows else frozenset(rows) - frozenset(vocabulary.words)
        return cls(table, [*pieces, *map(str, rows[len(pieces) :])], leave_out)

    @functools.cached_property
    def near(self) -> float:
        """`chance_cosine` of the rows that can be neighbours."""
        return chance_cosine(np.delete(self.table, list(self.leave_out), axis=0))

    def named(self, tokens: Iterable[int]) -> list[str]:
        return [self.pieces[token] for token in tokens]


def content(
    prompt: np.ndarray, words: Words, labels: Mapping[str, Sequence[int]] = {}, count: int = COUNT
) -> dict[str, Any]:
    """Analyses a prompt; the content of `--json`, with tokens by their pieces.

    Args:
      prompt: prompt [P, D].
      words: tokens of its backbone.
      labels: pieces of each class label, as for `persistence`.
      count: neighbours per vector.

    Raises:
      UserError: as `nearest`.
    """
    ids, cosines = nearest(prompt, words.table, count, words.leave_out)
    chance = np.random.default_rng(0).normal(size=prompt.shape)
    random_ids, _ = nearest(chance, words.table, count, words.leave_out)
    groups, random_groups = (
        [clusters(row, words.table, words.pieces, words.near) for row in rows.tolist()]
        for rows in (ids, random_ids)
    )
    return {
        "neighbours": [
            {
                "position": position,
                "tokens": words.named(ids[position]),
                "cosines": [round(float(cosine), 4) for cosine in cosines[position]],
                "clusters": [words.named(cluster) for cluster in groups[position]],
            }
            for position in range(len(ids))
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
                "label": label.label,
                "pieces": words.named(labels[label.label]),
                "position": label.position,
                "own": words.named(label.kept),
                "positions": list(label.positions),
            }
            for label in persistence(ids, labels)
        ],
    }


def lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Formats `content` as text: one line per vector, then the statistics."""
    yield "nearest tokens by cosine; clusters in braces:"
    for row in report["neighbours"]:
        pairs = zip(row["tokens"], row["cosines"], strict=True)
        groups = "".join(f"  {{{' / '.join(group)}}}" for group in row["clusters"])
        tokens = ", ".join(f"{token} {cosine:.3f}" for token, cosine in pairs)
        yield f"  {row['position']}: {tokens}{groups}"
    yield (
        f"vectors with a cluster: {report['clustered']} of {len(report['neighbours'])}; of random "
        f"vectors {report['clustered_of_random_vectors']} (a common stem, or a cosine of at least "
        f"{report['cluster_cosine']:.3f}, as one random pair of tokens in a thousand has)"
    )
    yield (
        "mean cosine between two neighbours of a vector: "
        f"{report['mean_cosine_of_neighbours']:.3f}; of random vectors "
        f"{report['mean_cosine_of_random_vectors_neighbours']:.3f}"
    )
    yield f"tokens that are nearest to two or more vectors: {len(report['duplicates'])}"
    for row in report["duplicates"]:
        yield f"  {row['token']}: {', '.join(map(str, row['positions']))}"
    if report["labels"]:
        yield (
            "class labels among the neighbours; label n initialised vector n, if labels were used:"
        )
    for row in report["labels"]:
        kept = " ".join(row["own"]) or "none"
        positions = ", ".join(map(str, row["positions"])) or "none"
        yield (
            f"  {row['label']} ({' '.join(row['pieces'])}): of vector {row['position']}: {kept}; "
            f"vectors that have any: {positions}"
        )


def summary(reports: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Formats one line per prompt; `reports` are `content` by name."""
    width = max(map(len, reports))
    yield f"{'prompt':{width}}  clustered (random)  cosine (random)  shared tokens  labels kept"
    for name, report in reports.items():
        clustered = f"{report['clustered']} ({report['clustered_of_random_vectors']})"
        cosine = (
            f"{report['mean_cosine_of_neighbours']:.3f} "
            f"({report['mean_cosine_of_random_vectors_neighbours']:.3f})"
        )
        labels, shared = report["labels"], len(report["duplicates"])
        kept = f"{sum(bool(row['own']) for row in labels)} of {len(labels)}"
        yield f"{name:{width}}  {clustered:>18}  {cosine:>15}  {shared:13}  {kept}"


def check_backbone(
    prompt_card: card.Card | None,
    path: str,
    backbone_path: str,
    rows: int,
    vocabulary: SentencePiece | None,
) -> None:
    """Checks that words near a prompt mean something; warns of a backbone at another path.

    Args:
      prompt_card: card of the prompt; None if it has none.
      path: path of the prompt.
      backbone_path: path of the backbone.
      rows: rows of its embedding.
      vocabulary: vocabulary that names them; None for their numbers.

    Raises:
      CheckpointError: if the prompt was trained with another vocabulary.
      UserError: if the vocabulary has more pieces than the backbone has rows.
    """
    card.warn_of_backbone(prompt_card, path, backbone_path, "--backbone")
    if vocabulary is not None:
        saved = prompt_card.trained_with if prompt_card else None
        pieces = vocabulary.fingerprint
        card.check_model(saved, path, vocabulary=pieces, advice="as --vocabulary")
        check_size(vocabulary.size, rows)


def _words_of(initialisation: str, path: str) -> Sequence[str]:
    """Label words that a `ClassLabels` was given; () for those of its task, and for others."""
    if not initialisation.startswith("ClassLabels("):
        return ()
    try:
        call = cast(ast.Call, ast.parse(initialisation, mode="eval").body)
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        return ast.literal_eval(given["labels"])
    except (SyntaxError, ValueError, AttributeError, KeyError) as error:
        raise UserError(
            f"{path}: its card has an initialisation whose labels cannot be read: "
            f"{initialisation!r}; mend or remove the card"
        ) from error


def check_order(labels: Sequence[str], prompt_card: card.Card | None, path: str) -> None:
    """Checks that labels are at the places of the training, whose order initialised vectors.

    Warns of labels that the training did not have.

    Raises:
      UserError: names the order of the training.
    """
    trained = prompt_card.trained_with if prompt_card else None
    if prompt_card is None or trained is None:
        return
    words = _words_of(prompt_card.initialisation, path) or trained.labels
    places = {word: place for place, word in enumerate(words)}
    if any(places.get(label, place) != place for place, label in enumerate(labels)):
        raise UserError(
            f"--labels={','.join(labels)}: {path} was trained on {','.join(words)}; "
            "label n initialised vector n: give them in this order"
        )
    if words and (others := [label for label in labels if label not in places]):
        warnings.warn(
            f"--labels has {', '.join(others)}, which initialised no vector of {path}; those that "
            f"did are {', '.join(words)}",
            stacklevel=2,
        )


def analyse(
    paths: Mapping[str, str],
    vocabulary: SentencePiece,
    labels: Sequence[str] = (),
    backbone_path: str | None = None,
    count: int = COUNT,
    all_rows: bool = False,
) -> dict[str, dict[str, Any]]:
    """Analyses several prompts; `content` by name, with path and initialisation.

    Args:
      paths: prompt files by name.
      vocabulary: vocabulary of the backbone.
      labels: class labels of the task, in the order in which they initialised vectors.
      backbone_path: backbone of all prompts; None for the one on each prompt's card.
      count: neighbours per vector.
      all_rows: whether sentinels, special tokens and unused rows can be neighbours.

    Raises:
      UserError: if a prompt has no card and no backbone is given, or as `nearest`, `check_order`
        and `check_backbone`.
      CheckpointError: as `check_backbone`.
    """
    encoded = {label: vocabulary.encode(label) for label in labels}

    @functools.cache
    def words_of(path: str) -> Words:
        return Words.of(backbone.load_leaf(path, EMBEDDING), vocabulary, all_rows)

    reports = {}
    for name, path in paths.items():
        prompt_card = card.read(path)
        check_order(labels, prompt_card, path)
        weights = backbone_path or (prompt_card.backbone if prompt_card else "")
        if not weights:
            raise UserError(f"{path}: no card names its backbone; set --backbone")
        words = words_of(weights)
        check_backbone(prompt_card, path, weights, len(words.table), vocabulary)
        report = content(prompts.load(path), words, encoded, count)
        initialisation = prompt_card.initialisation if prompt_card else None
        reports[name] = {"path": path, "initialisation": initialisation, **report}
    return reports


def main(
    *,
    patterns: Sequence[str] | None,
    experiment: str | None,
    where: Sequence[str],
    vocabulary: str,
    json: str | None,
    **settings: Any,
) -> None:
    paths = sources.selected(patterns, experiment, where)
    reports = analyse(paths, SentencePiece(vocabulary), **settings)
    for name, report in reports.items():
        print(f"{name}, initialised from {report['initialisation'] or 'unknown (no card)'}")
        print("\n".join(lines(report)), end="\n\n")
    print("\n".join(summary(reports)))
    if json:
        files.write_json(json, reports)


def define_flags() -> plain_command.Flags:
    return sources.define_flags() | {
        "backbone_path": flags.DEFINE_string(
            "backbone", None, "Backbone of the prompts, if not that of their cards."
        ),
        "vocabulary": flags.DEFINE_string(
            "vocabulary", None, "The backbone's SentencePiece model.", required=True
        ),
        "labels": flags.DEFINE_list(
            "labels", [], "The task's label words, in the order of their vectors."
        ),
        "count": flags.DEFINE_integer("count", COUNT, "Neighbours of each vector.", 2),
        "all_rows": flags.DEFINE_bool(
            "all_rows", False, "Include sentinels, special tokens and unused rows."
        ),
        "json": flags.DEFINE_string("json", None, "File to write the reports to."),
    }


if __name__ == "__main__":
    plain_command.main(main, define_flags)
