"""The places where a tuning method may act on the backbone.

All that `t5` knows of tuning. The functions here are identities; a method (`prompt_tuning.methods`)
overrides those it acts at. They are called inside the backbone's compact methods, so a linen
submodule made in a site becomes a child of the calling module: a module named `prompt` made in
`embedded` has its parameters under `encoder/prompt/`.
"""

import dataclasses

from jax import Array


@dataclasses.dataclass(frozen=True)
class Sites:
    """Identity at every site: the plain backbone."""

    def embedded(self, x: Array, mask: Array) -> tuple[Array, Array]:
        """Acts on the encoder's embedded input, before its dropout.

        Args:
          x: [B, T, D] embedded tokens.
          mask: [B, T] bool, True at real tokens.

        Returns:
          [B, T', D] and its [B, T'] mask; attention and relative positions run over T'.
        """
        return x, mask
