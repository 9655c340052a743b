"""The parts of a round of self-play: games, training, match; each kept as it is made.

    rounds/N/games.jsonl, play.json      played with the adapters of round N - 1 (round 1: the base)
    rounds/N/adapters/NAME               goes on from round N - 1, on the moves of this round's winners
    rounds/N/match.json                  points of every game against the opponents; rounds/0: the base
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cairn.errors import EngineError
from cairn.files import write_json, write_text
from cairn.verbs.selfplay_recipe import SelfplayRecipe

if TYPE_CHECKING:
    from cairn.engines.base import Engine
    from cairn.evaluation.games.arena import GameRecord
    from cairn.evaluation.games.game import Game
    from cairn.evaluation.games.players import PerfectPlayer

__all__ = ["Rounds", "winners_pairs"]

Say = Callable[[str], Any]


def winners_pairs(records: Sequence[GameRecord], player: int | None, *, draws: bool = False,
                  illegal_wins: bool = False) -> list[tuple[str, str]]:  # fmt: skip
    """Returns (prompt, completion) of every move that belongs to a won game, in the order of play.

    Args:
        records: games.
        player: whose moves; None for both players'.
        draws: the moves of drawn games as well.
        illegal_wins: the moves of who won because the other one moved illegally.
    """
    from cairn.prompts import completion_text

    pairs = []
    for record in records:
        if record.illegal is not None and not illegal_wins:
            continue
        for move in record.moves:
            points = record.points[move.player]
            if move.legal and (points == 1.0 or (draws and points == 0.5)) and player in (None, move.player):
                pairs.append((move.prompt, completion_text(move.move)))
    return pairs


class Rounds:
    """The parts of a round, each read back where it is there already.

    Args:
        recipe: what to do.
        base: name or folder of the base.
        identity: its identity, for the adapters' cards.
        game: the rules.
        perfect: player who has searched it.
        out: run folder.
        say: takes lines for the reader.
    """

    def __init__(
        self, recipe: SelfplayRecipe, base: str, identity: Mapping[str, Any], game: Game, perfect: PerfectPlayer,
        out: Path, say: Say,
    ) -> None:
        self._recipe, self._base, self._identity = recipe, base, identity
        self._game, self._perfect, self._out, self._say = game, perfect, out, say
        self._engines: dict[int, Engine] = {}
        self._trained: tuple[Any, Any] | None = None  # model and tokenizer that are trained

    def play(self, number: int) -> dict[str, Any]:
        """Plays the games of a round; returns its counts."""
        from cairn.evaluation.games.arena import draw_number, play_games
        from cairn.evaluation.games.players import ModelPlayer
        from cairn.evaluation.games.score import match_schedule

        folder = self._out / "rounds" / str(number)
        if (folder / "play.json").exists():
            return json.loads((folder / "play.json").read_text(encoding="utf-8"))
        play, seed = self._recipe.play, draw_number(self._recipe.seed, "play", number)
        engine = self._engine(number - 1)
        guided = number <= play.guided_rounds
        chosen = [
            ModelPlayer(
                engine, self._adapter(number - 1, name), temperature=play.temperature, guided=guided,
                max_new_tokens=play.max_new_tokens,
            ) for name in self._recipe.names()
        ]  # fmt: skip
        records = play_games(
            self._game, (chosen[0], chosen[-1]), match_schedule(self._game, play.games, seed), seed
        )
        write_text(folder / "games.jsonl", "".join(json.dumps(record.as_json()) + "\n" for record in records))
        firsts = [record.points[record.seats[0]] for record in records]
        counts = {
            "games": len(records), "guided": guided, "moves": sum(len(record.moves) for record in records),
            "won_by_first_seat": firsts.count(1.0), "drawn": firsts.count(0.5),
            "illegal": sum(record.illegal is not None for record in records),
        }  # fmt: skip
        write_json(folder / "play.json", counts)
        self._say(f"round {number}: {counts['games']} games, {counts['moves']:,} moves, {counts['drawn']} drawn, "
                  f"{counts['illegal']} lost by an illegal move")
        return counts

    def train(self, number: int) -> dict[str, Any]:
        """Trains the adapters of a round from those of the round before; returns what it came to."""
        from cairn.evaluation.games.arena import draw_number
        from cairn.training.finetune import train_adapter

        recipe, folder = self._recipe, self._out / "rounds" / str(number)
        if (folder / "match.json").exists():
            return json.loads((folder / "training.json").read_text(encoding="utf-8"))
        records = self._records(number)
        found: dict[str, Any] = {}
        for place, name in enumerate(recipe.names()):
            who = None if recipe.players == "one" else place
            pairs = winners_pairs(records, who, draws=recipe.play.draws, illegal_wins=recipe.play.illegal_wins)
            if not pairs:
                raise EngineError(
                    f"round {number} has no won game for {name} to learn from", value=f"{len(records)} games",
                    next="choose another --out with --set play.guided_rounds=2, more play.games or play.draws=true",
                )  # fmt: skip
            config = recipe.training.model_copy(
                update={"seed": draw_number(recipe.seed, "train", number, name) % (1 << 31)}
            )
            model, tokenizer = self._model()
            result = train_adapter(
                model, tokenizer, pairs, config, folder / "adapters" / name, base=self._identity, name=name,
                title=f"round {number} {name}", start=self._folder(number - 1, name) if number > 1 else None,
            )  # fmt: skip
            found[name] = {"pairs": len(pairs), "distinct": len(set(pairs)), "steps": result.steps,
                           "tokens": result.training_tokens, "loss": result.loss, "seconds": result.seconds}
        write_json(folder / "training.json", found)
        return found

    def match(self, number: int) -> dict[str, Any]:
        """Plays the players of a round (0: the base) against the opponents; returns their scores."""
        from cairn.evaluation.games.players import ModelPlayer
        from cairn.evaluation.games.score import score_player

        recipe, file = self._recipe, self._out / "rounds" / str(number) / "match.json"
        if file.exists():
            return json.loads(file.read_text(encoding="utf-8"))
        settings, engine = recipe.evaluation, self._engine(number)
        found: dict[str, Any] = {}
        for name in recipe.names():
            if number == 0 and found:
                found[name] = next(iter(found.values()))  # both begin as the base
                continue
            player = ModelPlayer(
                engine, self._adapter(number, name), temperature=settings.temperature,
                max_new_tokens=recipe.play.max_new_tokens,
            )
            found[name] = score_player(
                self._game, player, settings.opponents, settings.games, recipe.seed, self._perfect
            )
        write_json(file, found)
        for name, scores in found.items():
            told = "; ".join(
                f"against {opponent} {one['score']:.3f} [{one['ci95'][0]:.3f}, {one['ci95'][1]:.3f}], "
                f"{one['illegal']} illegal" for opponent, one in scores.items()
            )
            self._say(f"{'before' if number == 0 else f'round {number}'}: {name}: {told}")
        return found

    def _records(self, number: int) -> list[GameRecord]:
        from cairn.evaluation.games.arena import GameRecord, PlayedMove
        from cairn.runs import read_jsonl

        rows = read_jsonl(self._out / "rounds" / str(number) / "games.jsonl")
        return [
            GameRecord(
                row["number"], row["opening"], tuple(row["seats"]), [PlayedMove(**move) for move in row["moves"]],
                tuple(row["points"]), row["illegal"],
            ) for row in rows
        ]  # fmt: skip

    def _folder(self, number: int, name: str) -> Path:
        return self._out / "rounds" / str(number) / "adapters" / name

    def _adapter(self, number: int, name: str) -> str | None:
        return name if number else None

    def _engine(self, number: int) -> Engine:
        """Returns the engine with a round's adapters; those of other rounds are closed."""
        from cairn.engines.torch_engine import TorchEngine

        if number not in self._engines:
            for engine in self._engines.values():
                engine.close()
            adapters = {name: self._folder(number, name) for name in self._recipe.names()} if number else {}
            opened = TorchEngine(self._base, adapters, device=self._recipe.device, dtype=self._recipe.dtype)
            self._engines = {number: opened}
        return self._engines[number]

    def _model(self) -> tuple[Any, Any]:
        from cairn.bases import load_base

        if self._trained is None:
            self._trained = load_base(self._base, dtype="float32", device=self._recipe.device)
        return self._trained
