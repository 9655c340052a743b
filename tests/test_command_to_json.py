"""The example that turns commands into JSON calls: what it lets through, what it refuses, and why."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cairn.engines.fake_engine import FakeEngine
from cairn.errors import CairnError, InputError
from cairn.evaluation.tasks.snips_frames import SLOTS
from cairn.stacks.runner import Runner
from cairn.verbs.comparison.recipe import load_recipe
from examples.command_to_json import SLOTS_OF, answer, main

COMMAND = "put the quiet hour on my evening list"
TAGS = "1 no 2 song 3 song 4 song 5 no 6 owner 7 list 8 no"


@pytest.fixture
def runner(request: pytest.FixtureRequest) -> Callable[[str, str], Runner]:
    spec = load_recipe(request.config.rootpath / "recipes" / "snips.yaml").stack

    def make(intent: str, tags: str) -> Runner:
        engine = FakeEngine({"Wanted:": f" {intent}", "=": f" {tags}"}, adapters=["intent", "tags"])
        engine.capabilities = replace(engine.capabilities, constraints=True)
        return Runner(spec, engine)

    return make


def test_a_call_is_printed(runner: Callable, capsys: pytest.CaptureFixture) -> None:
    refused, times = answer(runner("add", TAGS), [COMMAND, "", f"  {COMMAND}\n"], repeat=2)
    lines = capsys.readouterr().out.splitlines()
    assert refused == 0 and len(times) == 4 and len(lines) == 2
    call = json.loads(lines[0].split(" ms  ", 1)[1])
    slots = {"entity_name": "the quiet hour", "playlist_owner": "my", "playlist": "evening"}
    assert call == {"intent": "AddToPlaylist", "slots": slots}


@pytest.mark.parametrize(
    ("intent", "tags", "reason"),
    [
        ("rate", TAGS, "RateBook has no slot entity_name"),
        ("add", " ".join(f"{number} no" for number in range(1, 9)), "no slot was found"),
        ("add", "what?", "promised a label for each of 8 words"),
        ("add", TAGS.replace("owner", "own"), "promised labels among"),
    ],
)
def test_a_call_is_refused(
    runner: Callable, capsys: pytest.CaptureFixture, intent: str, tags: str, reason: str
) -> None:
    refused, _ = answer(runner(intent, tags), [COMMAND])
    printed = capsys.readouterr().out
    assert refused == 1 and "refused: " in printed and reason in printed


def test_a_command_that_is_too_long_stops_no_other(runner: Callable, capsys: pytest.CaptureFixture) -> None:
    made = runner("add", TAGS)
    write = made.engine.generate

    def generate(requests: list) -> list:
        if any(len(one.prompt) > 400 for one in requests):
            raise InputError("the choices do not fit the output", value=len(requests))
        return write(requests)

    made.engine.generate = generate
    refused, times = answer(made, ["word " * 100, COMMAND])
    lines = capsys.readouterr().out.splitlines()
    assert refused == 1 and len(times) == 2
    assert "refused: the choices do not fit" in lines[0] and '"intent"' in lines[1]


def test_options_may_stand_before_the_commands(tmp_path: Path) -> None:
    with pytest.raises(CairnError, match="stack"):  # not argparse's own "unrecognized arguments"
        main(["--stack", str(tmp_path / "stack"), "--repeat", "2", COMMAND])


def test_every_slot_belongs_to_an_intent() -> None:
    assert set().union(*SLOTS_OF.values()) == set(SLOTS.values())
