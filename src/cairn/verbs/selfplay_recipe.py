"""The recipe of `cairn selfplay`.

    recipe: selfplay
    name: selfplay-nim
    game: nim
    options: {pile: 21}
    rounds: 6
    play: {games: 400, temperature: 1.0}
    training: {steps: 30, lora: {rank: 8}}

No torch here: a recipe is checked before anything heavy is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from cairn.config import StrictModel, load_config
from cairn.errors import ConfigError
from cairn.evaluation.games.registry import open_game
from cairn.training.finetune_plan import FinetuneConfig

__all__ = ["MatchSettings", "PlaySettings", "SelfplayRecipe", "load_selfplay"]


class PlaySettings(StrictModel):
    """How a round is played.

    Args:
        games: of a round, rounded up to an even number; openings are drawn evenly, each played from both seats.
        temperature: of the moves: above 0, or every game of an opening would be the same.
        guided_rounds: first rounds in which moves are held to the legal ones, chosen by the model's own probabilities.
            A base that does not know the form of a move would lose every game with its first word.
        draws: learn the moves of drawn games as well.
        illegal_wins: learn the moves of who won because the other one moved illegally.
        max_new_tokens: of a move, its end mark included.
    """

    games: int = Field(default=400, ge=2)
    temperature: float = Field(default=1.0, gt=0)
    guided_rounds: int = Field(default=1, ge=0)
    draws: bool = False
    illegal_wins: bool = False
    max_new_tokens: int = Field(default=6, ge=2)


class MatchSettings(StrictModel):
    """How every round is measured.

    Args:
        games: against each opponent, rounded up to an even number: openings drawn evenly, both seats.
        opponents: random, perfect; without `perfect` the game is never searched.
        temperature: of the model's moves; 0 takes the likeliest.
    """

    games: int = Field(default=200, ge=2)
    opponents: list[Literal["random", "perfect"]] = Field(default=["random", "perfect"], min_length=1)
    temperature: float = Field(default=0.0, ge=0)


class SelfplayRecipe(StrictModel):
    """A model that plays with itself.

    Args:
        recipe: says what kind of file this is.
        name: of the run.
        description: for its reader.
        base: "embedded:base", a folder, or a Hugging Face name.
        device: auto, cpu, cuda or mps.
        dtype: of the weights while playing: auto, float32, bfloat16 or float16.
        game: name of a game, or package.module:object.
        options: of the game.
        players: "one" adapter that has both seats and learns from both, or "two" adapters that play with each other and
            learn from their own wins.
        rounds: of play and training.
        play, evaluation: see above.
        training: of each adapter in each round, which goes on from the round before; the seed of the recipe counts.
        seed: of everything that is drawn.
    """

    recipe: Literal["selfplay"]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    base: str = "embedded:base"
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    game: str
    options: dict[str, Any] = {}
    players: Literal["one", "two"] = "one"
    rounds: int = Field(default=6, ge=1)
    play: PlaySettings = PlaySettings()
    training: FinetuneConfig = FinetuneConfig(steps=30)
    evaluation: MatchSettings = MatchSettings()
    seed: int = 0

    @model_validator(mode="after")
    def _one_seed(self) -> SelfplayRecipe:
        if self.training.seed:
            raise ValueError(f"training.seed: {self.training.seed}, but every round draws its own; set seed instead")
        return self

    def names(self) -> list[str]:
        """Returns the names of the adapters."""
        return ["player"] if self.players == "one" else ["first", "second"]


def load_selfplay(path: str | Path, overrides: Sequence[str] = ()) -> SelfplayRecipe:
    """Reads a recipe and makes sure that its game can be opened.

    Raises:
        ConfigError: an unknown key, a wrong value, no such game, or an option that it does not have.
    """
    recipe = load_config(SelfplayRecipe, path, overrides)
    game = open_game(recipe.game, recipe.options)
    if not game.openings():
        raise ConfigError(str(path), [f"the game {recipe.game} has no opening with these options"])
    return recipe
