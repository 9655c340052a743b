"""A recipe's changes of the model are checked against its own preset, before anything is read or trained."""

import pytest
from pydantic import ValidationError

from cairn.models.presets import PRESETS
from cairn.training.pretrain_recipe import ModelConfig

LAYERS = PRESETS["base"]["num_hidden_layers"]
HALVES = [list(range(LAYERS // 2)), list(range(LAYERS // 2, LAYERS))]


def changes(**sharing):
    return {"preset": "base", "changes": {"sharing": {"feed_forward": sharing}}}


def test_groups_of_the_recipe_s_own_layers_are_right():
    assert ModelConfig(**changes(scheme="groups", groups=HALVES)).changes


def test_groups_that_leave_layers_out_are_refused():
    with pytest.raises(ValidationError, match="feed_forward.groups do not cover layers 0, 1, 2, 3, allowed"):
        ModelConfig(**changes(scheme="groups", groups=HALVES[1:]))
    with pytest.raises(ValidationError, match="free is 4, allowed: a whole number of 1 to 3"):
        ModelConfig(**changes(scheme="interior", free=4))
