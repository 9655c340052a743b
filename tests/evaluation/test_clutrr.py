"""CLUTRR's gold hand-offs, held against made-up families whose relations are known; and its task."""

from __future__ import annotations

import json
import lzma
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cairn.bases import load_tokenizer
from cairn.data.examples import adapter_pairs, chain_pairs, direct_pairs, read_examples
from cairn.engines.base import GenerationRequest
from cairn.engines.fake_engine import FakeEngine
from cairn.errors import ConfigError, DataError
from cairn.evaluation.tasks.clutrr import TASK, ClutrrOptions, learn_forms, rule_answer, stage_example, story_edges
from cairn.evaluation.tasks.clutrr_kin import (
    RELATIONS,
    SELF,
    Edge,
    Place,
    full_walk,
    gold_walk,
    name_of,
    places,
    read_edges,
    read_place,
    shortest_walk,
    step,
)
from cairn.evaluation.tasks.registry import task_by_name, task_options
from cairn.models.tokenization import completion_ids, prompt_ids
from cairn.prompts import parse_output
from cairn.stacks.runner import Runner
from cairn.stacks.spec import StackSpec
from cairn.verbs.comparison.recipe import ExperimentRecipe, load_recipe

FORMS = ("In {head}'s house, {tail} is the {relation}.", "Ask {tail}, whom {head} calls {relation}!")


class Family:
    """Made-up people in four generations; of each only one parent is known, so that every relation is one of blood."""

    def __init__(self, seed: int) -> None:
        draw = random.Random(seed)
        self.parent: dict[str, str | None] = {}
        self.she: dict[str, bool] = {}
        generation: list[str | None] = [None]
        for size in (1, 3, 7, 14):
            born = [f"P{len(self.parent) + n}" for n in range(size)]
            for name in born:
                self.parent[name], self.she[name] = draw.choice(generation), draw.random() < 0.5
            generation = list(born)

    def ancestors(self, name: str) -> list[str]:
        above = self.parent[name]
        return [] if above is None else [above, *self.ancestors(above)]

    def relation(self, head: str, tail: str) -> str | None:
        """What tail is to head, by who descends from whom; None without a word for it."""
        mine, theirs = [head, *self.ancestors(head)], [tail, *self.ancestors(tail)]
        common = next(name for name in mine if name in theirs)
        words = {
            (1, 0): ("father", "mother"), (2, 0): ("grandfather", "grandmother"), (0, 1): ("son", "daughter"),
            (0, 2): ("grandson", "granddaughter"), (1, 1): ("brother", "sister"), (2, 1): ("uncle", "aunt"),
            (1, 2): ("nephew", "niece"),
        }.get((mine.index(common), theirs.index(common)))  # fmt: skip
        return words[self.she[tail]] if words else None

    def walks(self, hops: int, count: int, seed: int) -> Iterator[list[Edge]]:
        """Yields walks that come to nobody twice and end at a named relative.

        Nobody stands where the convention sees somebody else: a grandfather's son is never the father.
        """
        draw, people = random.Random(seed), sorted(self.parent)
        while count:
            start = here = draw.choice(people)
            walk: list[Edge] = []
            seen, line = {start}, {start, *self.ancestors(start)}
            while len(walk) < hops:
                near = [
                    (word, name)
                    for name in people
                    if name not in seen and (word := self.relation(here, name)) not in (None, "nephew", "niece")
                    if word in ("father", "mother", "grandfather", "grandmother")
                    or not (name in line or ("grand" in word and self.parent[name] in line))
                ]
                if not near:
                    break
                word, there = draw.choice(near)
                walk.append(Edge(here, word, there))
                seen.add(there)
                here = there
            if len(walk) == hops and self.relation(start, here) is not None:
                count -= 1
                yield walk


def record(name: str, walk: list[Edge], target: str) -> dict[str, Any]:
    sentences = [FORMS[(len(name) + n) % 2].format(**edge._asdict()) for n, edge in enumerate(walk)]
    told = list(sentences)
    random.Random(name).shuffle(told)
    people = [walk[0].head, *(edge.tail for edge in walk)]
    return {
        "id": name, "hops": len(walk), "story": " ".join(told), "ordered_story": " ".join(sentences),
        "query": [walk[0].head, walk[-1].tail], "target": target, "edges": [list(edge) for edge in walk],
        "family_seed": 7, "proof_uses_unsound_rule": False, "revisits_person": len(set(people)) < len(people),
    }  # fmt: skip


