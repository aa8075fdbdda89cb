"""Requests as rows for the device, and the device's arrays as answers."""

import dataclasses
import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from prompt_tuning.checkpoint import trained_data
from prompt_tuning.data import label_words
from prompt_tuning.errors import UserError
from prompt_tuning.server.device import Device, Input, Kind, generation_arrays, label_sizes
from prompt_tuning.server.scheduler import Row
from prompt_tuning.server.tasks import Served, label_tokens
from prompt_tuning.serving import bank
from prompt_tuning.serving.answers import Classification, Generation
from prompt_tuning.serving.model import MAX_TOKENS
from prompt_tuning.serving.task_set import checked_labels, checked_texts
from prompt_tuning.serving.texts import Encoded, encoded
from prompt_tuning.transformer.vocabulary import EOS, Vocabulary, byte_of, check_ids

Arrays = Sequence[tuple[np.ndarray, ...]]


class TooLong(UserError):
    """A text has more tokens than the task's inputs."""


class BadField(UserError):
    """A field of a request is wrong.

    Attributes:
      field: Its name.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclasses.dataclass(frozen=True)
class Warned:
    """What may make an answer another one than its caller expects.

    Attributes:
      code: "truncated", "empty", "unknown_characters", "untrained_labels" or "stop_not_written".
      message: One line.
      index: Number of the text; None if it is about all of them.
    """

    code: str
    message: str
    index: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
    """The rows of texts of one task, and how their results become answers.

    Attributes:
      rows: One for each text and prompt of the task, those of a text one after another.
      answers: Function from the arrays of all rows to an answer for each text.
      tokens: Number of tokens of all texts, end tokens included.
      soft_tokens: Number of prompt vectors in front of them, over all prompts.
      warnings: What the caller should know.
    """

    rows: list[tuple[Row, Input]]
    answers: Callable[[Arrays], list[Any]]
    tokens: int
    soft_tokens: int
    warnings: tuple[Warned, ...] = ()


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a text is generated.

    Attributes:
      max_tokens: Most tokens of the text; None for 32, or the server's maximum if that is less.
      temperature: 0 for the most likely token at each step.
      top_k, top_p: As in `Sampling`.
      seed: From 0 to 2^32 - 1; None for a fresh one for each text.
      stop: Texts in front of which the answer ends.
      alternatives: Number of the most likely tokens of each step that are wanted; None if the
        tokens are not.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    alternatives: int | None = None


@dataclasses.dataclass(frozen=True)
class Token:
    r"""A generated token.

    Attributes:
      text: What it adds to the text, or "bytes:\xe4" for a byte that is no character by itself.
      log_p: Its log p.
      top: Log p of the most likely tokens of its step, by their texts in their order. Of those with
        one text the most likely counts, but under the token's own text its own log p.
      offset: Number of characters of the answer in front of it.
    """

    text: str
    log_p: float
    top: dict[str, float]
    offset: int


@dataclasses.dataclass(frozen=True)
class Completion:
    """A generated text.

    Attributes:
      text: Without the stop text and what follows it.
      score: Log p of all tokens.
      tokens: Tokens of the text, without the end token and without those after a stop text; none
        unless they are wanted.
      generated: Number of tokens that the model made.
      finish_reason: "stop" at an end token or a stop text, otherwise "length".
    """

    text: str
    score: float
    tokens: tuple[Token, ...]
    generated: int
    finish_reason: str


class Questions:
    """Makes questions for a device's model."""

    def __init__(self, device: Device) -> None:
        self._model, self._device, self._shapes = device.model, device, device.shapes

    def classify(
        self, served: Served, texts: Sequence[str], truncate: bool, labels: Sequence[str] | None
    ) -> Question:
        """A label for each text, see `Classification`, and log p of each label by each prompt.

        Args:
          served, texts: Task and texts.
          truncate: Whether longer texts are cut.
          labels: Words in place of the task's labels; None for those.

        Raises:
          UserError: if the task has no labels, or there is no program for these.
        """
        if labels is None:
            words, targets = served.labels, served.targets
            if targets is None:
                raise BadField(
                    "model",
                    f"model = {served.name!r}: has no labels; give labels, or use completions",
                )
        else:
            words = checked_labels(served.name, labels, self._model.vocabulary)
            if not words:
                raise BadField("labels", "labels = []: give at least one word")
            targets = label_tokens(words, served.prefix, self._model)
            check_ids(targets, self._model.config.vocab_size)
            if not self._device.has_labels(*targets.shape):
                raise BadField(
                    "labels",
                    f"labels: no program is for {targets.shape[0]} labels of {targets.shape[1]} "
                    "tokens; give at most as many and as long ones as a task has",
                )

        def answers(by_text: list[Arrays]) -> list[tuple[Classification, np.ndarray]]:
            found = []
            for rows in by_text:
                scores = np.stack([row[0][: len(words)] for row in rows])
                found.append((Classification.of(words, scores), _log_means(scores)))
            return found

        sizes = label_sizes(*targets.shape)
        arrays = [(targets,)] * len(texts)
        question = self._question(served, texts, truncate, "classify", sizes, arrays, answers)
        if reason := trained_data.untrained(words, served.trained_labels):
            warned = Warned("untrained_labels", f"model {served.name!r}: {reason}")
            return dataclasses.replace(question, warnings=(*question.warnings, warned))
        return question

    def embed(self, served: Served, texts: Sequence[str], truncate: bool) -> Question:
        """The mean state [D] of each text, over the prompts of the task."""

        def answers(by_text: list[Arrays]) -> list[np.ndarray]:
            return [np.mean([row[0] for row in rows], axis=0) for rows in by_text]

        return self._question(served, texts, truncate, "embed", (), [()] * len(texts), answers)

    def complete(
        self, served: Served, texts: Sequence[str], truncate: bool, settings: Settings
    ) -> Question:
        """A `Completion` for each text."""
        encode = self._model.vocabulary.encode
        lead = len(encode(served.prefix)) if served.prefix else 0
        most = self._shapes.lengths[-1] - lead
        wanted = min(MAX_TOKENS, most) if settings.max_tokens is None else settings.max_tokens
        if not 1 <= wanted <= most:
            message = f"max_tokens = {wanted}: this model generates at most {most}"
            raise BadField("max_tokens", message)
        limit = wanted + lead
        size = next(length for length in self._shapes.lengths if length >= limit)
        arrays = [
            generation_arrays(
                limit,
                secrets.randbits(32) if settings.seed is None else settings.seed,
                settings.temperature,
                settings.top_k,
                settings.top_p,
                bool(settings.alternatives),
            )
            for _ in texts
        ]

        def answers(by_text: list[Arrays]) -> list[Completion]:
            return [self._completion(served, rows, settings) for rows in by_text]

        question = self._question(served, texts, truncate, "generate", (size,), arrays, answers)
        unwritten = tuple(
            Warned(
                "stop_not_written",
                f"stop = {stop!r}: the vocabulary does not write it, so no text ends there",
            )
            for stop in settings.stop
            if not _writes(self._model.vocabulary, stop)
        )
        return dataclasses.replace(question, warnings=(*question.warnings, *unwritten))

    def _completion(self, served: Served, rows: Arrays, settings: Settings) -> Completion:
        """The text that most prompts of a task generate."""
        decode = self._model.vocabulary.decode

        def text_of(ids: Sequence[int]) -> str:
            return label_words.without_prefix(served.prefix, decode(list(ids)))

        tokens, scores, log_p, top_tokens, top_log_p = map(np.stack, zip(*rows, strict=True))
        texts = [_cut(text_of(row.tolist()), settings.stop) for row in tokens]
        best = Generation.of(texts, scores, tokens, log_p)
        chosen = list(zip(texts, scores.tolist(), strict=True)).index((best.text, best.score))
        ids, ended = best.tokens, best.tokens[-1:] == (EOS,)
        kept = len(ids) - ended
        if is_cut := len(best.text) < len(text_of(ids)):  # at a stop text
            while kept and len(text_of(ids[: kept - 1])) >= len(best.text):
                kept -= 1

        listed = []
        for i in range(kept if settings.alternatives is not None else 0):
            before = text_of(ids[:i])

            def text_of_token(token: int, i: int = i, before: str = before) -> str:
                byte = byte_of(self._model.vocabulary, token)
                if byte is not None and byte >= 0x80:
                    return f"bytes:\\x{byte:02x}"
                return text_of([*ids[:i], token])[len(before) :]

            name = text_of_token(ids[i])
            top: dict[str, float] = {}
            if settings.alternatives:
                tokens_of_step, values = top_tokens[chosen, i].tolist(), top_log_p[chosen, i]
                for token, value in zip(tokens_of_step, values.tolist(), strict=True):
                    text = text_of_token(token)
                    if text != name or token == ids[i]:
                        top.setdefault(text, value)
            offset = len(before.rstrip("\ufffd"))  # the bytes of an unfinished character
            listed.append(Token(name, best.token_scores[i], top, offset))
        reason = "stop" if ended or is_cut else "length"
        return Completion(best.text, best.score, tuple(listed), len(ids), reason)

    def _question(
        self,
        served: Served,
        texts: Sequence[str],
        truncate: bool,
        operation: str,
        sizes: tuple[int, ...],
        arrays: Sequence[tuple[np.ndarray, ...]],
        answers: Callable[[list[Arrays]], list[Any]],
    ) -> Question:
        inputs = [self._input(served, text, truncate) for text in checked_texts(texts, "input")]
        more = int(np.prod(sizes)) if operation == "classify" else sum(sizes)
        prompts = list(zip(served.slots, served.lengths, strict=True))
        rows = [
            (
                Row(
                    Kind(operation, bank.group(length), sizes),
                    served.key,
                    len(each.ids),
                    length,
                    more,
                ),
                Input(each.ids, slot, part),
            )
            for each, part in zip(inputs, arrays, strict=True)
            for slot, length in prompts
        ]
        count = len(prompts)

        def by_text(results: Arrays) -> list[Any]:
            groups = [results[i : i + count] for i in range(0, len(results), count)]
            return answers(groups)

        tokens = sum(len(each.ids) for each in inputs)
        soft_tokens = len(texts) * sum(served.lengths)
        return Question(rows, by_text, tokens, soft_tokens, tuple(_warned(inputs)))

    def _input(self, served: Served, text: str, truncate: bool) -> Encoded:
        read = encoded(self._model.vocabulary, text, served.input_length)
        if read.is_cut and not truncate:
            raise TooLong(
                f"a text of {read.whole} tokens: model {served.name!r} takes "
                f"{served.input_length}; shorten it, or set truncate to true"
            )
        check_ids(np.array(read.ids), self._model.config.vocab_size)
        return read


def _warned(inputs: Sequence[Encoded]) -> Iterator[Warned]:
    for i, each in enumerate(inputs):
        if each.is_cut:
            yield Warned("truncated", f"{each.whole} tokens were cut to {len(each.ids)}", i)
        if each.is_empty:
            yield Warned("empty", "the text is empty, so the answer says nothing of it", i)
        if not each.is_readable:
            yield Warned(
                "unknown_characters",
                "the vocabulary does not know most characters of the text, so the model cannot "
                "tell it from others",
                i,
            )


def _writes(vocabulary: Vocabulary, text: str) -> bool:
    """Whether a text may be part of what a vocabulary decodes."""
    contexts = (text, f"x{text}x")  # spaces at the ends of a text are lost
    return any(text in vocabulary.decode(vocabulary.encode(each)) for each in contexts)


def _log_means(scores: np.ndarray) -> np.ndarray:
    """Log of the mean p [K] of each label over the prompts, from log p [prompts, K]."""
    return np.logaddexp.reduce(scores.astype(np.float64), axis=0) - np.log(len(scores))


def _cut(text: str, stops: Sequence[str]) -> str:
    """A text up to the first of the stop texts."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else text
