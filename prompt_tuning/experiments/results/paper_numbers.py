"""Numbers printed in Lester et al., 2021 (arXiv 2104.08691), in per cent, of T5 v1.1 XXL."""

import dataclasses
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Printed:
    """A table of the paper.

    Attributes:
      source: Number and content of the table.
      rows: Values by the names of our axes, and the printed numbers by task.
    """

    source: str
    rows: Sequence[tuple[Mapping[str, str], Mapping[str, str]]]


_SHIFT_QA = {
    "squad": ("94.9 ± 0.2", "94.8 ± 0.1"),
    "textbook_qa": ("54.3 ± 3.7", "66.8 ± 2.9"),
    "bio_asq": ("77.9 ± 0.4", "79.1 ± 0.3"),
    "race": ("59.8 ± 0.6", "60.7 ± 0.5"),
    "relation_extraction": ("88.4 ± 0.1", "88.8 ± 0.2"),
    "duo_rc": ("68.9 ± 0.7", "67.7 ± 1.1"),
    "drop": ("68.9 ± 1.7", "67.1 ± 1.9"),
}
_ENSEMBLE = {  # average, best, ensemble
    "boolq": ("91.1", "91.3", "91.7"),
    "cb": ("99.3", "100", "100"),
    "copa": ("98.8", "100", "100"),
    "multirc": ("88.7", "89.0", "89.4"),
    "record": ("93.4", "93.5", "93.9"),
    "rte": ("92.6", "93.5", "93.5"),
    "wic": ("76.2", "76.6", "77.4"),
    "wsc": ("95.8", "96.2", "96.2"),
    "mean": ("90.5", "91.0", "91.3"),  # over tasks
}
_METHODS = ("model_tuning", "prompt_tuning")

PRINTED: Mapping[str, Printed] = {
    "domain_shift_qa": Printed(
        "table 1: F1, trained on SQuAD",
        [
            ({"method": method}, {task: both[i] for task, both in _SHIFT_QA.items()})
            for i, method in enumerate(_METHODS)
        ],
    ),
    "domain_shift_paraphrase": Printed(
        "table 2: F1 / accuracy",
        [
            ({"source": "qqp", "method": "model_tuning"}, {"mrpc": "81.2 / 73.1"}),
            ({"source": "qqp", "method": "prompt_tuning"}, {"mrpc": "84.3 / 76.3"}),
            ({"source": "mrpc", "method": "model_tuning"}, {"qqp": "70.9 / 74.9"}),
            ({"source": "mrpc", "method": "prompt_tuning"}, {"qqp": "69.7 / 75.4"}),
        ],
    ),
    "ensembles": Printed(
        "table 3: five prompts per task; CB accuracy, MultiRC F1a, ReCoRD F1",
        [
            ({"prompts": prompts}, {task: three[i] for task, three in _ENSEMBLE.items()})
            for i, prompts in enumerate(("average", "best", "ensemble"))
        ],
    ),
}
