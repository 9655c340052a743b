"""The games know their rules; perfection is perfect; a user's own game is found; illegal moves lose."""

import itertools
import sys
import types

import pytest

from cairn.config import parse_config
from cairn.engines.base import GenerationRequest
from cairn.engines.fake_engine import FakeEngine
from cairn.errors import ConfigError, EngineError
from cairn.evaluation.games.arena import move_quality, play_games
from cairn.evaluation.games.game import Game
from cairn.evaluation.games.nim import Nim, NimOptions
from cairn.evaluation.games.players import ModelPlayer, MoveRequest, PerfectPlayer, RandomPlayer, position_prompt
from cairn.evaluation.games.registry import GAMES, game_names, open_game
from cairn.evaluation.games.score import change, frame, match_schedule, score_player
from cairn.evaluation.games.tic_tac_toe import TicTacToe, TicTacToeOptions

GAMES_HERE = [Nim(), TicTacToe(), Nim(NimOptions(pile=9, smallest=5, most=2))]


@pytest.mark.parametrize("game", GAMES_HERE, ids=lambda game: game.name)
def test_every_position_that_can_come_is_either_over_or_has_moves_and_another_turn(game):
    assert isinstance(game, Game)
    seen, left = set(), list(game.openings())
    assert len(set(left)) == len(left)
    while left:
        position = left.pop()
        if position in seen:
            continue
        seen.add(position)
        moves = game.legal_moves(position)
        assert bool(moves) == (game.result(position) is None) and len(set(moves)) == len(moves)
        if moves:
            assert position_prompt(game, position).endswith(":")
        for move in moves:
            assert move == move.strip() and move
            after = game.play(position, move)
            assert game.result(after) is not None or game.to_move(after) != game.to_move(position)
            left.append(after)
    if isinstance(game, TicTacToe):
        assert len(seen) == 5478  # the known number of positions that can come from the empty board


def test_perfection_in_nim_is_the_remainder_and_in_tic_tac_toe_a_draw():
    game, perfect = Nim(NimOptions(pile=40, most=3)), PerfectPlayer()
    for stones in range(1, 41):
        best = perfect.best_moves(game, (stones, 0))
        assert best == ([str(stones % 4)] if stones % 4 else list(game.legal_moves((stones, 0))))
        assert perfect.value(game, (stones, 1)) == float(stones % 4 == 0)
    board = TicTacToe(TicTacToeOptions(varied=False))
    empty = board.openings()[0]
    assert perfect.value(board, empty) == 0.5 and len(perfect.best_moves(board, empty)) == 9
    fork = board.play(board.play(empty, "1"), "9")  # opposite corner: only another corner wins
    assert perfect.best_moves(board, fork) == ["3", "7"]
    deep = Nim(NimOptions(pile=999))
    assert perfect.best_moves(deep, (999, 0)) == ["3"]


def test_what_a_model_reads():
    assert position_prompt(Nim(), (13, 1)) == "Take 1 to 3 stones; the last stone wins.\nStones: 13\nTake:"
    board = TicTacToe()
    position = board.play(board.play(board.openings()[0], "5"), "9")
    lines = position_prompt(board, position).splitlines()
    assert lines[1:] == ["Mine: 5", "Theirs: 9", "Free: 1 2 3 4 6 7 8", "Square:"]


class Scripted:
    def __init__(self, *texts):
        self.texts = itertools.cycle(texts)

    def moves(self, game, requests):
        return [next(self.texts) for _ in requests]


def test_records_name_winner_and_moves_and_an_illegal_move_loses_at_once():
    game = Nim(NimOptions(pile=5, smallest=5))
    (won,) = play_games(game, (Scripted("1", "3"), Scripted("1")), [(0, (0, 1))], seed=0)
    assert [(move.player, move.move) for move in won.moves] == [(0, "1"), (1, "1"), (0, "3")]
    assert won.points == (1.0, 0.0) and won.illegal is None
    (other,) = play_games(game, (Scripted("1", "3"), Scripted("1")), [(0, (1, 0))], seed=0)
    assert [move.player for move in other.moves] == [1, 0, 1, 0] and other.points == (0.0, 1.0)
    for text in ("4", "0", "", "two", "1 stone", "١"):
        (bad,) = play_games(game, (Scripted("1"), Scripted(text)), [(0, (0, 1))], seed=0)
        assert bad.illegal == 1 and bad.points == (1.0, 0.0) and not bad.moves[-1].legal and len(bad.moves) == 2


def test_moves_that_mattered_are_counted():
    game = Nim(NimOptions(pile=5, smallest=5))
    records = play_games(game, (Scripted("1", "2", "9"), Scripted("1")), [(0, (0, 1)), (0, (0, 1))], seed=0)
    # 5: taking 1 is best, 2 is not; then 3: 9 is illegal where 3 wins, and 2: 1 keeps nothing
    quality = move_quality(game, records, 0, PerfectPlayer())
    assert quality["moves"] == 4 and quality["mattered"] == 4 and quality["best"] == 1


