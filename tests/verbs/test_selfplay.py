"""`cairn selfplay`: winners' moves alone are learnt, rounds go on from one another, a stopped run ends the same."""

import json
import random

import pytest
from safetensors.torch import load_file

import cairn.verbs.selfplay_rounds as rounds
from cairn.config import parse_config
from cairn.errors import ConfigError, EngineError
from cairn.evaluation.games.arena import GameRecord, PlayedMove, move_quality, play_games
from cairn.evaluation.games.nim import Nim
from cairn.evaluation.games.players import PerfectPlayer, position_prompt
from cairn.evaluation.games.score import match_schedule
from cairn.runs import read_jsonl
from cairn.training.finetune import train_adapter
from cairn.verbs.selfplay import selfplay_recipe
from cairn.verbs.selfplay_recipe import SelfplayRecipe
from cairn.verbs.selfplay_rounds import winners_pairs
from tests.engines.tiny_models import save_base


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("selfplay")
    save_base(root / "base")
    return root


def recipe(**changes):
    settings = {
        "recipe": "selfplay", "name": "toy", "base": "base", "device": "cpu", "dtype": "float32", "game": "nim",
        "options": {"pile": 4, "most": 2}, "rounds": 2, "play": {"games": 16},
        "training": {"steps": 24, "batch_tokens": 600, "learning_rate": 0.03, "precision": "fp32", "lora": {"rank": 4}},
        "evaluation": {"games": 8}, "seed": 5,
    }  # fmt: skip
    return parse_config(SelfplayRecipe, settings | changes, "test")


def go(place, out, **changes):
    return selfplay_recipe(recipe(**changes), place / out, recipe_folder=place)


@pytest.fixture(scope="module")
def played(place):
    return go(place, "whole")


def move(player, text, legal=True):
    return PlayedMove(player, f"prompt {player}", text, legal)


def test_pairs_are_the_moves_of_who_won_by_playing():
    won = GameRecord(0, 0, (0, 1), [move(0, "1"), move(1, "2"), move(0, "3")], (1.0, 0.0))
    drawn = GameRecord(1, 0, (1, 0), [move(1, "4"), move(0, "5")], (0.5, 0.5))
    given = GameRecord(2, 0, (0, 1), [move(0, "6"), move(1, "x", legal=False)], (1.0, 0.0), illegal=1)
    lost = GameRecord(3, 0, (0, 1), [move(0, "7"), move(1, "8")], (0.0, 1.0))
    records = [won, drawn, given, lost]
    assert winners_pairs(records, None) == [("prompt 0", " 1"), ("prompt 0", " 3"), ("prompt 1", " 8")]
    assert winners_pairs(records, 1) == [("prompt 1", " 8")]
    assert [text for _, text in winners_pairs(records, None, draws=True)] == [" 1", " 3", " 4", " 5", " 8"]
    assert [text for _, text in winners_pairs(records, 0, illegal_wins=True)] == [" 1", " 3", " 6"]


class Table:
    """The simplest learner: moves as often as winners made them in the same position."""

    def __init__(self):
        self.counts = {}

    def moves(self, game, requests):
        made = []
        for request in requests:
            legal = list(game.legal_moves(request.position))
            counts = self.counts.get(position_prompt(game, request.position), {})
            weights = [0.2 + counts.get(move, 0) for move in legal]
            made.append(random.Random(request.seed).choices(legal, weights)[0])
        return made

    def learn(self, pairs):
        self.counts = {}
        for prompt, completion in pairs:
            moves = self.counts.setdefault(prompt, {})
            moves[completion.strip()] = moves.get(completion.strip(), 0) + 1


def test_the_winners_moves_of_round_after_round_are_enough_to_find_the_strategy():
    game, player, perfect, share = Nim(), Table(), PerfectPlayer(), []
    for number in range(9):
        records = play_games(game, (player, player), match_schedule(game, 400, number), seed=number)
        quality = [move_quality(game, records, who, perfect) for who in (0, 1)]
        share.append(sum(one["best"] for one in quality) / sum(one["mattered"] for one in quality))
        player.learn(winners_pairs(records, None))
    assert share[0] < 0.5 < 0.6 < share[4] < 0.85 < share[8], "best moves among those that mattered, while playing"


