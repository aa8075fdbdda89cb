"""Summarisation: XSum and CNN/DailyMail.

XSum is from Narayan et al., 2018 (arXiv 1808.08745), CNN/DailyMail from See et al., 2017 (arXiv
1704.04368). The names are those of the original code, except for CNN/DailyMail's version: v340,
which TensorFlow Datasets can still build, where older runs have v310.
"""

import functools

from prompt_tuning.data.catalogue import generation_metrics as metrics
from prompt_tuning.data.catalogue.text_task import TextTask
from prompt_tuning.data.quiet import seqio, tf
from prompt_tuning.data.readers.local_files import LocalFiles
from prompt_tuning.data.tasks import TfExample


@seqio.map_over_dataset
def summarize(example: TfExample, article: str, summary: str) -> TfExample:
    """T5's format, which the original code keeps: "summarize: " and the text.

    Args:
      example: Texts by field.
      article, summary: Names of the two fields.
    """
    return {
        "inputs": tf.strings.join(["summarize:", example[article]], separator=" "),
        "targets": example[summary],
    }


def _task(task: str, tfds_name: str, folder: str, article: str, summary: str) -> TextTask:
    return TextTask(
        task=task,
        tfds_name=tfds_name,
        format=functools.partial(summarize, article=article, summary=summary),
        metrics=(metrics.rouge, metrics.bleu),
        local=LocalFiles(
            folder, {article: str, summary: str}, {article: "document", summary: "summary"}
        ),
    )


TASKS = (
    _task("xsum_v110_examples", "xsum:1.1.0", "xsum", "document", "summary"),
    _task(
        "cnn_dailymail_v340_examples",
        "cnn_dailymail:3.4.0",
        "cnn_dailymail",
        "article",
        "highlights",
    ),
)
