"""A small stack for tests: mention (map, kept) -> link -> follow (the same adapter) -> answer."""

from __future__ import annotations

from pathlib import Path

STACK = """
name: where
description: Finds who or what is where.
inputs: [story, question]
stages:
  - name: mention
    kind: map
    over: story
    split: sentences
    keep: "yes"
    join: " "
    prompt: "{question}\\n{item}\\nMentioned:"
    contract: {kind: choices, values: ["yes", "no"]}
    sampling: {max_new_tokens: 3}
  - name: link
    reads: [mention]
    prompt: "{mention}\\n{question}\\nWho:"
    contract: {kind: copied_from_input, fields: [mention, question], unit: words}
  - name: follow
    kind: map
    over: story
    split: sentences
    keep: "yes"
    join: " "
    reads: [link]
    adapter: mention
    prompt: "{link}\\n{item}\\nMentioned:"
    contract: {kind: choices, values: ["yes", "no"]}
  - name: answer
    reads: [follow]
    prompt: "{follow}\\n{question}\\nAnswer:"
"""
STORY = "John took the milk. Mary went to the garden. John went to the office."
QUESTION = "Where is the milk?"
INPUTS = {"story": STORY, "question": QUESTION}
REPLIES = {
    f"{QUESTION}\nJohn took": " yes",
    "Mary went to the garden.\nMentioned": " no",
    f"{QUESTION}\nJohn went": " no",
    "Who:": " John",
    "John\nJohn": " yes",
    "Answer:": " office",
}


def write_stack(folder: Path, text: str = STACK) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stack.yaml").write_text(text, encoding="utf-8")
    return folder / "stack.yaml"
