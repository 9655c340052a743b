"""Many games side by side, and what came of them.

    openings x seats ── all running games ──> the player of each seat is asked once a ply ──> records
                              ^                                  │ not a legal move: the game is lost for its player
                              └───────── game.play <─────────────┘

A seed decides everything: game n and its ply m draw from a number made of both, whatever runs beside them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cairn.evaluation.games.game import Game, Position
from cairn.evaluation.games.players import MoveRequest, PerfectPlayer, Player, position_prompt

__all__ = ["GameRecord", "PlayedMove", "draw_number", "move_quality", "play_games"]


@dataclass(frozen=True)
class PlayedMove:
    """One move, as it was asked for and given.

    Args:
        player: who moved, index into the players of `play_games`.
        prompt: what a model reads in this position.
        move: the text given.
        legal: whether it was one of the legal moves.
    """

    player: int
    prompt: str
    move: str
    legal: bool


@dataclass
class GameRecord:
    """One game.

    Args:
        number: of the game.
        opening: number of its opening.
        seats: player of the first and of the second seat.
        moves: in order; an illegal one is the last.
        points: of each player, 1.0, 0.5 or 0.0.
        illegal: player who lost by an illegal move; None if none did.
    """

    number: int
    opening: int
    seats: tuple[int, int]
    moves: list[PlayedMove] = field(default_factory=list)
    points: tuple[float, float] = (0.0, 0.0)
    illegal: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Returns the record as a JSON-able dict."""
        return asdict(self)


def draw_number(*parts: object) -> int:
    """Returns a seed below 2**62 that depends on its parts and on nothing else."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 2


def play_games(
    game: Game, players: tuple[Player, Player], schedule: Sequence[tuple[int, tuple[int, int]]], seed: int
) -> list[GameRecord]:
    """Plays games to their end.

    Args:
        game: the rules.
        players: two, or the same one twice.
        schedule: of each game the number of its opening, and which player has the first and the second seat.
        seed: of all draws.
    """
    openings = list(game.openings())
    records = [GameRecord(number, opening, seats) for number, (opening, seats) in enumerate(schedule)]
    running: dict[int, Position] = {record.number: openings[record.opening] for record in records}
    while running:
        asked: list[list[int]] = [[], []]
        for number, position in running.items():
            asked[records[number].seats[game.to_move(position)]].append(number)
        for who in (0, 1):  # a player's games are all asked for together
            numbers = asked[who]
            requests = [
                MoveRequest(running[number], draw_number(seed, number, len(records[number].moves)))
                for number in numbers
            ]
            texts = players[who].moves(game, requests) if requests else []
            for number, text in zip(numbers, texts, strict=True):
                _move(game, records[number], running, who, text)
    return records


def _move(game: Game, record: GameRecord, running: dict[int, Position], who: int, text: str) -> None:
    position = running[record.number]
    legal = text in game.legal_moves(position)
    record.moves.append(PlayedMove(who, position_prompt(game, position), text, legal))
    if not legal:
        record.illegal = who
        record.points = (float(who == 1), float(who == 0))
        del running[record.number]
        return
    position = running[record.number] = game.play(position, text)
    first = game.result(position)
    if first is not None:
        points = [0.0, 0.0]
        points[record.seats[0]], points[record.seats[1]] = first, 1.0 - first
        record.points = (points[0], points[1])
        del running[record.number]


def move_quality(game: Game, records: Sequence[GameRecord], player: int, perfect: PerfectPlayer) -> dict[str, int]:
    """Counts a player's moves where it mattered what is played: where some moves keep the value and others do not.

    Returns:
        moves: all of them; mattered: such moves, the illegal ones included; best: those that kept the value.
    """
    openings = list(game.openings())
    counts = {"moves": 0, "mattered": 0, "best": 0}
    for record in records:
        position = openings[record.opening]
        for move in record.moves:
            if move.player == player:
                best = perfect.best_moves(game, position)
                counts["moves"] += 1
                if len(best) < len(game.legal_moves(position)):
                    counts["mattered"] += 1
                    counts["best"] += move.move in best
            if move.legal:
                position = game.play(position, move.move)
    return counts