def records(hops: int, count: int, seed: int = 0) -> list[dict[str, Any]]:
    family = Family(seed)
    walks = family.walks(hops, count, seed)
    return [
        record(f"{hops}x{seed}x{n}", walk, family.relation(walk[0].head, walk[-1].tail) or "")
        for n, walk in enumerate(walks)
    ]


def looped() -> dict[str, Any]:
    """A chain that comes back to its second person before it goes on to the last."""
    walk = [
        Edge("Ann", "son", "Bo"), Edge("Bo", "sister", "Cleo"), Edge("Cleo", "brother", "Bo"), Edge("Bo", "son", "Dan"),
    ]  # fmt: skip
    return record("looped", walk, "grandson")


@pytest.fixture(scope="module")
def recipe(request: pytest.FixtureRequest) -> ExperimentRecipe:
    return load_recipe(request.config.rootpath / "recipes" / "clutrr.yaml")


@pytest.mark.parametrize("hops", [1, 2, 3, 5, 8, 10])
def test_places_of_long_walks_name_the_true_relation(hops: int) -> None:
    for seed in range(4):
        family = Family(seed)
        for walk in family.walks(hops, 25, seed):
            reached = places([edge.relation for edge in walk])
            for edge, place in zip(walk, reached, strict=True):  # on the way too, wherever the relation has a name
                known = family.relation(walk[0].head, edge.tail)
                assert known is None or name_of(place) == known
                assert read_place(place.text) == place


@pytest.mark.parametrize(
    ("relations", "name"),
    [
        ("wife mother", "mother-in-law"), ("husband brother father", "father-in-law"), ("wife son", "son"),
        ("daughter husband", "son-in-law"), ("son wife daughter", "granddaughter"), ("father wife", "mother"),
        ("sister husband son", "nephew"), ("mother sister daughter brother mother", "aunt"), ("son uncle", "brother"),
        ("daughter aunt", "sister"), ("granddaughter mother brother", "son"), ("wife sister father", "father-in-law"),
        ("wife husband sister", "sister"), ("father daughter", "sister"), ("daughter father mother", "mother"),
    ],
)  # fmt: skip
def test_in_laws_and_conventions(relations: str, name: str) -> None:
    assert name_of(places(relations.split())[-1]) == name


def test_every_relation_is_a_place_and_a_cousin_has_none() -> None:
    assert [name_of(step(SELF, relation)) for relation in RELATIONS] == list(RELATIONS)
    cousin = places(["mother", "brother", "son"])[-1]
    assert cousin == Place(up=2, down=2, who="he") and cousin.text == "up up down down he"
    with pytest.raises(DataError, match="a place without a name"):
        name_of(cousin)
    with pytest.raises(DataError, match="no such relation .did you mean sister"):
        step(SELF, "sistr")
    with pytest.raises(DataError, match="married in"):
        places(["son", "wife", "mother"])
    for text in ("", "up he up", "down up she", "she", "up spouse down he", "self self"):
        with pytest.raises(DataError, match="not a place"):
            read_place(text)


def test_walks_through_a_story_that_comes_back() -> None:
    row = looped()
    chain = [Edge(*edge) for edge in row["edges"]]
    assert gold_walk(chain, "Dan") == chain
    assert gold_walk(chain, "Cleo") == chain[:2]  # a walk ends where the relative is reached first
    assert [edge.line for edge in shortest_walk(chain, "Ann", "Dan")] == ["Ann: son Bo", "Bo: son Dan"]
    for seed in range(6):
        told = random.Random(seed).sample(chain, len(chain))
        walk = full_walk(told, "Ann", "Dan")
        assert sorted(walk) == sorted(chain) and gold_walk(walk, "Dan")[-1].tail == "Dan"
    with pytest.raises(DataError, match="not a chain"):
        gold_walk(chain[::-1], "Ann")
    with pytest.raises(DataError, match="does not reach"):
        gold_walk(chain, "Eve")
    for walker in (shortest_walk, full_walk):
        with pytest.raises(DataError, match="Dan to Ann"):
            walker(chain, "Dan", "Ann")
    assert read_edges("\n".join(edge.line for edge in chain)) == chain
    with pytest.raises(DataError, match="not a fact"):
        read_edges("Ann has a son")