def test_rounds_are_kept_and_trained_on_the_winners_prompts_that_were_played(place, played):
    before, first, second = played["rounds"]
    assert before["players"]["player"]["random"]["losses"] == 8, "an untrained model knows no move"
    assert first["play"]["guided"] and first["play"]["illegal"] == 0 and not second["play"]["guided"]
    assert second["players"]["player"]["random"]["illegal"] == 0 < second["players"]["player"]["random"]["wins"]
    games = read_jsonl(place / "whole" / "rounds" / "1" / "games.jsonl")
    prompts = {one["prompt"] for game in games for one in game["moves"]}
    assert prompts <= {position_prompt(Nim(), (stones, 0)).replace("1 to 3", "1 to 2") for stones in range(1, 5)}
    won = sum(game["points"][one["player"]] == 1 for game in games for one in game["moves"])
    assert first["training"]["player"]["pairs"] == won > 0
    card = json.loads((place / "whole/rounds/2/adapters/player/cairn_adapter.json").read_text())
    assert card["base"] == played["base"] and card["pairs"] == second["training"]["player"]["pairs"]
    last, shipped = (load_file(place / "whole" / path / "player" / "adapter_model.safetensors")
                     for path in ("rounds/2/adapters", "adapters"))  # fmt: skip
    assert all((last[key] == shipped[key]).all() for key in last)
    assert set(second["change"]["player"]) == {"random", "perfect"}
    assert played["frame"]["perfect"]["perfect"]["score"] == 0.5


def stripped(value):
    """Drops what differs between two runs that are the same: time and place."""
    if isinstance(value, dict):
        return {key: stripped(one) for key, one in value.items() if key not in ("seconds", "versions")}
    return [stripped(one) for one in value] if isinstance(value, list) else value


def test_stopped_twice_in_a_round_and_called_again_it_ends_the_same(place, played, monkeypatch):
    real_train, real_write = train_adapter, rounds.write_json

    def in_training(*given, **settings):
        if settings["title"] == "round 2 player":
            raise KeyboardInterrupt
        return real_train(*given, **settings)

    def before_the_match_is_kept(path, value):
        if path.parts[-2:] == ("2", "match.json"):
            raise KeyboardInterrupt
        real_write(path, value)

    for what, stop in (("cairn.training.finetune.train_adapter", in_training),
                       ("cairn.verbs.selfplay_rounds.write_json", before_the_match_is_kept)):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(what, stop)
            with pytest.raises(KeyboardInterrupt):
                go(place, "stopped")
        assert (place / "stopped/rounds/2/play.json").exists() and not (place / "stopped/result.json").exists()
    assert stripped(go(place, "stopped")) == stripped(played)
    files = [place / name / "adapters/player/adapter_model.safetensors" for name in ("whole", "stopped")]
    first, second = map(load_file, files)
    assert all((first[key] == second[key]).all() for key in first)
    monkeypatch.setattr(rounds.Rounds, "play", lambda *a: pytest.fail("played again"))
    assert stripped(go(place, "stopped")) == stripped(played)


def test_two_adapters_learn_from_their_own_wins_and_another_seed_plays_otherwise(place, played):
    two = go(place, "two", players="two", rounds=1, seed=6)
    assert list(two["rounds"][1]["players"]) == ["first", "second"]
    games = read_jsonl(place / "two" / "rounds" / "1" / "games.jsonl")
    for who, name in enumerate(("first", "second")):
        mine = [one for game in games for one in game["moves"] if one["player"] == who and game["points"][who] == 1]
        assert two["rounds"][1]["training"][name]["pairs"] == len(mine)
    weights = [place / "two/adapters" / name / "adapter_model.safetensors" for name in ("first", "second")]
    first, second = map(load_file, weights)
    assert any((first[key] != second[key]).any() for key in first)
    other = read_jsonl(place / "whole" / "rounds" / "1" / "games.jsonl")
    assert [one["moves"] for one in other] != [one["moves"] for one in games]


def test_what_cannot_work_is_said(place, played):
    with pytest.raises(EngineError, match="round 1 has no won game for player to learn from.*guided_rounds"):
        go(place, "unguided", play={"games": 16, "guided_rounds": 0})
    with pytest.raises(ConfigError, match="recipe.rounds was 2, is 3"):
        go(place, "whole", rounds=3)
    for changes, message in [
        ({"training": {"steps": 3, "seed": 4}}, "training.seed: 4"), ({"play": {"temperature": 0}}, "greater than 0"),
        ({"evaluation": {"opponents": ["strong"]}}, "'random' or 'perfect'"), ({"gane": "nim"}, "did you mean game"),
    ]:  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            recipe(**changes)


def test_the_command_says_what_is_wrong_before_a_base_is_loaded(cairn, tmp_path):
    (tmp_path / "nim.yaml").write_text("recipe: selfplay\nname: x\ngame: nim\noptions: {piles: 4}\nbase: not/there\n")
    done = cairn("selfplay", "nim.yaml")
    assert done.returncode == 2 and "piles: unknown key (did you mean pile?)" in done.stderr
