"""Frames of SNIPS commands: as JSON, as one decision a word, and the rules between them.

    command    Add Don and Sherri to my rare groove playlist
    numbered   1 Add 2 Don 3 and 4 Sherri 5 to 6 my 7 rare 8 groove 9 playlist            (rule `number`)
    tags       1 no 2 song 3 song 4 song 5 no 6 owner 7 list 8 list 9 no
    frame      {"intent": "AddToPlaylist", "slots": {"entity_name": "Don and Sherri", "playlist_owner": "my",
                "playlist": "rare groove"}}                                                (rule)

A tiny model that must write a name that it never saw, letter by letter, gets it wrong ("Chill Bynoon" for "Chill
Afternoon"). Here it writes numbers and one short word for every word of the command, and the values of the frame are
cut out of the command itself. Intents and slots have such short words too; the tables below give their full names.

The rules write down what the stages before them said; they add nothing and mend nothing. Two slots of one name side by
side cannot be told from one long slot: 2 of the 13,084 training commands have such a pair.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from cairn.stacks.rules import needs

__all__ = [
    "INTENTS",
    "SLOTS",
    "Slot",
    "frame",
    "frame_text",
    "read_frame",
    "read_tags",
    "short_slot",
    "tags_text",
]

Slot = tuple[str, str]  # name, value

# short word -> intent, and short word -> slot: one or two tokens of the shipped base each
INTENTS: dict[str, str] = {
    "add": "AddToPlaylist",
    "book": "BookRestaurant",
    "weather": "GetWeather",
    "play": "PlayMusic",
    "rate": "RateBook",
    "find": "SearchCreativeWork",
    "show": "SearchScreeningEvent",
}
SLOTS: dict[str, str] = {
    "band": "artist",
    "best": "best_rating",
    "book": "object_name",
    "city": "city",
    "cook": "cuisine",
    "count": "rating_value",
    "country": "country",
    "disc": "album",
    "dish": "served_dish",
    "hall": "object_location_type",
    "has": "facility",
    "here": "current_location",
    "inn": "restaurant_type",
    "kind": "genre",
    "list": "playlist",
    "music": "music_item",
    "name": "restaurant_name",
    "near": "spatial_relation",
    "number": "party_size_number",
    "owner": "playlist_owner",
    "park": "geographic_poi",
    "part": "object_part_of_series_type",
    "people": "party_size_description",
    "place": "poi",
    "point": "rating_unit",
    "radio": "service",
    "sky": "condition_description",
    "song": "entity_name",
    "sort": "sort",
    "state": "state",
    "stories": "movie_type",
    "story": "movie_name",
    "theatre": "location_name",
    "thing": "object_type",
    "this": "object_select",
    "time": "timeRange",
    "tune": "track",
    "warm": "condition_temperature",
    "year": "year",
}
_SHORT = {name: word for word, name in SLOTS.items()}
_OUTSIDE = "no"
_TAG = re.compile(r"(\d+) (\S+)")


def short_slot(name: str) -> str:
    """Returns the short word of a slot."""
    return _SHORT[name]


def frame_text(intent: str, slots: Sequence[Slot]) -> str:
    """Returns a frame as one line of JSON, slots in the order given, a list where a name comes more than once."""
    counts = Counter(name for name, _ in slots)
    values: dict[str, str | list[str]] = {}
    for name, value in slots:
        if counts[name] == 1:
            values[name] = value
        else:
            values.setdefault(name, []).append(value)  # type: ignore[union-attr]
    return json.dumps({"intent": intent, "slots": values}, ensure_ascii=False)


def read_frame(text: str) -> tuple[str, tuple[Slot, ...]] | None:
    """Returns (intent, slots) of a frame in JSON, white space in values made single; None if it is not one."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    if not isinstance(found, dict) or set(found) != {"intent", "slots"} or not isinstance(found["slots"], dict):
        return None
    slots: list[Slot] = []
    for name, value in found["slots"].items():
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(one, str) for one in values):
            return None
        slots += [(name, " ".join(one.split())) for one in values]
    return (found["intent"], tuple(slots)) if isinstance(found["intent"], str) else None


def tags_text(command: str, slots: Sequence[tuple[str, int, int]]) -> str:
    """Returns one short word for every word of a command: its slot, or "no".

    Args:
        command: the text.
        slots: (name, start, end) in characters.
    """
    tags = []
    for number, word in enumerate(re.finditer(r"\S+", command), start=1):
        inside = [_SHORT[name] for name, start, end in slots if start < word.end() and word.start() < end]
        tags.append(f"{number} {inside[0] if inside else _OUTSIDE}")
    return " ".join(tags)


def read_tags(command: str, tags: str) -> list[Slot]:
    """Returns the slots that tags mark in a command, in order.

    Words side by side with one tag are one value. A word without a tag, or with a word that names no slot, is outside;
    of a number written twice the last tag counts.
    """
    tag_of = dict(_TAG.findall(tags))
    slots: list[Slot] = []
    last = None
    for number, word in enumerate(command.split(), start=1):
        name = SLOTS.get(tag_of.get(str(number), _OUTSIDE))
        if name is not None and name == last:
            slots[-1] = (name, f"{slots[-1][1]} {word}")
        elif name is not None:
            slots.append((name, word))
        last = name
    return slots


@needs("command", "intent", "tags")
def frame(fields: Mapping[str, str]) -> str:
    """Rule: the JSON frame that `intent` and `tags` say, its values cut out of `command`.

    An intent that is none of the short words stays as it is written.
    """
    intent = INTENTS.get(fields["intent"], fields["intent"])
    return frame_text(intent, read_tags(fields["command"], fields["tags"]))