def test_the_same_seed_plays_the_same_games_and_one_game_does_not_depend_on_the_others():
    game, schedule = TicTacToe(), match_schedule(TicTacToe(), 12, seed=4)
    players = (RandomPlayer(), PerfectPlayer())
    games = play_games(game, players, schedule, seed=9)
    assert [one.as_json() for one in games] == [one.as_json() for one in play_games(game, players, schedule, seed=9)]
    assert [one.moves for one in play_games(game, players, schedule[:5], seed=9)] == [one.moves for one in games[:5]]
    assert [one.moves for one in play_games(game, players, schedule, seed=8)] != [one.moves for one in games]


def test_a_match_has_every_opening_from_both_seats_and_the_frame_of_nim_is_known():
    game, perfect = Nim(NimOptions(pile=8)), PerfectPlayer()
    schedule = match_schedule(game, 16, seed=1)
    assert sorted(schedule) == sorted((opening, seats) for opening in range(8) for seats in ((0, 1), (1, 0)))
    known = frame(game, ["random", "perfect"], 32, 1, perfect)
    assert known["perfect"]["perfect"]["score"] == 0.5 and known["perfect"]["perfect"]["best"] > 0
    assert known["perfect"]["random"]["score"] + known["random"]["perfect"]["score"] == pytest.approx(1, abs=0.3)
    assert known["perfect"]["random"]["score"] > 0.6 > 0.4 > known["random"]["perfect"]["score"]
    assert known["perfect"]["random"]["best"] == known["perfect"]["random"]["mattered"]
    low, high = known["random"]["random"]["ci95"]
    assert 0 < low < 0.5 < high < 1
    gained = change(known["random"], known["perfect"])["random"]
    assert gained["difference"] > 0.1 and gained["ci95"][0] > 0
    loser = score_player(game, Scripted("nonsense"), ["random"], 8, 1)
    assert loser["random"]["losses"] == 8 and "best" not in loser["random"]
    assert loser["random"]["illegal"] == 7  # in one game chance took the last stone before it was asked


def test_a_model_is_asked_with_the_games_prompt_and_its_legal_moves_if_guided():
    seen: list[GenerationRequest] = []

    def answer(request):
        seen.append(request)
        return " 2"

    game, requests = Nim(), [MoveRequest((6, 0), 1), MoveRequest((6, 1), 2), MoveRequest((1, 0), 3)]
    assert ModelPlayer(FakeEngine(answer, adapters=["a"]), "a").moves(game, requests) == ["2", "2", "2"]
    assert len(seen) == 2, "at temperature 0 the same position is asked for once"
    assert seen[0].prompt == position_prompt(game, (6, 0)) and seen[0].adapter == "a" and seen[0].constraint is None
    seen.clear()
    ModelPlayer(FakeEngine(answer), temperature=1.0, guided=True).moves(game, requests)
    assert [one.sampling.seed for one in seen] == [1, 2, 3]
    assert [one.constraint.choices for one in seen] == [("1", "2", "3"), ("1", "2", "3"), ("1",)]


def test_a_game_of_ones_own_by_place_or_entry_point_and_what_is_no_game(monkeypatch):
    module = types.ModuleType("my_games")
    module.Short = type("Short", (Nim,), {"name": "short"})
    module.Nothing = type("Nothing", (), {"name": "nothing"})
    monkeypatch.setitem(sys.modules, "my_games", module)
    assert open_game("my_games:Short", {"pile": 4}).openings()[-1] == (4, 0)
    point = types.SimpleNamespace(name="short_game", value="my_games:Short")
    monkeypatch.setattr(
        "cairn.plugins.metadata.entry_points", lambda group: [point] if group == "cairn.games" else []
    )
    assert open_game("short_game").name == "short" and game_names() == sorted([*GAMES, "short_game"])
    for name, options, message in [
        ("nimm", {}, "no such game: .nimm. .did you mean nim."), ("my_games:Long", {}, "cannot be imported"),
        ("my_games:Nothing", {}, "is no game, it lacks template, openings"),
        ("my_games:Nothing", {"a": 1}, "no options"), ("nim", {"piles": 3}, "unknown key .did you mean pile"),
        ("nim", {"pile": 3, "smallest": 4}, "smallest <= pile"),
    ]:  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            open_game(name, options)
    with pytest.raises(ConfigError, match="varied"):
        parse_config(TicTacToeOptions, {"varied": "perhaps"}, "test")


def test_a_game_too_large_for_perfection_says_so(monkeypatch):
    monkeypatch.setattr("cairn.evaluation.games.players._MOST_POSITIONS", 10)
    with pytest.raises(EngineError, match="too large to be played perfectly.*drop `perfect`"):
        PerfectPlayer().best_moves(Nim(), (21, 0))
