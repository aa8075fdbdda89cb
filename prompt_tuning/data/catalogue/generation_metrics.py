"""Metrics of generated text, under T5's names, from 0 to 1."""

import statistics
from collections.abc import Sequence

import sacrebleu
from rouge_score import rouge_scorer

ROUGE = ("rouge1", "rouge2", "rougeLsum")


def rouge(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Mean F of ROUGE-1, ROUGE-2 and summary-level ROUGE-L, without stemming.

    Lin, 2004 (ACL W04-1013). As in T5, sentences end at " . " and at line breaks.
    """
    scorer = rouge_scorer.RougeScorer(ROUGE)
    scores = [
        scorer.score(_sentences(target), _sentences(prediction))
        for target, prediction in zip(targets, predictions, strict=True)
    ]
    return {name: statistics.fmean(score[name].fmeasure for score in scores) for name in ROUGE}


def bleu(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Corpus BLEU with one reference per prediction and the international tokenizer.

    Papineni et al., 2002 (ACL P02-1040).
    """
    score = sacrebleu.corpus_bleu(list(predictions), [list(targets)], tokenize="intl")
    return {"bleu": score.score / 100}


def _sentences(text: str) -> str:
    return text.replace(" . ", " .\n")
