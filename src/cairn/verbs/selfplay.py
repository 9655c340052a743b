"""`cairn selfplay`: a model plays a game with itself, learns from the winner's moves, and plays again.

    before ── match against chance and perfection
    round 1   play at temperature ── moves of the winners ── LoRA ── match
    round 2   play with it        ── moves of the winners ── LoRA goes on ── match
    ...
    OUT/rounds/N/games.jsonl      every game, every move       OUT/rounds/N/adapters/NAME   what was learnt
    OUT/rounds/N/match.json       points, intervals            OUT/result.json, adapters/   the last round's

Each part is kept as it is made: killed at any moment, the same command goes on, and ends with the same games and the
same weights. Learning from the better of one's own samples, round after round, is expert iteration without a search.

Source: expert iteration, arXiv 1705.08439, section 3; learning from one's own filtered samples, ReST, arXiv 2308.08998,
section 3.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cairn.config import StrictModel
from cairn.files import atomic_folder, write_json
from cairn.runs import RunFolder, versions
from cairn.verbs.selfplay_recipe import SelfplayRecipe, load_selfplay
from cairn.verbs.selfplay_rounds import Rounds

__all__ = ["selfplay", "selfplay_recipe"]

Say = Callable[[str], Any]


def selfplay(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="A recipe of kind `selfplay`.")],
    out: Annotated[Path | None, typer.Option("--out", help="Run folder; default runs/NAME.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result, and nothing else, on stdout.")] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe; repeatable.")
    ] = None,
) -> None:
    """Let a tiny model play a text game with itself, and learn from the winner's moves.

    A round is many games side by side at a temperature; the moves of who won become training pairs, and the LoRA
    adapter goes on from the round before. Before the first round and after each one the model plays against chance and
    against a perfect player, with intervals; an illegal move loses the game. Games: nim, tic_tac_toe, and those that an
    installed package names in its entry points `cairn.games` (docs/selfplay.md).

      recipe: selfplay
      name: nim
      game: nim
      options: {pile: 21}
      rounds: 6
      play: {games: 400, temperature: 1.0}
      training: {steps: 30, lora: {rank: 8}}

    The same seed gives the same games and weights. Killed at any moment, the same command goes on where it was.

    Examples:

      cairn selfplay recipes/selfplay-nim.yaml
      cairn selfplay recipes/selfplay-tic-tac-toe.yaml --set rounds=3 --set play.games=200
      cairn selfplay recipes/selfplay-nim.yaml --set players=two --out runs/nim-two
    """
    say: Say = (lambda text: print(text, file=sys.stderr, flush=True)) if as_json else (lambda t: print(t, flush=True))
    loaded = load_selfplay(recipe, overrides or [])
    target = out or Path("runs") / loaded.name
    result = selfplay_recipe(loaded, target, recipe_folder=recipe.parent, say=say)
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
        return
    for line in _table(result):
        print(line)
    print(f"\nresult    {target / 'result.json'}\nadapters  {target / 'adapters'}")


class _Settings(StrictModel):
    """Everything that decides what comes out: two runs are the same if these are equal."""

    recipe: dict[str, Any]
    base: dict[str, Any]


def selfplay_recipe(
    recipe: SelfplayRecipe, out: str | Path, *, recipe_folder: str | Path = ".", say: Say = lambda text: None
) -> dict[str, Any]:
    """Plays and trains what is not done yet of a recipe.

    Args:
        recipe: as `load_selfplay` gives it.
        out: run folder.
        recipe_folder: where a base that is a relative path starts from, if it is there.
        say: takes lines for the reader.

    Returns:
        What result.json holds.

    Raises:
        ConfigError: the game cannot be opened, or `out` holds another run.
        CheckpointError, TokenizerError, AdapterError: the base or an adapter cannot be used.
        EngineError: a round has no winner to learn from, or the game is too large for the perfect player.
        StorageError, KeyboardInterrupt: as `training.finetune.train_adapter`.
    """
    from cairn.evaluation.games.players import PerfectPlayer
    from cairn.evaluation.games.registry import open_game
    from cairn.evaluation.games.score import change, frame
    from cairn.identity import base_identity

    out = Path(out)
    local = Path(recipe_folder) / recipe.base
    base = str(local) if not recipe.base.startswith("embedded:") and (local / "config.json").is_file() else recipe.base
    game, perfect = open_game(recipe.game, recipe.options), PerfectPlayer()
    identity = base_identity(base)
    run = RunFolder(out, _Settings(recipe=recipe.model_dump(mode="json"), base=identity), seed=recipe.seed)
    if run.finished:
        say(f"played already: {out}")
        return json.loads((out / "result.json").read_text(encoding="utf-8"))
    work = Rounds(recipe, base, identity, game, perfect, out, say)
    say(f"{recipe.name}: {recipe.rounds} rounds of {recipe.play.games} games of {game.name} on {recipe.base} -> {out}")
    match = recipe.evaluation
    known = frame(game, match.opponents, match.games, recipe.seed, perfect)
    rounds = [{"round": 0, "players": work.match(0)}]
    for number in range(1, recipe.rounds + 1):
        played = work.play(number)
        trained = work.train(number)
        players = work.match(number)
        first = rounds[0]["players"]
        changes = {name: change(first[name], players[name], recipe.seed) for name in players}
        rounds.append({"round": number, "play": played, "training": trained, "players": players, "change": changes})
    result = {
        "name": recipe.name, "game": game.name, "options": recipe.options, "base": identity, "seed": recipe.seed,
        "frame": {name: _without_points(scores) for name, scores in known.items()},
        "rounds": [
            {**one, "players": {name: _without_points(scores) for name, scores in one["players"].items()}}
            for one in rounds
        ],
        "versions": versions(recipe.seed),
    }  # fmt: skip
    with atomic_folder(out / "adapters") as folder:
        shutil.copytree(out / "rounds" / str(recipe.rounds) / "adapters", folder, dirs_exist_ok=True,
                        ignore=shutil.ignore_patterns(".*"))  # fmt: skip
    write_json(out / "result.json", result)
    run.finish(["result.json", *(f"adapters/{name}/adapter_model.safetensors" for name in recipe.names())])
    return result


def _without_points(scores: Mapping[str, Any]) -> dict[str, Any]:
    return {opponent: {key: value for key, value in one.items() if key != "points"} for opponent, one in scores.items()}


def _table(result: Mapping[str, Any]) -> list[str]:
    """Returns the lines of the table: points per game with their 95% interval, and illegal moves."""
    opponents = list(next(iter(result["frame"].values())))
    lines = ["", f"{'points per game':<18}" + "".join(f"{'against ' + name:<26}" for name in opponents) + "best moves"]

    def line(title: str, scores: Mapping[str, Any]) -> str:
        cells = [f"{one['score']:.3f} [{one['ci95'][0]:.3f}, {one['ci95'][1]:.3f}]" for one in scores.values()]
        lost = sum(one["illegal"] for one in scores.values())
        best, mattered = (sum(one.get(key, 0) for one in scores.values()) for key in ("best", "mattered"))
        share = f"{best / mattered:.0%} of {mattered}" if mattered else "-"
        return f"{title:<18}" + "".join(f"{cell:<26}" for cell in cells) + share + (f", {lost} illegal" if lost else "")

    lines += [line(f"({name} player)", scores) for name, scores in result["frame"].items()]
    for one in result["rounds"]:
        title = "before" if one["round"] == 0 else f"round {one['round']}"
        for name, scores in one["players"].items():
            lines.append(line(title if len(one["players"]) == 1 else f"{title} {name}", scores))
    last = result["rounds"][-1]
    for name, changes in last["change"].items():
        told = "; ".join(
            f"against {opponent} {found['difference']:+.3f} [{found['ci95'][0]:+.3f}, {found['ci95'][1]:+.3f}]"
            for opponent, found in changes.items()
        )
        lines.append(f"{name}: last round minus before, paired by game: {told}")
    return lines
