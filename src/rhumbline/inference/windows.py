"""Windows: the tokens of a text that an arm edits, by their place in the prompt or in the completion.

The completion is everything after the prompt: the response of a text (`ChatWithResponse`), then generated tokens.
Independent of what an edit does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from rhumbline.errors import ProtocolError


@dataclass(frozen=True)
class Window:
    """Tokens of a text on which the interventions of an arm act; all of them by default.

    An edit acts while a token is read, so it changes the choice of the next one: the last token of the prompt chooses
    the first token of the completion.
    """

    prompt: bool = True
    """Whether the tokens of the prompt are edited, those of the template included."""
    start: int = 0
    """Index in the completion, from 0, of the first token that is edited."""
    stop: int | None = None
    """Index in the completion of the first token after these; None: up to the end. 0: no token of the completion."""
    until: int | None = None
    """Id of a token: of the completion, only tokens up to its first occurrence are edited, such as a think block."""
    after: int | None = None
    """Id of a token: of the completion, only tokens after its first occurrence are edited; none without it."""

    def __post_init__(self):
        if self.start < 0 or (self.stop is not None and self.stop < self.start):
            raise ProtocolError(
                f"Window: tokens {self.start} to {self.stop} of the completion. Use a start of 0 or more, and "
                "a stop of start or more, or None."
            )
        if self.until is not None and self.after is not None:
            raise ProtocolError("Window: `until` and `after` are both given. Use one of them.")

    @property
    def boundary(self) -> int | None:
        """The token at which the completion is divided, if any."""
        return self.after if self.until is None else self.until


EVERYWHERE = Window()


def index_in_text(mask: Shaped[Tensor, "row token"]) -> Shaped[Tensor, "row token"]:
    """Index of each token in its text, from 0, by an attention mask; padding on the left has -1."""
    return mask.cumsum(1) - 1


class TokenPlaces(NamedTuple):
    """Where the tokens of a forward pass are in their texts."""

    in_text: Int[Tensor, "#row position"]
    """Index of each token in its text, from 0; padding on the left has -1."""
    last: Int[Tensor, " prompt"] | None = None
    """Of a pack: the tokens that a pruned last block computes."""
    in_completion: Int[Tensor, "#row position"] | None = None
    """Index of each token in the completion, from 0; negative for the prompt and for padding. None: not defined."""
    ids: Int[Tensor, "#row position"] | None = None
    passed: Bool[Tensor, " row"] | None = None
    """Whether the boundary of the windows is in the completion before these tokens; None: in no row."""

    @property
    def is_prompt(self) -> Bool[Tensor, "#row position"]:
        """Whether each token is before the completion."""
        assert self.in_completion is not None
        return self.in_completion < 0

    def last_only(self, boundary: int | None) -> "TokenPlaces":
        """The places of the last token of every row; the tokens before it are cached."""
        assert self.in_completion is not None
        assert self.ids is not None
        passed = None if boundary is None else self.passed_by(boundary)[:, -1]
        return TokenPlaces(self.in_text[:, -1:], None, self.in_completion[:, -1:], self.ids[:, -1:], passed)

    def of_rows(self, rows: Int[Tensor, " kept"]) -> "TokenPlaces":
        """The places of some rows of padded texts."""
        assert self.in_completion is not None
        assert self.ids is not None
        return TokenPlaces(self.in_text[rows], None, self.in_completion[rows], self.ids[rows])

    def passed_by(self, boundary: int) -> Bool[Tensor, "#row position"]:
        """Whether the token `boundary` is in the same completion before each token."""
        assert self.in_completion is not None
        assert self.ids is not None
        here = (self.ids == boundary) & (self.in_completion >= 0)
        before = here.cumsum(1) - here.long()
        # A completion is contiguous, in a pack too: what was counted before its first token belongs to other texts.
        column = torch.arange(here.shape[1], device=here.device)
        first = (column - self.in_completion).clamp(0, here.shape[1] - 1)
        passed = before > before.gather(1, first)
        return passed if self.passed is None else passed | self.passed[:, None]


@dataclass(frozen=True)
class ArmWindows:
    """The windows of some arms as tensors."""

    prompt: Bool[Tensor, " arm"]
    start: Int[Tensor, " arm"]
    stop: Int[Tensor, " arm"]
    is_until: Bool[Tensor, " arm"]
    is_after: Bool[Tensor, " arm"]
    boundary: int | None
    """The token at which completions are divided; None: no arm divides them."""

    @classmethod
    def of(cls, windows: Sequence[Window], device: torch.device) -> "ArmWindows | None":
        """The tensors; None if all arms edit all tokens. ProtocolError if two arms have different boundaries."""
        if all(window == EVERYWHERE for window in windows):
            return None
        boundaries = sorted({w.boundary for w in windows if w.boundary is not None})
        if len(boundaries) > 1:
            raise ProtocolError(
                f"the windows of one pass divide completions at tokens {boundaries}. Use one token, or several passes."
            )
        most = torch.iinfo(torch.long).max
        return cls(
            torch.tensor([w.prompt for w in windows], device=device),
            torch.tensor([w.start for w in windows], device=device),
            torch.tensor([most if w.stop is None else w.stop for w in windows], device=device),
            torch.tensor([w.until is not None for w in windows], device=device),
            torch.tensor([w.after is not None for w in windows], device=device),
            next(iter(boundaries), None),
        )

    def on(self, arm_of_row: Int[Tensor, " row"], places: TokenPlaces | None) -> Bool[Tensor, "row position"]:
        """Which tokens of a batch are edited."""
        if places is None or places.in_completion is None:
            raise ProtocolError("an arm with a window cannot be applied here. Use an arm that edits all tokens.")
        index = places.in_completion.to(self.start.device)
        start, stop, prompt = (x[arm_of_row][:, None] for x in (self.start, self.stop, self.prompt))
        in_completion = (index >= start) & (index < stop)
        if self.boundary is not None:
            passed = places.passed_by(self.boundary).to(self.start.device)
            in_completion &= ~(self.is_until[arm_of_row][:, None] & passed)
            in_completion &= ~(self.is_after[arm_of_row][:, None] & ~passed)
        return torch.where(index < 0, prompt, in_completion)