def test_an_example_has_the_hand_offs_of_its_record() -> None:
    example = stage_example(looped())
    told = {FORMS[n % 2].format(**Edge(*edge)._asdict()): Edge(*edge).line for n, edge in enumerate(looped()["edges"])}
    assert sorted(example["stages"]["edges"]) == sorted(told.values())
    walk = ["Ann: son Bo", "Bo: sister Cleo", "Cleo: brother Bo", "Bo: son Dan", "Dan: done"]
    assert example["stages"]["walk"] == walk
    assert example["stages"]["place"] == ["down he", "down she", "down he", "down down he"]
    assert example["stages"]["answer"] == example["answer"] == "grandson"
    assert set(example["inputs"]) == {"story", "person", "relative"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "nephew"}, "the places give 'grandson'"),
        ({"story": "Ann likes Bo."}, "story and ordered_story differ"),
        ({"ordered_story": "Ann likes Bo."}, "not one sentence per edge"),
        ({"edges": [["Ann", "son", "Bo"], ["Bo", "aunt", "Cleo"], ["Cleo", "brother", "Bo"], ["Bo", "son", "Dan"]]},
         "a sentence does not tell its edge"),
    ],
)  # fmt: skip
def test_a_record_that_contradicts_itself_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        stage_example({**looped(), **change})


def test_forms_are_learnt_from_stories_and_rules_answer_by_them() -> None:
    known = records(3, 20)
    forms = learn_forms(known)
    assert len(forms) == len(FORMS)
    asked = [*records(10, 20, seed=1), looped()]
    for row in asked:
        inputs = {"story": row["story"], "person": row["query"][0], "relative": row["query"][1]}
        assert rule_answer(inputs, forms) == row["target"]
    assert rule_answer({"story": "Once upon a time.", "person": "Ann", "relative": "Bo"}, forms) == ""
    assert sorted(story_edges(asked[0])) == sorted(Edge(*edge) for edge in asked[0]["edges"])


def test_examples_are_right_for_the_recipe_and_fit_its_base(tmp_path: Path, recipe: ExperimentRecipe) -> None:
    rows = [stage_example(row) for row in [*records(2, 5), *records(4, 5), *records(10, 20), looped()]]
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps({**row, "task": "clutrr"}) + "\n" for row in rows))
    examples = read_examples(file, recipe.stack)
    assert [example.answer for example in examples] == [row["answer"] for row in rows]

    tokenizer = load_tokenizer(recipe.stack.base)
    stages = {name: adapter_pairs(recipe.stack, name, examples) for name in recipe.stack.adapter_names()}
    whole = {"direct": direct_pairs(recipe.stack, examples), "chain": chain_pairs(recipe.stack, examples)}
    longest_of: dict[str, int] = {}
    for name, pairs in {**stages, **whole}.items():
        sizes = [(len(prompt_ids(tokenizer, p)), len(completion_ids(tokenizer, c))) for p, c in pairs]
        longest_of[name] = max(map(sum, sizes))
        if name in stages:  # room for the longest right output, its end mark included
            assert max(written for _, written in sizes) <= recipe.stack.stage(name).sampling.max_new_tokens
    assert longest_of["edges"] < 64 and longest_of["place"] < 64
    assert max(longest_of.values()) < 1024


def ruled(recipe: ExperimentRecipe, *names: str) -> StackSpec:
    rows = recipe.stack.model_dump(exclude_unset=True)
    for stage in rows["stages"]:
        if stage["name"] in names:
            for key in ("prompt", "sampling", "constrain"):
                stage.pop(key, None)
            stage["rule"] = f"cairn.evaluation.tasks.clutrr_kin:{stage['name']}_rule"
            if stage["name"] == "walk":
                stage["reads"] = ["edges"]
    return StackSpec(**rows)


def reader(rows: list[dict[str, Any]]) -> Callable[[GenerationRequest], str]:
    """Answers the calls of `edges` as a perfect model would."""
    facts = {}
    for row in rows:
        example = stage_example(row)
        order = [edge.line for edge in story_edges(row)]
        assert example["stages"]["edges"] == order
        for sentence in {FORMS[k].format(**edge._asdict()) for edge in story_edges(row) for k in (0, 1)}:
            edge = next(e for e in story_edges(row) if sentence in {form.format(**e._asdict()) for form in FORMS})
            facts[f"Sentence: {sentence}\nFact:"] = edge.line
    return lambda request: facts[request.prompt]


