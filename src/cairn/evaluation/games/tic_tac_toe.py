"""Tic-tac-toe, the board told as lists of squares.

    1 2 3      Mine: 1 5        what the player to move holds
    4 5 6      Theirs: 2 9
    7 8 9      Free: 3 4 6 7 8

Lists are easier to read for a tiny model than a drawing: a legal move is a word to copy. Seen from the player to move,
both sides learn from the same positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cairn.config import StrictModel

__all__ = ["TicTacToe", "TicTacToeOptions", "TicTacToePosition"]

TicTacToePosition = tuple[frozenset[int], frozenset[int]]  # squares of the first player, of the second

_LINES = [frozenset(line) for line in
          ((1, 2, 3), (4, 5, 6), (7, 8, 9), (1, 4, 7), (2, 5, 8), (3, 6, 9), (1, 5, 9), (3, 5, 7))]  # fmt: skip
_EMPTY: TicTacToePosition = (frozenset(), frozenset())


class TicTacToeOptions(StrictModel):
    """The kind of tic-tac-toe.

    Args:
        varied: begin from every position with one square of each player as well, where none has a line yet; from the
            empty board alone, good players play few different games.
    """

    varied: bool = True


class TicTacToe:
    """Three squares in a line win; a full board is a draw.

    Args:
        options: see `TicTacToeOptions`.
    """

    name = "tic_tac_toe"
    template = "Three in a line win.\nMine: {mine}\nTheirs: {theirs}\nFree: {free}\nSquare:"
    options_model = TicTacToeOptions

    def __init__(self, options: TicTacToeOptions | None = None) -> None:
        self.options = options or TicTacToeOptions()

    def openings(self) -> Sequence[TicTacToePosition]:
        """Returns the empty board, and with `varied` the 72 boards after a move of each player."""
        pairs = [(frozenset({a}), frozenset({b})) for a in range(1, 10) for b in range(1, 10) if a != b]
        return [_EMPTY, *(pairs if self.options.varied else [])]

    def to_move(self, position: TicTacToePosition) -> int:
        """Returns whose turn it is: the player with fewer squares, first the first."""
        return len(position[0]) - len(position[1])

    def legal_moves(self, position: TicTacToePosition) -> Sequence[str]:
        """Returns the free squares, none where the game is over."""
        if self.result(position) is not None:
            return []
        return [str(square) for square in range(1, 10) if square not in position[0] | position[1]]

    def play(self, position: TicTacToePosition, move: str) -> TicTacToePosition:
        """Returns the board after a move."""
        first, second = position
        return (first | {int(move)}, second) if self.to_move(position) == 0 else (first, second | {int(move)})

    def result(self, position: TicTacToePosition) -> float | None:
        """Returns the first player's points, None while there is no line and a free square."""
        for squares, points in zip(position, (1.0, 0.0), strict=True):
            if any(line <= squares for line in _LINES):
                return points
        return 0.5 if len(position[0]) + len(position[1]) == 9 else None

    def fields(self, position: TicTacToePosition) -> Mapping[str, str]:
        """Returns mine, theirs and free: squares in order, or none."""
        me = self.to_move(position)
        free = frozenset(range(1, 10)) - position[0] - position[1]
        named = {"mine": position[me], "theirs": position[1 - me], "free": free}
        return {name: " ".join(map(str, sorted(squares))) or "none" for name, squares in named.items()}
