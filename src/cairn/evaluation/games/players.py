"""Who plays: chance, perfection, and a model behind the engine seam.

    many positions at once ──> Player.moves ──> a text each: a legal move, or, from a model, anything at all

Players are asked about all running games together, so that a model can answer them in batches. What they draw comes
from the seed of each request alone.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cairn.engines.base import Constraint, Engine, GenerationRequest, Sampling
from cairn.errors import EngineError
from cairn.evaluation.games.game import Game, Position
from cairn.prompts import parse_output, render

__all__ = ["ModelPlayer", "MoveRequest", "PerfectPlayer", "Player", "RandomPlayer", "position_prompt"]

_MOST_POSITIONS = 500_000  # that are searched before a game counts as too large


@dataclass(frozen=True)
class MoveRequest:
    """One question to a player.

    Args:
        position: what the player is to move in.
        seed: of whatever the player draws.
    """

    position: Position
    seed: int


class Player(Protocol):
    """Anything with this method is a player."""

    def moves(self, game: Game, requests: Sequence[MoveRequest]) -> list[str]:
        """Returns a move for each request, in their order, as text without white space around."""
        ...


def position_prompt(game: Game, position: Position) -> str:
    """Returns what a model reads before it moves, in training and in play."""
    return render(game.template, game.fields(position))


class RandomPlayer:
    """Draws one of the legal moves."""

    def moves(self, game: Game, requests: Sequence[MoveRequest]) -> list[str]:
        return [random.Random(request.seed).choice(list(game.legal_moves(request.position))) for request in requests]


class PerfectPlayer:
    """Searches the whole game once, and draws one of the moves that keep the most points."""

    def __init__(self) -> None:
        self._game: Game | None = None
        self._values: dict[Position, float] = {}  # of that game

    def value(self, game: Game, position: Position) -> float:
        """Returns the first player's points if both play perfectly from here.

        Raises:
            EngineError: the game has too many positions to be searched.
        """
        if game is not self._game:
            self._game, self._values = game, {}
        if position not in self._values:
            if len(self._values) >= _MOST_POSITIONS:
                raise EngineError(
                    f"the game {game.name} is too large to be played perfectly: it has more positions than",
                    value=_MOST_POSITIONS, next="drop `perfect` from evaluation.opponents",
                )  # fmt: skip
            ended = game.result(position)
            if ended is None:
                pick: Callable[..., float] = max if game.to_move(position) == 0 else min
                ended = pick(self.value(game, game.play(position, move)) for move in game.legal_moves(position))
            self._values[position] = ended
        return self._values[position]

    def best_moves(self, game: Game, position: Position) -> list[str]:
        """Returns every move that keeps the value of the position."""
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(max(limit, 20_000))  # a long game is searched to its end before the first answer
        try:
            wanted = self.value(game, position)
            legal = game.legal_moves(position)
            return [move for move in legal if self.value(game, game.play(position, move)) == wanted]
        finally:
            sys.setrecursionlimit(limit)

    def moves(self, game: Game, requests: Sequence[MoveRequest]) -> list[str]:
        return [random.Random(one.seed).choice(self.best_moves(game, one.position)) for one in requests]


class ModelPlayer:
    """A model, or one of its adapters.

    Args:
        engine: writes the moves.
        adapter: name of a loaded adapter; None is the base.
        temperature: 0 takes the likeliest text.
        guided: hold the output to the legal moves; otherwise anything may be written, and what is not legal loses.
        max_new_tokens: of a move, its end mark included.
    """

    def __init__(
        self, engine: Engine, adapter: str | None = None, *, temperature: float = 0.0, guided: bool = False,
        max_new_tokens: int = 6,
    ) -> None:
        self._engine, self._adapter = engine, adapter
        self._temperature, self._guided, self._most = temperature, guided, max_new_tokens

    def moves(self, game: Game, requests: Sequence[MoveRequest]) -> list[str]:
        asked: list[GenerationRequest] = []
        numbers: list[int] = []
        same: dict[tuple[str, int], int] = {}  # at temperature 0 the same position has the same answer
        for request in requests:
            prompt = position_prompt(game, request.position)
            key = (prompt, request.seed if self._temperature else 0)
            if key not in same:
                same[key] = len(asked)
                sampling = Sampling(
                    max_new_tokens=self._most, temperature=self._temperature, seed=request.seed, stop=("\n",)
                )
                legal = tuple(game.legal_moves(request.position)) if self._guided else None
                constraint = Constraint(legal) if legal is not None else None
                asked.append(GenerationRequest(prompt, self._adapter, sampling, constraint))
            numbers.append(same[key])
        made = self._engine.generate(asked) if asked else []
        return [parse_output(made[number].text) for number in numbers]
