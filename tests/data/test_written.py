"""A teacher writes texts: asked once each, refused prompts left out, the text put together as the settings say."""

import json

import pytest

from cairn.config import parse_config
from cairn.data.teacher import EngineTeacher
from cairn.data.written import WrittenConfig, write_teacher_text
from cairn.engines.base import Generation
from cairn.engines.fake_engine import FakeEngine
from cairn.errors import DataError, InputError

DOCUMENTS = [f"Story {number}: the river was wide and the old boat lay at the hill." for number in range(6)]


def settings(tmp_path, **changes):
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    return parse_config(WrittenConfig, {
        "teacher": {"kind": "huggingface", "model": "embedded:base", "sampling": {"max_new_tokens": 9}},
        "prompts": {"name": "stories", "path": "prompts.jsonl", "licence": "made by a test"},
        "documents": 4, "prompt_characters": 20, "licence": "made by a test", **changes,
    }, "test")  # fmt: skip


def write(tmp_path, engine, **changes):
    said = []
    path = write_teacher_text(
        settings(tmp_path, **changes), EngineTeacher(engine, "fake"), tmp_path / "out", seed=1, root=tmp_path,
        say=said.append,
    )  # fmt: skip
    return [json.loads(line)["text"] for line in path.read_text().splitlines()], said


def test_beginnings_end_at_a_space_and_are_continued(tmp_path):
    engine = FakeEngine(lambda request: " sank.")
    texts, _ = write(tmp_path, engine)
    assert [request.prompt for request in engine.requests] == [f"Story {n}: the river" for n in range(4)]
    assert texts == [f"Story {n}: the river sank." for n in range(4)]
    assert len({request.sampling.seed for request in engine.requests}) == 4
    assert write(tmp_path, FakeEngine([]))[0] == texts  # whole: nobody is asked


def test_an_instructed_teacher_and_bare_answers(tmp_path):
    engine = FakeEngine(lambda request: "A tale. ")
    texts, _ = write(tmp_path, engine, ask="Go on with: {beginning}", keep_beginning=False)
    assert engine.requests[0].prompt == "Go on with: Story 0: the river" and texts == ["A tale."] * 4
    (tmp_path / "out" / "text.jsonl").unlink()
    joined, _ = write(tmp_path, FakeEngine([]), ask="Go on with: {beginning}")
    assert joined[0] == "Story 0: the river A tale."


class Picky(FakeEngine):
    """Refuses one prompt; every second answer is cut off."""

    def generate(self, requests):
        if any("Story 2" in request.prompt for request in requests):
            raise InputError("too long")
        return [Generation(" sank", 4, 9, "length" if "1" in one.prompt else "stop", 0.1) for one in requests]


@pytest.mark.parametrize(("keep_cut", "kept"), [(True, [0, 1, 3]), (False, [0, 3])])
def test_refused_prompts_and_cut_answers(tmp_path, keep_cut, kept):
    texts, said = write(tmp_path, Picky(), keep_cut=keep_cut)
    assert texts == [f"Story {number}: the river sank" for number in kept]
    assert said[-1].startswith(f"written: {len(kept)} texts of 4 prompts (1 refused by the teacher)")


def test_too_few_beginnings_and_empty_answers_are_errors(tmp_path):
    with pytest.raises(DataError, match="stories has too few different beginnings: 6. Allowed: written.documents = 7"):
        write(tmp_path, FakeEngine([]), documents=7)
    with pytest.raises(DataError, match="the teacher wrote no text that can be kept: '4 prompts'"):
        write(tmp_path, FakeEngine(lambda request: " "))
