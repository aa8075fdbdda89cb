"""Model tuning: every leaf is trained, as in pre-training."""

import dataclasses

from prompt_tuning.methods.base import Method


@dataclasses.dataclass(frozen=True)
class ModelTuning(Method):
    """Adds nothing and trains every leaf of the backbone."""

    def trains(self, path: str, added: bool) -> bool:
        return True