def test_the_rules_may_stand_in_the_stack(recipe: ExperimentRecipe) -> None:
    rows = [*records(2, 10), *records(10, 30), looped()]
    spec = ruled(recipe, "walk", "place", "answer")
    engine = FakeEngine(reader(rows), adapters=["edges"])
    traces = Runner(spec, engine).run([stage_example(row)["inputs"] for row in rows])
    assert [parse_output(trace.answer) for trace in traces] == [row["target"] for row in rows]
    assert not any(trace.violations for trace in traces)
    assert [len(trace.stage("walk").calls) for trace in traces[-2:]] == [11, 3]  # the way without the loop, and done


def write(folder: Path, **splits: list[dict[str, Any]]) -> None:
    for split, rows in splits.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl.xz").write_bytes(lzma.compress(text.encode()))


def test_flagged_stories_are_counted_and_scored_apart(tmp_path: Path) -> None:
    wrong = {**records(2, 1, seed=3)[0], "id": "odd", "target": "wife", "proof_uses_unsound_rule": True}
    write(tmp_path, train=[*records(2, 4), *records(3, 4), wrong], test=[*records(3, 4, seed=2), looped(), wrong])
    task = task_by_name("clutrr")
    data = task.load(tmp_path, task_options(task, {"train_hops": [2, 3], "test_hops": [2, 3, 4]}, "here"))
    assert len(data.train) == 8 and {row["group"] for row in data.train} == {"family-7"}
    assert data.facts["left_out_of_training"]["by_flags"] == {"unsound": 1}
    assert data.facts["counts"]["test_by_flags"] == {"plain": 4, "revisits": 1, "unsound": 1}
    assert data.facts["counts"]["test_without_gold_hand_offs"] == 1
    assert data.facts["rule_baseline"] == pytest.approx(5 / 6)
    by_id = {question.id: question for question in data.test}
    assert by_id["2hops-unsound-odd"].stages == {} and by_id["2hops-unsound-odd"].answer == "wife"
    assert by_id["4hops-revisits-looped"].stages["walk"][-1] == "Dan: done"
    assert sorted(task.groups(question) for question in data.test) == ["02 hops", *["03 hops"] * 4, "04 hops"]
    answers = ["none" if "looped" in question.id else question.answer.title() for question in data.test]
    scores = [task.score(answer, question) for answer, question in zip(answers, data.test, strict=True)]
    assert sum(scores) == 5
    assert task.measures(answers, data.test) == {"not_unsound": 0.8, "not_flagged": 1.0}


def test_draws_and_guide(tmp_path: Path) -> None:
    write(tmp_path, train=[*records(2, 12), *records(3, 30), *records(4, 5)], test=records(5, 6))
    options = {"train_hops": [2, 3], "train_questions": 3, "test_hops": [5], "test_questions": 2}
    first, again, other = (TASK.load(tmp_path, ClutrrOptions(**options, seed=seed)) for seed in (1, 1, 2))
    assert first == again and first.train != other.train
    assert [len(row["stages"]["edges"]) for row in first.train] == [2, 2, 2, 3, 3, 3] and len(first.test) == 2
    with pytest.raises(DataError, match="test_questions: too few stories of 5 hops"):
        TASK.load(tmp_path, ClutrrOptions(**{**options, "test_questions": 7}))

    (tmp_path / "test.jsonl.xz").unlink()  # a guide never opens it
    data = TASK.load(tmp_path, ClutrrOptions(train_hops=[2, 3], test_hops=[3, 4], guide=True))
    asked = {question.id.split("-", 2)[2] for question in data.test}
    assert {name for name in asked if name.startswith("4x")} == {row["id"] for row in records(4, 5)}
    assert any(name.startswith("3x") for name in asked)
    assert not asked & {row["id"] for row in data.train} and len(data.train) + len(asked) == 47
    with pytest.raises(DataError, match="test.jsonl"):
        TASK.load(tmp_path, ClutrrOptions())


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--set task.folder"):
        TASK.load(tmp_path, ClutrrOptions())
    write(tmp_path, train=[{key: value for key, value in looped().items() if key != "edges"}])
    with pytest.raises(DataError, match="row 1: edges missing or of another type"):
        TASK.load(tmp_path, ClutrrOptions(guide=True))
    with pytest.raises(ConfigError, match="hops"):
        task_options(TASK, {"hops": [2]}, "here")
