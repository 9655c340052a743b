"""How well a player plays: points against opponents, with intervals, and beside them chance and perfection.

    every opening drawn, both seats ── player against opponent ── points per game ── mean, 95% interval
    the same openings and seats ────── chance and perfection against the opponent ── floor and ceiling

An opening decides much (in many, one side is lost from the start), so the two games of an opening are one unit: the
interval draws whole openings, and before and after are compared game by game.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cairn.evaluation.games.arena import GameRecord, draw_number, move_quality, play_games
from cairn.evaluation.games.game import Game
from cairn.evaluation.games.players import PerfectPlayer, Player, RandomPlayer
from cairn.evaluation.statistics import bootstrap_paired_difference, resampled_means, score_interval

__all__ = ["OPPONENTS", "change", "frame", "match_schedule", "score_player"]

OPPONENTS = ("random", "perfect")


def match_schedule(game: Game, games: int, seed: int) -> list[tuple[int, tuple[int, int]]]:
    """Returns openings and seats of a match: openings drawn evenly, each played from both seats.

    Args:
        game: the rules.
        games: rounded up to an even number.
        seed: of the drawing.
    """
    openings = list(range(len(game.openings())))
    drawn: list[int] = []
    generator = random.Random(draw_number("openings", seed))
    while len(drawn) < (games + 1) // 2:
        generator.shuffle(openings)
        drawn += openings
    return [(opening, seats) for opening in drawn[: (games + 1) // 2] for seats in ((0, 1), (1, 0))]


def score_player(
    game: Game, player: Player, opponents: Sequence[str], games: int, seed: int, perfect: PerfectPlayer | None = None
) -> dict[str, Any]:
    """Plays a match against each opponent.

    Args:
        game: the rules.
        player: who is measured.
        opponents: of `OPPONENTS`.
        games: of each match.
        seed: of openings and draws; the same seed gives every player the same openings.
        perfect: one that has searched the game already.

    Returns:
        Opponent -> score (mean points), ci95, games, wins, draws, losses, illegal (games lost by an illegal move),
        points (of every game, for paired comparisons), and, where `perfect` is one of the opponents, moves, mattered,
        best: see `arena.move_quality`.
    """
    perfect = perfect or PerfectPlayer()
    found = {}
    for name in opponents:
        schedule = match_schedule(game, games, seed)
        records = play_games(game, (player, _opponent(name, perfect)), schedule, draw_number(seed, name))
        found[name] = _summary(game, records, perfect if "perfect" in opponents else None, seed)
    return found


def frame(game: Game, opponents: Sequence[str], games: int, seed: int, perfect: PerfectPlayer) -> dict[str, Any]:
    """Returns what chance and perfection score in the same matches: the floor and the ceiling of any player."""
    names = [name for name in OPPONENTS if name == "random" or name in opponents]  # too large a game has no perfection
    return {name: score_player(game, _opponent(name, perfect), opponents, games, seed, perfect) for name in names}


def change(before: Mapping[str, Any], after: Mapping[str, Any], seed: int = 0) -> dict[str, dict[str, Any]]:
    """Returns, per opponent, points after minus points before, paired by game, whole openings drawn."""
    found = {}
    for name in after:
        groups = [place // 2 for place in range(len(after[name]["points"]))]
        difference = bootstrap_paired_difference(
            after[name]["points"], before[name]["points"], seed=seed, groups=groups
        )
        found[name] = {"difference": difference.difference, "ci95": list(difference.ci95), "p": difference.p_value}
    return found


def _opponent(name: str, perfect: PerfectPlayer) -> Player:
    return RandomPlayer() if name == "random" else perfect


def _summary(game: Game, records: Sequence[GameRecord], perfect: PerfectPlayer | None, seed: int) -> dict[str, Any]:
    points = [record.points[0] for record in records]
    groups = [record.number // 2 for record in records]  # the two games of an opening
    draws = resampled_means(np.array([[points]]), groups, seed)[0]
    low, high = score_interval(points, draws, groups)
    quality = move_quality(game, records, 0, perfect) if perfect is not None else {}
    return {
        "score": float(np.mean(points)),
        "ci95": [low, high],
        "games": len(points),
        "wins": points.count(1.0),
        "draws": points.count(0.5),
        "losses": points.count(0.0),
        "illegal": sum(record.illegal == 0 for record in records),
        **quality,
        "points": points,
    }
