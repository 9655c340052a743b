"""A user's command becomes a checked JSON call, with a stack that was trained on SNIPS.

    python examples/command_to_json.py "put the quiet hour on my evening list"
    python examples/command_to_json.py < commands.txt
    python examples/command_to_json.py --stack OUT/seed-0/stack --names snips_train.jsonl.xz "play some jazz"

Prints one line a command: the call as JSON, or why it is refused, and the milliseconds from text to checked call. A
call is refused if a stage broke its contract, a slot does not belong to the intent, a value does not stand in the
command, or the command is too long. The stack is the one beside this file, examples/snips, or another that `cairn
compare recipes/snips.yaml` left. `--names` is its list of known names, or a file of commands with their slots that
makes one; a stack with a names.jsonl.xz of its own takes that, any other does without. The exit status is 1 if any
command was refused. `--repeat N` asks everything N times and ends with the median and the slowest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from cairn.errors import InputError
from cairn.evaluation.tasks.snips_frames import INTENTS
from cairn.evaluation.tasks.snips_known import Lexicon
from cairn.evaluation.textfiles import read_rows
from cairn.stacks.runner import Runner
from cairn.stacks.trace import Trace
from cairn.verbs.run import open_engine, open_stack

SHIPPED = Path(__file__).with_name("snips")

# intent -> the slots that its commands fill in SNIPS
SLOTS_OF: dict[str, set[str]] = {
    "AddToPlaylist": {"artist", "entity_name", "music_item", "playlist", "playlist_owner"},
    "BookRestaurant": {
        "city", "country", "cuisine", "facility", "party_size_description", "party_size_number", "poi",
        "restaurant_name", "restaurant_type", "served_dish", "sort", "spatial_relation", "state", "timeRange",
    },
    "GetWeather": {
        "city", "condition_description", "condition_temperature", "country", "current_location", "geographic_poi",
        "spatial_relation", "state", "timeRange",
    },
    "PlayMusic": {"album", "artist", "genre", "music_item", "playlist", "service", "sort", "track", "year"},
    "RateBook": {
        "best_rating", "object_name", "object_part_of_series_type", "object_select", "object_type", "rating_unit",
        "rating_value",
    },
    "SearchCreativeWork": {"object_name", "object_type"},
    "SearchScreeningEvent": {
        "location_name", "movie_name", "movie_type", "object_location_type", "object_type", "spatial_relation",
        "timeRange",
    },
}  # fmt: skip


def faults(trace: Trace) -> list[str]:
    """Returns why the call of a trace must not be made; empty if it may."""
    if trace.violations:
        return trace.violations
    found = []
    call, command = json.loads(trace.answer), " ".join(trace.inputs["command"].split())
    if call["intent"] not in INTENTS.values():
        return [f"no such intent: {call['intent']}"]
    if not call["slots"]:
        found.append("no slot was found")
    for name, value in call["slots"].items():
        if name not in SLOTS_OF[call["intent"]]:
            found.append(f"{call['intent']} has no slot {name}")
        found += [f"{text!r} is not in the command" for text in _texts(value) if text not in command]
    return found


def _texts(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value]


def known_names(path: Path | None) -> Lexicon | None:
    """Returns the list in a file that `Lexicon.save` wrote, or the one that a file of commands makes."""
    if path is None:
        return None
    saved = "words" in next(read_rows(path), {})
    return Lexicon.load(path) if saved else Lexicon(list(read_rows(path)))


def inputs(command: str, names: Lexicon | None) -> dict[str, str]:
    """Returns the inputs of the stack for a command."""
    return {"command": command, "known": (names or Lexicon([])).known(command)}


def answer(
    runner: Runner, commands: Iterable[str], repeat: int = 1, names: Lexicon | None = None
) -> tuple[int, list[float]]:
    """Prints the call of every command; returns (commands refused, milliseconds of every answer)."""
    refused, times = 0, []
    for command in (line.strip() for line in commands):
        if not command:
            continue
        for _ in range(repeat):
            started = time.perf_counter()
            try:
                trace = runner.run([inputs(command, names)])[0]
                wrong = faults(trace)
            except InputError as error:  # longer than the model can read or label
                wrong = [str(error)]
            times.append(1000 * (time.perf_counter() - started))
        refused += bool(wrong)
        print(f"{times[-1]:6.0f} ms  " + (f"refused: {'; '.join(wrong)}" if wrong else trace.answer))
    return refused, times


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A user's command becomes a checked JSON call.")
    parser.add_argument("--stack", type=Path, default=SHIPPED, help="a trained stack folder; by default examples/snips")
    parser.add_argument("command", nargs="*", help="a command; without any, lines of standard input")
    parser.add_argument("--names", type=Path, help="a list of names, or JSON lines as SNIPS has them")
    parser.add_argument("--repeat", type=int, default=1, help="ask every command so often")
    given = parser.parse_intermixed_args(arguments)  # options may stand before the commands
    spec = open_stack(str(given.stack))
    runner = Runner(spec, open_engine(spec, device="cpu"))
    names = known_names(given.names or next(given.stack.glob("names.jsonl.xz"), None))
    runner.run([inputs("play some music", names)])  # the first call sets things up that later ones find
    refused, times = answer(runner, given.command or sys.stdin, max(1, given.repeat), names)
    if len(times) > 1:
        print(f"{len(times)} answers: median {statistics.median(times):.0f} ms, slowest {max(times):.0f} ms")
    return int(refused > 0)


if __name__ == "__main__":
    sys.exit(main())
