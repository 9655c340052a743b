"""SNIPS: frames against ones written by hand, metrics against hand-computed values, and the recipe's examples."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cairn.data.examples import adapter_pairs, direct_pairs, read_examples
from cairn.engines.fake_engine import FakeEngine
from cairn.errors import ConfigError, DataError
from cairn.evaluation.tasks.registry import Task, task_by_name, task_options
from cairn.evaluation.tasks.snips import TASK, SnipsOptions, frame_f1, snips_stages
from cairn.evaluation.tasks.snips_frames import (
    INTENTS,
    SLOTS,
    frame,
    frame_text,
    read_frame,
    read_tags,
    tags_text,
)
from cairn.evaluation.tasks.snips_known import Lexicon
from cairn.stacks.runner import Runner
from cairn.verbs.comparison.recipe import ExperimentRecipe, load_recipe


def command(text: str, intent: str, **slots: str) -> dict:
    """A row of the data; each slot is looked up in the text, and fills it from its first place."""
    found = [
        {"name": name, "start": text.index(value), "end": text.index(value) + len(value), "value": value}
        for name, value in slots.items()
    ]
    return {"text": text, "intent": intent, "slots": sorted(found, key=lambda slot: slot["start"])}


ADD = command("Put Blue  Lantern on Mira's rainy day list", "AddToPlaylist", entity_name="Blue  Lantern",
              playlist_owner="Mira's", playlist="rainy day")  # fmt: skip
RATE = command("give this saga 4 of 6", "RateBook", object_select="this", object_part_of_series_type="saga",
               rating_value="4", best_rating="6")  # fmt: skip
FIND = command("where can I see The Tin Cook", "SearchCreativeWork", object_name="The Tin Cook")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = {"train": [ADD, RATE, {**FIND, "text": FIND["text"].upper(), "slots": []}], "test": [FIND, RATE]}
    rows["train"][2]["slots"] = [{**FIND["slots"][0], "value": "THE TIN COOK"}]
    for split, some in rows.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in some)
        (tmp_path / f"snips_{split}.jsonl").write_text(lines, encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="module")
def recipe(request: pytest.FixtureRequest) -> ExperimentRecipe:
    return load_recipe(request.config.rootpath / "recipes" / "snips.yaml")


def test_tags_and_frame_of_a_command() -> None:
    stages = snips_stages(ADD)
    assert stages["intent"] == "add"
    assert stages["numbered"] == "1 Put 2 Blue 3 Lantern 4 on 5 Mira's 6 rainy 7 day 8 list"
    assert stages["tags"] == "1 no 2 song 3 song 4 no 5 owner 6 list 7 list 8 no"
    assert json.loads(stages["frame"]) == {
        "intent": "AddToPlaylist",
        "slots": {"entity_name": "Blue Lantern", "playlist_owner": "Mira's", "playlist": "rainy day"},
    }
    assert frame({"command": ADD["text"], **stages}) == stages["frame"]


def test_the_list_knows_what_other_commands_taught() -> None:
    wet = command("is it wet in Bo Town in IN today", "GetWeather", city="Bo Town", timeRange="today")
    wet["slots"].append({"name": "state", "start": 24, "end": 26, "value": "IN"})
    dry = command("is it dry in bo town today", "GetWeather", city="bo town")
    rows = [wet, dry, command("play IN", "PlayMusic"), command("put it in there", "AddToPlaylist")]
    known = Lexicon(rows)
    assert known.known("Bo Town today") == "1 2 city, 3 time"
    assert known.known("BO town in Bo") == "1 2 city", "`in` fills a slot in 1 of 5 uses"
    assert known.known(wet["text"], own=wet) == "5 6 city", "today is known from this command alone"
    assert known.known(dry["text"], own=dry) == "5 6 city, 7 time" and known.known("sing") == "none"
    assert Lexicon([wet]).known(wet["text"], own=wet) == "none"


def test_a_saved_list_of_names_knows_what_the_list_knew(tmp_path: Path) -> None:
    tie = command("bo town by bo town", "PlayMusic", artist="bo town", track="town")
    tie["slots"] = [{"name": "track", "start": 0, "end": 7}, {"name": "artist", "start": 11, "end": 18}]
    rows = [ADD, RATE, FIND, tie]
    known = Lexicon(rows)
    known.save(tmp_path / "names.jsonl")
    again = Lexicon.load(tmp_path / "names.jsonl")
    for row in rows:  # among equals the first seen wins, so the order counts
        assert again.known(row["text"]) == known.known(row["text"]) != "none"
        assert again.known(row["text"], own=row) == known.known(row["text"], own=row)
    with (tmp_path / "names.jsonl").open("a") as file:
        file.write('{"words": "bo"}\n')
    with pytest.raises(DataError, match="not a name of a list") as error:
        Lexicon.load(tmp_path / "names.jsonl")
    assert "line 10" in str(error.value)


def test_no_training_command_finds_its_own_values_on_the_list(folder: Path) -> None:
    (row,) = TASK.load(folder, SnipsOptions(known=True)).train
    assert row["inputs"] == {"command": ADD["text"], "known": "none"}
    again = {**ADD, "text": ADD["text"].replace("Put", "put")}
    with (folder / "snips_train.jsonl").open("a") as file:
        file.write(json.dumps({**again, "text": again["text"] + " now"}) + "\n")
    assert [row["inputs"]["known"] for row in TASK.load(folder, SnipsOptions(known=True)).train] == [
        "2 3 song, 5 owner, 6 7 list"
    ] * 2


def test_every_slot_and_intent_has_one_short_word() -> None:
    assert len(set(SLOTS.values())) == len(SLOTS) == 39
    assert len(set(INTENTS.values())) == len(INTENTS) == 7
    assert "no" not in SLOTS


def test_tags_that_a_model_might_write() -> None:
    text = "play the quiet hour by Orm"
    assert read_tags(text, "1 no 2 no 3 disc 4 disc 5 no 6 band") == [("album", "quiet hour"), ("artist", "Orm")]
    assert read_tags(text, "3 disc 6 band") == [("album", "quiet"), ("artist", "Orm")]  # no tag: outside
    assert read_tags(text, "3 disc 4 band 6 what 9 band") == [("album", "quiet"), ("artist", "hour")]
    assert read_tags(text, "3 disc 3 band") == [("artist", "quiet")]  # the last tag of a number
    assert read_tags(text, "nothing of the kind") == []


WORDS = st.text(alphabet="abcxyz'0", min_size=1, max_size=6)


@given(
    st.lists(st.tuples(st.lists(WORDS, min_size=1, max_size=3), st.sampled_from([None, *SLOTS.values()])), max_size=6)
)
def test_values_come_back_from_the_tags(parts: list[tuple[list[str], str | None]]) -> None:
    parts = [part for place, part in enumerate(parts) if place == 0 or part[1] != parts[place - 1][1]]
    text, slots = "", []
    for words, name in parts:
        text += " " if text else ""
        if name is not None:
            slots.append((name, len(text), len(text) + len(" ".join(words))))
        text += " ".join(words)
    found = read_tags(text, tags_text(text, slots))
    assert found == [(name, text[start:end]) for name, start, end in slots]


def test_a_frame_is_read_as_it_was_written() -> None:
    slots = [("facility", "pool"), ("city", "Ulm"), ("facility", "bar")]
    text = frame_text("BookRestaurant", slots)
    assert json.loads(text)["slots"] == {"facility": ["pool", "bar"], "city": "Ulm"}
    intent, found = read_frame(text)
    assert intent == "BookRestaurant" and sorted(found) == sorted(slots)
    for broken in ("", "no JSON", "[]", '{"intent": "A"}', '{"intent": 3, "slots": {}}', '{"intent": "A", "slots": []}',
                   '{"intent": "A", "slots": {"b": 3}}', '{"intent": "A", "slots": {"b": [3]}}'):  # fmt: skip
        assert read_frame(broken) is None


def test_load_leaves_out_what_is_in_the_test(folder: Path) -> None:
    data = TASK.load(folder, SnipsOptions())
    assert [row["inputs"]["command"] for row in data.train] == [ADD["text"]]
    assert data.facts["counts"] == {"train": 1, "test": 2}
    assert data.facts["left_out"]["training commands that are test commands too"] == 2
    assert [question.task for question in data.test] == ["SearchCreativeWork", "RateBook"]
    assert data.test[1].stages["tags"] == "1 no 2 this 3 part 4 count 5 no 6 best"
    assert isinstance(TASK, Task) and task_by_name("snips") is TASK


def test_two_slots_of_one_name_side_by_side_are_not_trained(folder: Path) -> None:
    slots = [{"name": "timeRange", "start": 5, "end": 8, "value": "two"},
             {"name": "timeRange", "start": 9, "end": 12, "value": "six"}]  # fmt: skip
    row = {"text": "rain two six", "intent": "GetWeather", "slots": slots}
    (folder / "snips_train.jsonl").write_text("\n".join(json.dumps(one) for one in (ADD, row)))
    data = TASK.load(folder, SnipsOptions())
    assert len(data.train) == 1
    assert data.facts["left_out"]["training commands with two slots of one name side by side"] == 1


def test_train_questions_are_drawn_by_the_seed(folder: Path) -> None:
    rows = [command(f"find The Book {n}", "SearchCreativeWork", object_name=f"The Book {n}") for n in range(20)]
    (folder / "snips_train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    drawn = [
        [row["id"] for row in TASK.load(folder, SnipsOptions(train_questions=5, seed=seed)).train] for seed in (1, 1, 2)
    ]
    assert len(drawn[0]) == 5 and drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"intent": "MakeTea"}, "no intent of SNIPS: 'MakeTea'"),
        ({"slots": [{"name": "tea", "start": 0, "end": 4, "value": "give"}]}, "no slot of SNIPS: 'tea'"),
        ({"slots": [{"name": "city", "start": 1, "end": 4, "value": "give"}]}, "slot city is not where it says"),
        ({"slots": "none"}, "row 1: slots missing or of another type"),
    ],
)
def test_rows_that_are_wrong(folder: Path, change: dict, message: str) -> None:
    (folder / "snips_train.jsonl").write_text(json.dumps({**RATE, **change}))
    with pytest.raises(DataError, match=message):
        TASK.load(folder, SnipsOptions())


def test_a_missing_file_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"snips_train\.jsonl.*--set task\.folder"):
        TASK.load(tmp_path, SnipsOptions())
    with pytest.raises(ConfigError, match="train_question.*did you mean train_questions"):
        task_options(TASK, {"train_question": 3}, "recipe.yaml")


def test_scores_and_measures_by_hand(folder: Path) -> None:
    questions = TASK.load(folder, SnipsOptions()).test  # FIND: 1 slot; RATE: 4 slots
    right = frame_text("SearchCreativeWork", [("object_name", "The Tin Cook")])
    assert TASK.score(right, questions[0]) == 1.0
    assert TASK.score(right.replace("Tin Cook", "tin cook"), questions[0]) == 0.0
    assert TASK.score(right.replace("Creative", "Good"), questions[0]) == 0.0
    assert TASK.score("The Tin Cook", questions[0]) == 0.0
    shuffled = frame_text("RateBook", [("best_rating", "6"), ("rating_value", "4"), ("object_select", "this"),
                                       ("object_part_of_series_type", "saga")])  # fmt: skip
    assert TASK.score(shuffled, questions[1]) == 1.0
    # RATE answered with 3 slots, 2 of them right: with FIND, 3 right of 4 given and 5 gold: F1 = 6 / 9
    partly = frame_text("RateBook", [("best_rating", "6"), ("rating_value", "4"), ("object_name", "saga")])
    found = TASK.measures([right, partly], questions)
    assert found == {"intent_accuracy": 1.0, "slot_f1": pytest.approx(6 / 9), "well_formed": 1.0}
    found = TASK.measures(["no frame", partly], questions)
    assert found == {"intent_accuracy": 0.5, "slot_f1": pytest.approx(4 / 8), "well_formed": 0.5}


def test_f1_counts_a_value_as_often_as_it_is_there() -> None:
    twice = [("facility", "bar"), ("facility", "bar")]
    assert frame_f1([(twice, twice[:1])]) == pytest.approx(2 / 3)
    assert frame_f1([((), ())]) == 1.0
    assert frame_f1([((), twice)]) == 0.0


def test_the_examples_fit_the_recipe(folder: Path, recipe: ExperimentRecipe, tmp_path: Path) -> None:
    options = task_options(task_by_name(recipe.task.name), recipe.task.options, "snips.yaml")
    data = TASK.load(folder, options)
    file = tmp_path / "examples.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in data.train))
    examples = read_examples(file, recipe.stack)
    assert [tuple(pair) for pair in adapter_pairs(recipe.stack, "tags", examples)] == [
        (f"add: {snips_stages(ADD)['numbered']}\nKnown: none\n=", " " + snips_stages(ADD)["tags"])
    ]
    assert direct_pairs(recipe.stack, examples)[0].completion == " " + snips_stages(ADD)["frame"]


def test_the_stack_answers_with_a_frame(recipe: ExperimentRecipe) -> None:
    said = {"Wanted:": " rate", "=": " 1 no 2 this 3 part 4 count 5 no 6 best"}
    engine = FakeEngine(lambda request: said[request.prompt.split("\n")[-1]], adapters=["intent", "tags"])
    engine.capabilities = replace(engine.capabilities, constraints=True)
    trace = Runner(recipe.stack, engine).run([{"command": RATE["text"], "known": "none"}])[0]
    assert trace.answer == snips_stages(RATE)["frame"]
    assert not trace.violations
    assert [record.name for record in trace.stages if record.adapter is None] == ["numbered", "frame"]
