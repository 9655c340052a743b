"""Nim with one pile, also known as 21 or the subtraction game: who takes the last stone wins.

    13 stones ── takes 1 ── 12 ── takes 3 ── 9 ── takes 1 ── 8 ── ...       leave a multiple of (most + 1), and win

Source: Bouton, "Nim, a game with a complete mathematical theory", Annals of Mathematics 1901, for the family of games;
the strategy of one pile is the remainder by most + 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field, model_validator

from cairn.config import StrictModel

__all__ = ["Nim", "NimOptions", "NimPosition"]

NimPosition = tuple[int, int]  # stones left, who is to move


class NimOptions(StrictModel):
    """The kind of Nim.

    Args:
        pile: stones of the largest opening.
        smallest: stones of the smallest opening; every pile between them is one.
        most: stones that may be taken at once, 1 to this.
    """

    pile: int = Field(default=21, ge=1, le=999)
    smallest: int = Field(default=1, ge=1)
    most: int = Field(default=3, ge=2, le=9)

    @model_validator(mode="after")
    def _order(self) -> NimOptions:
        if self.smallest > self.pile:
            raise ValueError(f"smallest {self.smallest} is more than pile {self.pile}; allowed: smallest <= pile")
        return self


class Nim:
    """One pile, 1 to `most` stones a turn, the last stone wins.

    Args:
        options: see `NimOptions`.
    """

    name = "nim"
    template = "Take {takes} stones; the last stone wins.\nStones: {stones}\nTake:"
    options_model = NimOptions

    def __init__(self, options: NimOptions | None = None) -> None:
        self.options = options or NimOptions()

    def openings(self) -> Sequence[NimPosition]:
        """Returns every pile from `smallest` to `pile`."""
        return [(stones, 0) for stones in range(self.options.smallest, self.options.pile + 1)]

    def to_move(self, position: NimPosition) -> int:
        """Returns whose turn it is."""
        return position[1]

    def legal_moves(self, position: NimPosition) -> Sequence[str]:
        """Returns the numbers of stones that may be taken."""
        return [str(taken) for taken in range(1, min(self.options.most, position[0]) + 1)]

    def play(self, position: NimPosition, move: str) -> NimPosition:
        """Returns the pile after a move, the other player to move."""
        return position[0] - int(move), 1 - position[1]

    def result(self, position: NimPosition) -> float | None:
        """Returns the first player's points: who is to move before an empty pile has lost."""
        return None if position[0] else float(position[1] == 1)

    def fields(self, position: NimPosition) -> Mapping[str, str]:
        """Returns takes (what may be taken at once) and stones."""
        return {"takes": f"1 to {self.options.most}", "stones": str(position[0])}
