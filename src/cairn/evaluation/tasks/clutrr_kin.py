"""Gold hand-offs of the CLUTRR stack: a story about a family becomes a walk, and the walk a relation.

    story ──edges──> one fact per sentence                        "Kyle: daughter Beverly"
               │ each sentence alone
             walk ──> from person to person until the relative    "Kyle: daughter Beverly", ..., "Ada: done"
               │ one fact a call, each fact once: whose line is next?
            place ──> where each person of the walk stands        "up he", "up down she", ...
               │ one step a call: the place before, and one step
           answer ──> the name of the last place                  "sister"

A *place* says how to get from the first person to another one by the shortest way: generations up, then down, with
`spouse` in front (a spouse's family) or at the end (who a relative is married to), and he or she. "up up down she" is
an aunt. Most places on the way have a name, some have none ("up up down down he", a cousin); a walk of named relations
alone would get stuck there. One step changes little of a place, so that long walks are made of the same decisions as
short ones.

The rules of places are family knowledge, written without the data, with two conventions of the benchmark: a parent's
other child is a sibling, never oneself, and a child's other parent is a spouse or oneself, which counts as "self".
Families in which an in-law is taken for a blood relation (the benchmark flags most of these proofs as unsound) then
give another relation than the file: `stage_example` refuses such a row.

As rules they could do these stages without a model: `walk_rule`, `place_rule` and `answer_rule` may stand in a
stack.yaml as `rule:` in the place of a prompt.

Source: Sinha et al., "CLUTRR" (arXiv 1908.06177) for the task; places and stages are ours.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cairn.errors import DataError, did_you_mean
from cairn.stacks.rules import needs

__all__ = [
    "EDGE_JOIN",
    "RELATIONS",
    "SELF",
    "Edge",
    "Place",
    "answer_rule",
    "done_line",
    "full_walk",
    "gold_walk",
    "name_of",
    "place_rule",
    "places",
    "read_edges",
    "read_place",
    "shortest_walk",
    "step",
    "walk_rule",
]

EDGE_JOIN = "\n"

# Relation -> its moves (U a generation up, D down, B a sibling, S a spouse) and who it is.
_HE: dict[str, str] = {
    "father": "U", "grandfather": "UU", "son": "D", "grandson": "DD", "brother": "B", "uncle": "UB", "nephew": "BD",
    "husband": "S", "father-in-law": "SU", "son-in-law": "DS",
}  # fmt: skip
_SHE: dict[str, str] = {
    "mother": "U", "grandmother": "UU", "daughter": "D", "granddaughter": "DD", "sister": "B", "aunt": "UB",
    "niece": "BD", "wife": "S", "mother-in-law": "SU", "daughter-in-law": "DS",
}  # fmt: skip
_MOVES = {word: (moves, who) for words, who in ((_HE, "he"), (_SHE, "she")) for word, moves in words.items()}

RELATIONS = tuple(sorted(_MOVES))


class Edge(NamedTuple):
    """One fact: `tail` is the `relation` of `head`."""

    head: str
    relation: str
    tail: str

    @property
    def line(self) -> str:
        """The fact as the stages write it: "Kyle: daughter Beverly"."""
        return f"{self.head}: {self.relation} {self.tail}"


class Place(NamedTuple):
    """Where somebody stands, seen from the first person.

    Args:
        spouses: counted from the first person's spouse.
        up: generations up, and then
        down: generations down.
        married: not this relative, but the one married to them.
        who: "he", "she", or "" where it is not said.
    """

    spouses: bool = False
    up: int = 0
    down: int = 0
    married: bool = False
    who: str = ""

    @property
    def path(self) -> str:
        """The way there: "up up down"; "self" for none."""
        words = ["spouse"] * self.spouses + ["up"] * self.up + ["down"] * self.down + ["spouse"] * self.married
        return " ".join(words) or "self"

    @property
    def text(self) -> str:
        """The place as the stages write it: "up up down she"."""
        return f"{self.path} {self.who}".rstrip()


SELF = Place()


def read_place(text: str) -> Place:
    """Returns the place that a text says: the inverse of `Place.text`.

    Raises:
        DataError: it says none.
    """
    words = text.split()
    who = words.pop() if words and words[-1] in ("he", "she") else ""
    place = SELF
    if words != ["self"]:
        spouses = words[:1] == ["spouse"]
        rest = words[spouses:]
        married = bool(rest) and rest[-1] == "spouse"
        rest = rest[: len(rest) - married]
        place = Place(spouses, rest.count("up"), rest.count("down"), married)
    place = place._replace(who=who)
    if place.text != " ".join(text.split()):
        raise DataError("not a place", value=text, allowed="self, or spouse, up and down in this order, then he or she")
    return place


def step(place: Place, relation: str) -> Place:
    """Returns the place of somebody's relative.

    Args:
        place: of that somebody.
        relation: what the relative is to them.

    Raises:
        DataError: no such relation, or the relative is in no family that places can say: the parents or siblings of
            somebody who has married into it.
    """
    if relation not in _MOVES:
        allowed = ", ".join(RELATIONS)
        raise DataError(f"no such relation{did_you_mean(relation, RELATIONS)}", value=relation, allowed=allowed)
    moves, who = _MOVES[relation]
    reached = place
    for move in moves:
        spouses, up, down, married, _ = reached
        if move == "S":
            if up == down == 0:
                reached = Place(spouses=not spouses)
            elif down == 0:  # a parent's spouse is the other parent
                reached = place if move == moves else reached
            else:
                reached = Place(spouses, up, down, not married)
        elif move == "D":  # a spouse's child is one's own
            reached = Place(spouses and up > 0, up, down + 1)
        elif married:
            raise DataError("nobody's place: a parent or sibling of one married in", value=f"{place.text} + {relation}")
        elif move == "U":
            reached = Place(spouses, up, down - 1) if down else Place(spouses, up + 1)
        else:  # a sibling: a generation up and down again
            reached = Place(spouses, up, down) if down else Place(spouses, up + 1, 1)
    return reached._replace(who=who)


_NAMES = {step(SELF, relation).text: relation for relation in RELATIONS}


def name_of(place: Place) -> str:
    """Returns the relation that a place is.

    Raises:
        DataError: it has no name among `RELATIONS`.
    """
    if place.text not in _NAMES:
        raise DataError("a place without a name", value=place.text, allowed=", ".join(sorted(_NAMES)))
    return _NAMES[place.text]


def places(relations: Sequence[str]) -> list[Place]:
    """Returns the place after each step of a walk.

    Raises:
        DataError: see `step`.
    """
    reached, found = SELF, []
    for relation in relations:
        reached = step(reached, relation)
        found.append(reached)
    return found


def done_line(relative: str) -> str:
    """Returns what ends a walk: it looks like a fact, so that every call of the stage finds the line of a name."""
    return f"{relative}: done"


def gold_walk(edges: Sequence[Edge], relative: str) -> list[Edge]:
    """Returns the edges of a story's chain up to the first that reaches the relative: loops before it stay.

    Args:
        edges: in the order of the chain, the first one leaving the person asked about.
        relative: the other person asked about.

    Raises:
        DataError: the edges are no chain, or do not reach the relative.
    """
    walk: list[Edge] = []
    for edge in edges:
        if walk and edge.head != walk[-1].tail:
            raise DataError("not a chain: an edge does not begin where the one before ends", value=edge.line)
        walk.append(edge)
        if edge.tail == relative:
            return walk
    raise DataError("the chain does not reach the relative", value=relative)


def shortest_walk(edges: Sequence[Edge], person: str, relative: str) -> list[Edge]:
    """Returns the edges of the shortest way from one person to another; of equals, the one listed first.

    Raises:
        DataError: there is no way.
    """
    came_by: dict[str, Edge | None] = {person: None}
    queue = deque([person])
    while queue:
        here = queue.popleft()
        for edge in edges:
            if edge.head == here and edge.tail not in came_by:
                came_by[edge.tail] = edge
                queue.append(edge.tail)
    if came_by.get(relative) is None:
        raise DataError("the facts lead from one to the other by no way", value=f"{person} to {relative}")
    walk: list[Edge] = []
    here = relative
    while (edge := came_by[here]) is not None:
        walk.append(edge)
        here = edge.head
    return walk[::-1]


def full_walk(edges: Sequence[Edge], person: str, relative: str) -> list[Edge]:
    """Returns a walk from one person to another that uses every edge once, of several the first listed one first.

    Raises:
        DataError: there is none.
    """
    # Hierholzer's algorithm: go on until stuck, which can only be at the relative; then splice in the loops left out.
    leaving: dict[str, deque[Edge]] = {}
    for edge in edges:
        leaving.setdefault(edge.head, deque()).append(edge)
    stack: list[tuple[str, Edge | None]] = [(person, None)]
    walk: list[Edge] = []
    while stack:
        here, edge = stack[-1]
        if leaving.get(here):
            taken = leaving[here].popleft()
            stack.append((taken.tail, taken))
        else:
            stack.pop()
            if edge is not None:
                walk.append(edge)
    walk.reverse()
    joined = all(after.head == before.tail for before, after in zip(walk, walk[1:], strict=False))
    if len(walk) != len(edges) or not joined or walk[0].head != person or walk[-1].tail != relative:
        raise DataError("the facts make no walk from one to the other", value=f"{person} to {relative}")
    return walk


def read_edges(text: str) -> list[Edge]:
    """Returns the edges in the value of the stage `edges`.

    Raises:
        DataError: a part of it is not "NAME: RELATION NAME".
    """
    edges = []
    for line in text.split(EDGE_JOIN):
        head, colon, rest = line.strip().partition(": ")
        words = rest.split()
        if not colon or len(words) != 2:
            raise DataError("not a fact", value=line, allowed="NAME: RELATION NAME")
        edges.append(Edge(head, words[0], words[1]))
    return edges


@needs("state", "edges", "relative")
def walk_rule(fields: Mapping[str, str]) -> str:
    """Returns the next fact from `state` on the shortest way to `relative`: the stage `walk` without a model.

    Raises:
        DataError: `edges` holds something else than facts, or there is no way.
    """
    here = fields["state"].split()[-1]
    if here == fields["relative"]:
        return done_line(here)
    return shortest_walk(read_edges(fields["edges"]), here, fields["relative"])[0].line


@needs("state", "item")
def place_rule(fields: Mapping[str, str]) -> str:
    """Returns the place that the fact `item` leads to from the place `state`: the stage `place` without a model.

    Raises:
        DataError: see `read_place` and `step`.
    """
    return step(read_place(fields["state"]), read_edges(fields["item"])[0].relation).text


@needs("place")
def answer_rule(fields: Mapping[str, str]) -> str:
    """Returns the name of `place`: the stage `answer` without a model.

    Raises:
        DataError: it has none.
    """
    return name_of(read_place(fields["place"]))
