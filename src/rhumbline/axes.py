"""Names of tensor axes, and the shapes that several modules share.

prompt      one prompt of a split
row         one prompt under one arm, in a batch
arm         a named set of interventions
position    a token of a sequence; in `Candidates`, a position at which activations are read
layer       a decoder block, 0 .. L - 1; `resid_pre` of a layer is the input of its block
d_model     width of the residual stream
vocab       entries of the unembedding
candidate   a site: a position and a layer
rank        vectors that span a subspace
"""

from collections.abc import Sequence

from jaxtyping import Bool, Float, Int
from torch import Tensor

Vector = Float[Tensor, " d_model"]
"""A vector of the residual stream."""
Residual = Float[Tensor, "row position d_model"]
"""The residual stream of a batch at one layer."""
Candidates = Float[Tensor, "position layer d_model"]
"""One un-normalised vector for every site."""
Tokens = Int[Tensor, "row position"]
"""Token ids of a padded batch."""
Mask = Bool[Tensor, "row position"] | Int[Tensor, "row position"]
"""Which tokens of a padded batch are not padding."""
Logits = Float[Tensor, "row vocab"]
"""Next-token logits at the last position of each row."""
TokenIds = Sequence[int]
"""Token ids of one sequence."""
