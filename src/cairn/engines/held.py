"""What may come next in an output that is held to a constraint.

    parts     ["1 no", "1 song"]   ["2 no", "2 song"]  end
    written   1 song 2
    allowed                 no, song                          forced: nothing, two may come
    guess                   song  3 song  4 song              each part as the last one: a draft for the model to check
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from cairn.engines.base import Constraint
from cairn.errors import InputError
from cairn.models.tokenization import completion_ids
from cairn.prompts import completion_text

__all__ = ["Held", "choice_encoder", "hold"]

Encoder = Callable[[str], Sequence[int]]
_REMEMBERED = 1 << 16  # choices

Place = tuple[int, int, int]  # part, choice of it, tokens of the choice that are written


class Held:
    """The ways on through the parts of a constraint, followed token by token.

    One choice of a part may begin another one ("no", "north"): all ways that fit what is written are followed.

    Args:
        parts: the token ids of each choice, part by part, none empty; those of the last part with an end mark.
    """

    def __init__(self, parts: Sequence[Sequence[Sequence[int]]]) -> None:
        self.parts = [[tuple(choice) for choice in part] for part in parts]
        self._open: list[Place] = self._start(0)
        self._followed = 0
        self._chosen: int | None = None  # in the last part that is whole

    def allowed(self, written: Sequence[int]) -> set[int]:
        """Returns the tokens that may come next; none after the last part.

        Args:
            written: the tokens so far, each one allowed; more each time, as an output grows.
        """
        for token in written[self._followed :]:
            for part, choice, count in self._open:
                if self.parts[part][choice][count:] == (token,):
                    self._chosen = choice
            self._open = [step for place in self._open if self._token(place) == token for step in self._after(place)]
        self._followed = len(written)
        return {self._token(place) for place in self._open}

    def forced(self, written: Sequence[int]) -> list[int]:
        """Returns the tokens that must come next, up to where there is a choice or the end."""
        self.allowed(written)
        places, tokens = self._open, list[int]()
        while len(next_ := {self._token(place) for place in places}) == 1:
            tokens += next_
            places = [step for place in places for step in self._after(place)]
        return tokens

    def guess(self, written: Sequence[int], parts: int) -> list[int]:
        """Returns the tokens that come next if each part is answered as the last one was; the end mark is left out.

        Args:
            written: as in `allowed`.
            parts: how many are guessed, the one that is begun among them.
        """
        self.allowed(written)
        begun = next(((part, count) for part, choice, count in self._open if choice == self._chosen), None)
        if begun is None:
            return []
        part, count = begun
        following = self.parts[part : part + parts]
        end = next((i for i, choices in enumerate(following) if self._chosen >= len(choices)), len(following))
        tokens = [token for choices in following[:end] for token in choices[self._chosen]][count:]
        return tokens[:-1] if part + end == len(self.parts) else tokens

    def _start(self, part: int) -> list[Place]:
        return [(part, choice, 0) for choice in range(len(self.parts[part]))] if part < len(self.parts) else []

    def _token(self, place: Place) -> int:
        part, choice, count = place
        return self.parts[part][choice][count]

    def _after(self, place: Place) -> list[Place]:
        part, choice, count = place
        inside = count + 1 < len(self.parts[part][choice])
        return [(part, choice, count + 1)] if inside else self._start(part + 1)


def choice_encoder(tokenizer: PreTrainedTokenizerBase) -> Encoder:
    """Returns a function from a choice to its token ids with an end mark, which remembers the choices it has seen.

    A stage has the same choices in every call, some of them hundreds, and encoding them takes longer than a token.
    """

    @lru_cache(maxsize=_REMEMBERED)
    def encode(text: str) -> tuple[int, ...]:
        return tuple(completion_ids(tokenizer, completion_text(text)))

    return encode


def hold(encode: Encoder, constraint: Constraint, max_new_tokens: int) -> Held:
    """Returns what an output that starts now is held to.

    Args:
        encode: of `choice_encoder`.
        constraint: what may be written.
        max_new_tokens: most tokens of the output.

    Raises:
        InputError: a part has no choice, or the longest output has more tokens than may be written.
    """
    texts = (constraint.choices, *constraint.then)
    parts = [[encode(text) for text in part] for part in texts]  # each with an end
    longest = 1 + sum(max((len(choice) - 1 for choice in part), default=0) for part in parts)
    if not all(parts) or longest > max_new_tokens:
        raise InputError(
            "the choices do not fit the output",
            value=f"{len(texts)} parts, one choice of each" if constraint.then else constraint.choices,
            allowed=f"at least one, of at most max_new_tokens = {max_new_tokens} tokens",
            next=f"set max_new_tokens to {longest}",
        )  # fmt: skip
    return Held([*([choice[:-1] for choice in part] for part in parts[:-1]), parts[-1]])
