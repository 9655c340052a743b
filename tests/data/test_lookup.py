"""The generated look-up text: deterministic, answerable, balanced, varied, and worded apart from evaluation sets.

The solvers below read only the text of an episode and know nothing of how it was made.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from cairn.data import lookup
from cairn.data.decontaminate import Decontaminator
from cairn.data.lookup_words import ADJECTIVES, BOXES, NAMES, PLACES, THINGS, Dice, a, plural
from cairn.errors import ConfigError

RESERVED = """mary john sandra daniel fred bill jeff julie jason antoine sumit yann lily bernhard greg brian julius
winona jessica emily gertrude bathroom bedroom kitchen hallway garden office school park cinema football
apple milk pink rectangle suitcase chocolate chocolates mouse mice wolf wolves cat cats sheep lion frog
rhino swan afraid journeyed discarded treasure""".split()
PHRASES = ["travelled to the", "went back to the", "moved to the", "went to the", "got the", "picked up", "grabbed the"]
PHRASES += ["box of", "jump twice", "turn left", "is afraid of", "is carrying"]
_PLACE = re.compile(
    rf"[Tt]he ((?:(?:{'|'.join(ADJECTIVES)}) )?(?:{'|'.join(sorted(PLACES, key=len, reverse=True))}))\b"
)
_TEASE = ("talked about", "thought of", "never liked", "news from", "would not go near", "dreamt of")
_SAMPLES = 400


def _episodes(kind: str, count: int = _SAMPLES) -> list[lookup.Episode]:
    return [lookup.episode(kind, seed, questions=5) for seed in range(count)]


def _names(text: str) -> list[str]:
    """Capitalised words that are no first word of an English sentence."""
    common = set(
        "The A An At Next Then Someone After Later Before Soon That Meanwhile By Afterwards When It Nobody In".split()
    )
    common |= set(
        "From Together Who What Where Which Does Is Did Would Tell Name With Has To Are Whose How Can".split()
    )
    return [word for word in re.findall(r"\b[A-Z][a-z]+", text) if word not in common and word != "True"]


def _mentions(text: str, topic: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(topic)}(?!\w)", text) is not None


def _bare(place: str) -> str:
    return re.sub(r"^(at )?(the )?", "", place)


@pytest.fixture(scope="module")
def many() -> list[str]:
    return list(itertools.islice(lookup.documents(11), 20_000))


def test_same_seed_gives_the_same_text_in_another_process() -> None:
    code = (
        "import hashlib, itertools; from cairn.data.lookup import documents; "
        "print(hashlib.sha256('\\n'.join(itertools.islice(documents(5), 500)).encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    here = hashlib.sha256("\n".join(itertools.islice(lookup.documents(5), 500)).encode()).hexdigest()
    assert other.stdout.strip() == here
    assert list(itertools.islice(lookup.documents(6), 5)) != list(itertools.islice(lookup.documents(5), 5))


def test_table_of_families_adds_up_and_every_family_writes() -> None:
    assert sum(family.weight for family in lookup.FAMILIES.values()) == 100
    for kind in lookup.kinds():
        texts = {lookup.document(kind, seed) for seed in range(20)}
        assert len(texts) == 20
        assert lookup.document(kind, 3) == lookup.document(kind, 3)


def test_unknown_family_names_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="no family 'walk'.*did you mean walks.*allowed: walks, handing"):
        lookup.document("walk", 1)


def test_length_bounds_and_variety(many: list[str]) -> None:
    lengths = [len(text) for text in many]
    assert min(lengths) >= lookup.MIN_CHARACTERS
    assert max(lengths) <= lookup.MAX_CHARACTERS
    assert len(set(many)) > 19_990
    openings = {" ".join(text.split()[:6]) for text in many}
    assert len(openings) > 17_000


def test_no_reserved_word_or_phrase_in_20000_documents(many: list[str]) -> None:
    text = "\n".join(many).lower()
    assert not set(re.findall(r"[a-z]+", text)) & set(RESERVED)
    assert [phrase for phrase in PHRASES if f" {phrase} " in text] == []


def test_no_overlap_with_benchmark_like_text(many: list[str]) -> None:
    checker = Decontaminator(ngram=8, sentence=4)
    checker.add("babi", ["Mary moved to the bathroom.", "John journeyed to the hallway.", "Where is the football?"])
    checker.add("babi", ["Sandra picked up the apple there.", "Where was the milk before the kitchen?"])
    checker.add("scan", ["jump twice and turn left after walk opposite right", "look around left thrice"])
    checker.add("blimp", ["Who should Derek hug after shocking Richard?", "These casseroles disgust Kayla."])
    assert [found for text in many[:6000] for found in checker.overlaps(text)] == []


def test_yes_and_no_are_balanced(many: list[str]) -> None:
    counts = Counter(word.lower() for word in re.findall(r"\b(yes|no)\b[.\"})]*$", "\n".join(many), re.M | re.I))
    assert counts["yes"] + counts["no"] > 8000
    assert 0.48 < counts["yes"] / (counts["yes"] + counts["no"]) < 0.52
    for kind in ["walks", "handing", "two_hop", "mentions", "members", "associations", "chains", "kinds_of", "groups"]:
        text = "\n".join(lookup.document(kind, seed) for seed in range(1200))
        counts = Counter(word.lower() for word in re.findall(r"\b(yes|no|true|false)\b[.\"})]*$", text, re.M | re.I))
        share = (counts["yes"] + counts["true"]) / counts.total()
        assert 0.43 < share < 0.57, kind


def test_words_are_many_and_apart() -> None:
    assert min(len(set(NAMES)), len(set(THINGS))) >= 300
    assert len(set(PLACES)) >= 150
    assert all(re.fullmatch("[A-Za-z]+( [a-z]+)?", word) for word in [*NAMES, *THINGS, *PLACES, *BOXES])
    assert not set(THINGS) & set(PLACES)
    assert not set(ADJECTIVES) & {*PLACES, *THINGS}
    assert [a("oar"), a("kite"), a("hourglass"), plural("brush"), plural("knife"), plural("berry")] == [
        "an oar", "a kite", "an hourglass", "brushes", "knives", "berries",
    ]  # fmt: skip


def test_made_up_words_stay_clear_of_reserved_ones() -> None:
    dice = Dice(1)
    assert not {dice.made_up() for _ in range(50_000)} & set(RESERVED)


def test_walks_last_place_wins() -> None:
    asked = 0
    for episode in _episodes("walks"):
        for pair in episode.pairs:
            told = episode.lines if pair.after < 0 else episode.lines[: pair.after]
            path: dict[str, list[str]] = {}
            for line in told:
                places = _PLACE.findall(line)
                if places and not any(mark in line for mark in _TEASE):
                    path.setdefault(_names(line)[0], []).append(places[-1])
            who = [name for name in _names(pair.question) if name in path]
            if pair.question.startswith(("Who", "Name everyone")):
                place = _PLACE.findall(pair.question)[0]
                here = {name for name, been in path.items() if been[-1] == place}
                assert here == set(re.split(r", | and ", pair.answer)) - {"nobody"}, (episode, pair)
            elif pair.answer in ("yes", "no"):
                place = _PLACE.findall(pair.question)[0]
                assert (path[who[0]][-1] == place) == (pair.answer == "yes"), (episode, pair)
            elif "just before" in pair.question or "From which" in pair.question:
                assert path[who[0]][-2] == _bare(pair.answer), (episode, pair)
            else:
                assert path[who[0]][-1] == _bare(pair.answer), (episode, pair)
            asked += 1
    assert asked > _SAMPLES


def test_handing_last_holder_wins() -> None:
    for episode in _episodes("handing"):
        things = {
            m[1] for line in episode.lines if (m := re.search(r"\bthe ((?:\w+ )?\w+) (?:was with|belonged)", line))
        }
        chain: dict[str, list[str]] = {}
        for line in episode.lines:
            people = _names(line)
            thing = re.search(
                r"\b[Tt]he ((?:\w+ )?\w+?)(?= (?:belonged|was|changed|on|from|by|over|and|came|have|to)\b|\.)", line
            )
            if not people or thing is None:
                continue
            name = re.sub(r"^beginning the ", "", thing[1])
            if len(people) == 1 and (
                "first" in line or "beginning" in line or re.search(r" (had|owned|came with) the ", line)
            ):
                name = re.search(r"the ((?:\w+ )?\w+)(?: belonged| was with|\.)", line.split("beginning ")[-1], re.I)[1]
                chain[name] = [people[0]]
            elif len(people) == 2:
                known = next(known for known in sorted(chain, key=len, reverse=True) if _mentions(line, known))
                chain[known].append(next(person for person in people if person != chain[known][-1]))
        assert things <= set(chain)
        for pair in episode.pairs:
            known = next(known for known in sorted(chain, key=len, reverse=True) if _mentions(pair.question, known))
            path = chain[known]
            if pair.answer in ("yes", "no"):
                assert (_names(pair.question)[-1] == path[-1]) == (pair.answer == "yes"), (episode, pair)
            elif pair.answer.isdigit():
                assert int(pair.answer) == len(path) - 1, (episode, pair)
            elif "just before" in pair.question or "From whom" in pair.question:
                assert pair.answer == path[-2], (episode, pair)
            elif "first" in pair.question:
                assert pair.answer == path[0], (episode, pair)
            else:
                assert pair.answer == path[-1], (episode, pair)


def test_two_hop_places_follow_the_holder() -> None:
    drops = ("set the", "laid the", "parted with", "put the", "stood the")
    for episode in _episodes("two_hop"):
        things = []
        for line in episode.lines:
            if found := re.match(
                r"The (.+?) (?:lay|was kept) at|At the .+ stood the (.+)\.|Someone had left the (.+?) at", line
            ):
                things.append(next(group for group in found.groups() if group))
        things.sort(key=len, reverse=True)
        at: dict[str, str] = {}
        holder: dict[str, str] = {}
        spots: dict[str, list[str]] = {}
        for line in episode.lines:
            people, places = _names(line), _PLACE.findall(line)
            thing = next((thing for thing in things if _mentions(line, thing) and thing not in places), None)
            if thing and not people:
                spots[thing] = [places[-1]]
            elif thing and len(people) == 2:
                holder[thing] = next(person for person in people if person != holder[thing])
            elif thing and any(word in line for word in drops) and "shoulder" not in line:
                assert holder.pop(thing) == people[0]
            elif thing:
                holder[thing] = people[0]
            elif places and people:
                at[people[0]] = places[-1]
                for one, by in holder.items():
                    if by == people[0]:
                        spots[one].append(places[-1])
        for pair in episode.pairs:
            places, people = _PLACE.findall(pair.question), _names(pair.question)
            thing = next((thing for thing in things if _mentions(pair.question, thing)), None)
            if thing is None:
                assert _bare(pair.answer) == at[people[0]], (episode, pair)
            elif pair.answer in ("yes", "no"):
                assert (places[-1] == spots[thing][-1]) == (pair.answer == "yes"), (episode, pair)
            elif pair.question.startswith(("Who ", "With whom")):
                assert pair.answer == holder.get(thing, "nobody"), (episode, pair)
            elif "before" in pair.question or "from which" in pair.question:
                assert _bare(pair.answer) == spots[thing][-2], (episode, pair)
            else:
                assert _bare(pair.answer) == spots[thing][-1], (episode, pair)


def test_associations_key_and_value_stand_on_one_line() -> None:
    for episode in _episodes("associations"):
        for pair in episode.pairs:
            lines = [re.split(r" (?:-|=|->|\||\.\.\.|<-) |: |, | \(", line.rstrip(")")) for line in episode.lines]
            assert all(len(cells) == 2 for cells in lines), episode
            asked = [cells for cells in lines if any(_mentions(pair.question, cell) for cell in cells)]
            if pair.answer in ("yes", "no"):
                together = any(all(_mentions(pair.question, cell) for cell in cells) for cells in asked)
                assert together == (pair.answer == "yes"), (episode, pair)
            else:
                assert any(pair.answer in cells for cells in asked), (episode, pair)


def _answer_lines(answer: str) -> list[str]:
    return [] if answer in ("none", "nothing", "no line") else answer.split("\n")


def test_filters_keep_exactly_the_lines_about_the_topic() -> None:
    ask = re.compile(r"^(?:.* (?:mention|about|speak of|line with|about)) (?:the )?(.+?)(?:, in order|, please)?[.?]$")
    checked = 0
    for seed in range(_SAMPLES):
        parts = lookup.episode("filters", seed, questions=1).lines
        assert len(parts) == 3
        question, body = (parts[1], parts[0]) if ":\n" in parts[0][:10] else (parts[0], parts[1])
        lines = body.split(":\n", 1)[-1].split("\n")
        topic = ask.match(question)
        assert topic, question
        expected = [line for line in lines if _mentions(line, topic[1])]
        answer = re.split(r":[ \n]", parts[2], maxsplit=1)[1]
        assert " ".join(_answer_lines(answer)) == " ".join(expected), parts
        checked += bool(expected)
    assert 0.5 * _SAMPLES < checked < _SAMPLES


def test_drops_counts_and_edges_agree_with_a_reader() -> None:
    for episode in _episodes("drops"):
        topic = re.search(
            r"(?:mentions|about|with|which) (?:the )?(.+?)(?: and copy the rest| appears)?\.$", episode.task
        )[1]
        assert _answer_lines(episode.pairs[0].answer) == [line for line in episode.lines if not _mentions(line, topic)]
    for episode in _episodes("counts"):
        for pair in episode.pairs:
            topic = re.search(r"(?:mention|does|about|with) (?:the )?(.+?)(?: appear)?[.?]$", pair.question)[1]
            assert int(pair.answer) == sum(_mentions(line, topic) for line in episode.lines), (episode, pair)
    for episode in _episodes("edges"):
        for pair in episode.pairs:
            topic = re.search(r"(?:mentions|about|name|with) (?:the )?(.+?)[.?]$", pair.question)[1]
            kept = [line for line in episode.lines if _mentions(line, topic)]
            assert pair.answer == kept[-1 if "last" in pair.question.lower() else 0], (episode, pair)


def test_mentions_say_yes_exactly_for_lines_about_the_topic() -> None:
    form = re.compile(r"^Line: (.+)\n(?:About|Name|Topic|Wanted): (.+)\n.+: (yes|no|true|false)$", re.M | re.I)
    found = [match for seed in range(600) for match in form.findall(lookup.document("mentions", seed))]
    assert len(found) > 200
    for line, topic, answer in found:
        assert _mentions(line, topic) == (answer.lower() in ("yes", "true")), (line, topic, answer)


def test_reversed_lists_are_reversed() -> None:
    checked = 0
    for seed in range(600):
        episode = lookup.episode("rewrites", seed, questions=1)
        if any(word in episode.task for word in ("backwards", "Reverse", "from the end", "Back to front")):
            words, answer = (re.split(r",? ", text) for text in (episode.lines[0], episode.pairs[0].answer))
            assert answer == words[::-1]
            checked += 1
    assert checked > 100


def test_chains_follow_from_the_neighbours() -> None:
    for episode in _episodes("chains"):
        told = [re.match(r"(.+) is (\w+) than (.+)\.", line).groups() for line in episode.lines]
        words = {word for _, word, _ in told}
        up = sorted(words)[0]
        above = {(low.lower(), high.lower()) if word == up else (high.lower(), low.lower()) for low, word, high in told}
        while more := {(x, w) for x, y in above for z, w in above if y == z} - above:
            above |= more
        for pair in episode.pairs:
            if match := re.match(r"Is (.+) (\w+) than (.+)\?", pair.question):
                one, word, two = match.groups()
                truth = (one.lower(), two.lower()) in above
                assert (truth == (word == up or word not in words)) == (pair.answer == "yes") or len(words) == 1
            elif match := re.match(r"\w+ is (\w+), (.+) or (.+)\?", pair.question):
                word, one, two = match.groups()
                if word in words:
                    first = (one.lower(), two.lower()) in above
                    assert pair.answer == (one if first == (word == up) else two), (episode, pair)


def test_docs_show_what_the_generator_writes() -> None:
    page = Path(__file__).parents[2].joinpath("docs", "lookup.md").read_text(encoding="utf-8")
    shown = re.findall(r"\*\*`(\w+)`\*\* \(seed (\d+)\).*?\n```text\n(.*?)\n```", page, re.S)
    assert [kind for kind, _, _ in shown] == lookup.kinds()
    for kind, seed, text in shown:
        assert lookup.document(kind, int(seed)) == text
