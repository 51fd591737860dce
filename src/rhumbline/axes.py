"""Names of tensor axes, and the shared shapes built from them. No logic.

prompt      one prompt of a split
row         one sequence of a batch: a prompt under an arm
arm         a named set of interventions
position    a token of a sequence, or a post-instruction position (-n .. -1)
layer       a block of the decoder, 0 .. L - 1; `resid_pre` of layer l is the input of block l
d_model     width of the residual stream
vocab       entries of the unembedding
candidate   a (position, layer) pair
rank        directions of a subspace
"""

from collections.abc import Sequence

from jaxtyping import Bool, Float, Int
from torch import Tensor

Vector = Float[Tensor, " d_model"]
"""A vector of the residual stream."""
Residual = Float[Tensor, "row position d_model"]
"""The residual stream of a batch at one layer."""
Candidates = Float[Tensor, "position layer d_model"]
"""One un-normalised vector for every post-instruction position and layer."""
Tokens = Int[Tensor, "row position"]
"""Token ids of a padded batch."""
Mask = Bool[Tensor, "row position"] | Int[Tensor, "row position"]
"""Which tokens of a padded batch are real."""
Logits = Float[Tensor, "row vocab"]
"""Next-token logits at the last position of each row."""


TokenIds = Sequence[int]
