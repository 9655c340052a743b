"""What a game is: positions, legal moves as text, an outcome that needs no judge.

    position ── render(template, fields) ──> prompt ── player ──> text ── one of legal_moves? ──┬─ play ──> position
                                                                                                └─ no: lost
    result(position): None while it goes on, then 1.0, 0.5 or 0.0 for the first player

Any class with these members is a game; nothing is inherited. Positions are immutable and hashable, so that they can be
looked up, and every rule is a pure function of the position.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

__all__ = ["MEMBERS", "Game", "Position"]

Position = Any  # hashable and immutable; each game its own

MEMBERS = ("name", "template", "openings", "to_move", "legal_moves", "play", "result", "fields")


@runtime_checkable
class Game(Protocol):
    """A game of two players with full information.

    Members:
        name: of the game.
        template: prompt template over `fields`, as in a stack; it ends where the move begins.
    """

    name: str
    template: str

    def openings(self) -> Sequence[Hashable]:
        """Returns the positions that games begin from, the first player to move; one, or many."""
        ...

    def to_move(self, position: Position) -> int:
        """Returns whose turn it is: 0 for the first player, 1 for the second."""
        ...

    def legal_moves(self, position: Position) -> Sequence[str]:
        """Returns the moves that are allowed, as the text that a player writes; empty only at the end."""
        ...

    def play(self, position: Position, move: str) -> Position:
        """Returns the position after a legal move."""
        ...

    def result(self, position: Position) -> float | None:
        """Returns None while the game goes on; at its end the first player's points: 1.0 won, 0.5 drawn, 0.0 lost."""
        ...

    def fields(self, position: Position) -> Mapping[str, str]:
        """Returns what the player to move is shown."""
        ...
