"""T5's text-to-text format of GLUE and SuperGLUE, without the name of the task in front.

As in Raffel et al., 2020 (arXiv 1910.10683), section 2.4 and appendix D, a field is written as its
name, a colon and its text. The name of the task is omitted as in Lester et al., 2021 (arXiv
2104.08691), section 3.

Each function is a SeqIO preprocessor of examples with TensorFlow Datasets' field names.
"""

from collections.abc import Mapping, Sequence

from prompt_tuning.data.quiet import seqio, tf
from prompt_tuning.data.tasks import TfExample

HIDDEN = "<unk>"  # the target of an example whose label is not public
HIDDEN_LABEL = -1  # the label of such an example in TensorFlow Datasets


@seqio.map_over_dataset
def classification(
    example: TfExample,
    fields: Sequence[str],
    labels: Sequence[str],
    keys: Mapping[str, str] | None = None,
) -> TfExample:
    """Writes `fields` in this order; the target is the label's word.

    T5 sorts the fields by name, except for MultiRC and WiC.

    Args:
      example: The fields, "label" and "idx".
      fields: Names of the fields, as they are written.
      labels: Words in the order of the labels' numbers.
      keys: Names under which fields are read, where they differ.
    """
    texts = {name: example[(keys or {}).get(name, name)] for name in fields}
    return {
        "inputs": _join(texts),
        "targets": _word(example["label"], labels),
        "idx": example["idx"],
    }


@seqio.map_over_dataset
def multirc(example: TfExample, labels: Sequence[str]) -> TfExample:
    """MultiRC: whether an answer to a question is correct; removes the paragraphs' HTML."""
    texts = {name: example[name] for name in ("question", "answer", "paragraph")}
    text = tf.strings.regex_replace(_join(texts), "<br>", " ")
    return {
        "inputs": tf.strings.regex_replace(text, "</?b>", ""),
        "targets": _word(example["label"], labels),
        **{f"idx/{name}": number for name, number in example["idx"].items()},
    }


@seqio.map_over_dataset
def similarity(example: TfExample) -> TfExample:
    """STS-B: the score from 0 to 5 in words, to the nearest 0.2."""
    texts = {name: example[name] for name in ("sentence1", "sentence2")}
    return {
        "inputs": _join(texts),
        "targets": tf.strings.as_string(tf.round(example["label"] * 5) / 5, precision=1),
        "idx": example["idx"],
    }


def record(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """ReCoRD: one example per correct answer, with all of them in "answers".

    Questions with several answers are repeated in evaluation as well, since a preprocessor does not
    know its split; the metrics count them once.
    """
    return _record_answers(dataset).unbatch()


@seqio.map_over_dataset
def _record_answers(example: TfExample) -> TfExample:
    # The highlights of an article are separate sentences, mostly without a full stop.
    passage = tf.strings.regex_replace(example["passage"], r"([.?!\"'])\n@highlight\n", r"\1 ")
    texts = {
        "query": example["query"],
        "entities": tf.strings.reduce_join(example["entities"], separator=", "),
        "passage": tf.strings.regex_replace(passage, r"\n@highlight\n", ". "),
    }
    answers = example["answers"]
    count = tf.maximum(tf.size(answers), 1)
    return {
        "inputs": tf.fill([count], _join(texts)),
        "targets": tf.concat([answers, [HIDDEN]], axis=0)[:count],
        "answers": tf.tile(answers[tf.newaxis], [count, 1]),
        **{f"idx/{name}": tf.fill([count], number) for name, number in example["idx"].items()},
    }


def wsc(dataset: tf.data.Dataset, true_only: bool = False) -> tf.data.Dataset:
    """WSC as generation: stars mark the pronoun in the inputs; the target is what it refers to.

    The target is the example's noun, correct or not, so training must leave out the wrong ones
    (section 2.4 of T5's paper).

    Args:
      dataset: SuperGLUE's examples.
      true_only: Whether to keep only examples whose noun is what the pronoun refers to.
    """
    if true_only:
        dataset = dataset.filter(_is_true)
    return _wsc_example(dataset)


def _is_true(example: TfExample) -> tf.Tensor:
    return tf.equal(example["label"], 1)


@seqio.map_over_dataset
def _wsc_example(example: TfExample) -> TfExample:
    return {
        "inputs": _mark(example["text"], example["span2_text"], example["span2_index"]),
        "targets": example["span1_text"],
        "label": example["label"],
        "idx": example["idx"],
    }


def _mark(text: tf.Tensor, pronoun: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """Puts stars around the pronoun, and a space before punctuation attached to it."""
    words = tf.strings.split(tf.strings.strip(text), sep=" ")
    # In a few rows the index is off by one, or punctuation is attached to the word.
    places = tf.where(tf.equal(_bare(words), _bare(pronoun)))[:, 0]
    place = places[tf.argmin(tf.abs(places - tf.cast(index, tf.int64)))]
    around = r"^([[:punct:]]*)(.*?)([[:punct:]]*)$"
    marked = tf.strings.strip(tf.strings.regex_replace(words[place], around, r"\1*\2* \3"))
    parts = tf.concat([words[:place], marked[tf.newaxis], words[place + 1 :]], axis=0)
    return tf.strings.reduce_join(parts, separator=" ")


def _bare(words: tf.Tensor) -> tf.Tensor:
    return tf.strings.regex_replace(words, r"^[[:punct:]]+|[[:punct:]]+$", "")


def _join(texts: Mapping[str, tf.Tensor]) -> tf.Tensor:
    parts = [part for name, text in texts.items() for part in (f"{name}:", text)]
    return tf.strings.join(parts, separator=" ")


def _word(label: tf.Tensor, labels: Sequence[str]) -> tf.Tensor:
    return tf.gather([HIDDEN, *labels], label - HIDDEN_LABEL)
