"""A stack without a model: the scripted engine shows what each stage is asked, and what is handed on.

    python examples/scripted_stack.py

The public FakeEngine stands where a model would, so that a stack's plumbing can be tested in milliseconds.
"""

from cairn.config import parse_config
from cairn.engines.fake_engine import FakeEngine
from cairn.stacks.runner import Runner
from cairn.stacks.spec import StackSpec
from cairn.stacks.trace import format_trace

SPEC = {
    "name": "who-has-it",
    "inputs": ["notes", "question"],
    "stages": [
        {
            "name": "relevant", "kind": "map", "over": "notes", "split": "lines", "keep": "yes",
            "prompt": "Question: {question}\nNote: {item}\nHelps:",
            "contract": {"kind": "choices", "values": ["yes", "no"]},
        },
        {"name": "answer", "reads": ["relevant"], "prompt": "Notes: {relevant}\nQuestion: {question}\nAnswer:"},
    ],
}  # fmt: skip


def main() -> str:
    spec = parse_config(StackSpec, SPEC, "scripted_stack.py")
    engine = FakeEngine(
        lambda request: ("yes" if "ladder" in request.prompt.split("Note:")[1] else "no")
        if "Note:" in request.prompt
        else "Petra",
        adapters=spec.adapter_names(),
    )
    notes = "Olof has the rope.\nPetra has the ladder.\nThe gate is shut."
    trace = Runner(spec, engine).run([{"notes": notes, "question": "Who has the ladder?"}])[0]
    print(format_trace(trace, width=80))
    return trace.answer


if __name__ == "__main__":
    main()
