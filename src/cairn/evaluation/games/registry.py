"""Games by name: ours, and those that an installed package brings.

    [project.entry-points."cairn.games"]
    connect_four = "my_package.games:ConnectFour"

The object is a game, or a class that makes one: with `options_model` (a strict model) it is given checked options,
without one nothing. `package.module:object` in a recipe works without an entry point.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from cairn.config import parse_config
from cairn.errors import ConfigError
from cairn.evaluation.games.game import MEMBERS, Game
from cairn.plugins import load_named, plugin_names

__all__ = ["ENTRY_POINTS", "GAMES", "game_names", "open_game"]

ENTRY_POINTS = "cairn.games"
GAMES = {
    "nim": "cairn.evaluation.games.nim:Nim",
    "tic_tac_toe": "cairn.evaluation.games.tic_tac_toe:TicTacToe",
}


def game_names() -> list[str]:
    """Returns the names of all games, those of installed packages included."""
    return plugin_names(GAMES, ENTRY_POINTS)


def open_game(name: str, options: Mapping[str, Any] | None = None) -> Game:
    """Returns a game.

    Args:
        name: of `GAMES` or of an entry point, or `package.module:object`.
        options: of the game; see its options class.

    Raises:
        ConfigError: there is no such game, its module cannot be imported, the object is no game, or an option is wrong.
    """
    found = load_named(name, GAMES, ENTRY_POINTS, key="game", what="game")
    model = getattr(found, "options_model", None)
    if options and (model is None or not inspect.isclass(found)):
        raise ConfigError("options", [f"the game {name} takes no options, given: {', '.join(options)}"])
    if inspect.isclass(found):
        found = found(parse_config(model, dict(options or {}), "options")) if model is not None else found()
    missing = [member for member in MEMBERS if not hasattr(found, member)]
    if missing:
        raise ConfigError("game", [f"{name!r} is no game, it lacks {', '.join(missing)}"])
    return found
