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

    def embedded(
        self, x: Array, segments: Array, positions: Array | None
    ) -> tuple[Array, Array, Array | None]:
        """Acts on the encoder's embedded input, before its dropout.

        Args:
          x: [B, T, D] embedded tokens.
          segments: [B, T] int32, 0 at padding; 1 at real tokens, or 1, 2, ... for the examples
            packed into a row.
          positions: [B, T] int32 within each example of a packed batch; None if it is not packed.

        Returns:
          The three for T' positions; attention and relative positions run over these.
        """
        return x, segments, positions
