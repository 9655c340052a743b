"""Where a patch ends: rules that look at the past only; this file travels inside checkpoints.

    bytes      <bos> T h e   c a t   s a t .
    ends         |         |       |       |     "space": judged when the byte is there, never from the next one

An end at byte t is decided from the bytes up to t. So the core may read the patch at once, and what it makes of it may
predict byte t + 1, and no boundary ever tells a prediction what is to come. Marks (beginning, end of text) are patches
of their own, and no patch is longer than `max_patch`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .byte_cache import last_real
from .byte_config import FIRST_BYTE, BytePooling

__all__ = ["UNFITTED", "PatchRule", "context_hash", "limited_ends", "spacelike"]

UNFITTED = 255  # in every row of a table that was never counted
_MULTIPLIER = 6364136223846793005  # of Knuth's MMIX generator


def context_hash(ids: Tensor, size: int, rows: int, length: int) -> Tensor:
    """Hashes the last `size` ids at each of the last `length` positions of `ids` [batch, history + length].

    Returns:
        [batch, length], 0 to rows - 1.
    """
    first = ids.shape[1] - length - size + 1
    total = torch.zeros_like(ids[:, :length])
    for place in range(first, first + size):
        total = (total + ids[:, place : place + length] + 1) * _MULTIPLIER  # wraps around, as is meant
    return (total >> 32) % rows


def spacelike(ids: Tensor) -> Tensor:
    """Returns which ids are bytes that part words: no letter, no digit, no continuation of a UTF-8 character.

    Source: arXiv 2404.14408, section 3.
    """
    byte = ids - FIRST_BYTE
    lower = byte | 32
    letter = (lower >= ord("a")) & (lower <= ord("z"))
    digit = (byte >= ord("0")) & (byte <= ord("9"))
    return ~(letter | digit | ((byte >= 0x80) & (byte <= 0xBF)))


def limited_ends(raw: Tensor, real: Tensor, since: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Adds ends so that no patch is longer than `most` bytes.

    Args:
        raw: ends of the rule, [batch, seq], bool.
        real: bytes that are no padding, [batch, seq], bool.
        since: bytes since the rule's last end, before this call, [batch].
        most: longest patch.

    Returns:
        ends [batch, seq], and `since` after this call.
    """
    count = since[:, None] + real.cumsum(1)  # bytes since then, this one included
    marks = torch.where(raw, count, 0).cummax(1).values  # count at the rule's last end, this byte included
    length = count - F.pad(marks[:, :-1], (1, 0))
    return raw | (real & (length % most == 0)), count[:, -1] - marks[:, -1]


class PatchRule(nn.Module):
    """Decides after which bytes a patch ends.

    Args:
        settings: of the model.

    Source: learned boundaries (cosine routing) arXiv 2507.07955, section 2.2; entropy of the next byte 2412.09871,
        section 2.3.
    """

    def __init__(self, settings: BytePooling) -> None:
        super().__init__()
        self.settings = settings
        if settings.rule == "learned":
            size = settings.local_size
            self.query = nn.Linear(size, size, bias=False)
            self.key = nn.Linear(size, size, bias=False)
        if settings.fitted:  # bytes, so that no change of the number format changes a boundary
            self.register_buffer("table", torch.full((settings.table_rows,), UNFITTED, dtype=torch.uint8))
        self._checked = False

    def forward(
        self, ids: Tensor, real: Tensor, states: Tensor, carried: dict[str, Tensor], count: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """Marks the last byte of each patch.

        Args:
            ids: [batch, history + seq], padding and what lies before the text as 0.
            real: bytes and marks that count, [batch, seq], bool.
            states: of the local encoder, [batch, seq, local].
            carried: what an earlier call returned, or nothing.
            count: bytes of each row before its padding, [batch]; None is all.

        Returns:
            ends [batch, seq], bool; the probability of an end [batch, seq] in float32, of the learned rule only; and
            what the next call needs.

        Raises:
            ValueError: the rule's table was never fitted.
        """
        settings, length = self.settings, real.shape[1]
        own = ids[:, -length:]
        marks = real & (own < FIRST_BYTE)
        chance, state = None, {}
        if settings.rule == "space":
            space = spacelike(ids[:, -length - 1 :])  # [batch, 1 + seq]
            raw = space[:, 1:] & ~space[:, :-1]
        elif settings.fitted:
            self._check()
            raw = self.table[context_hash(ids, settings.table_order, settings.table_rows, length)] > 0
        elif settings.rule == "learned":
            chance, state = self._chances(states, carried, count)
            chance = chance.masked_fill(marks, 1.0)
            raw = chance >= 0.5
        else:
            raw = marks
        raw = (raw & real) | marks
        since = carried["since"] if "since" in carried else own.new_zeros(len(own))
        ends, state["since"] = limited_ends(raw, real, since, settings.max_patch or settings.stride)
        if chance is not None:  # an end that only the longest patch allowed brings is sure, and teaches nothing
            chance = chance.masked_fill(ends & ~raw, 1.0)
        return ends, chance, state

    def _chances(
        self, states: Tensor, carried: dict[str, Tensor], count: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns how much each byte's state turns from the one before, 0 to 1; 1 where there is none before."""
        keys = self.key(states)
        before = carried["key"][:, None] if carried else torch.zeros_like(keys[:, :1])
        keys = torch.cat((before, keys), dim=1)  # [batch, 1 + seq, local]
        wide = torch.float32 if keys.dtype in (torch.bfloat16, torch.float16) else keys.dtype
        turn = 0.5 - 0.5 * F.cosine_similarity(self.query(states).to(wide), keys[:, :-1].to(wide), dim=-1)
        new = carried["count"] == 0 if carried else torch.ones(len(turn), dtype=torch.bool, device=turn.device)
        turn = torch.cat((turn[:, :1].masked_fill(new[:, None], 1.0), turn[:, 1:]), dim=1)
        return turn, {"key": last_real(keys, 1, count)[:, 0]}

    def _check(self) -> None:
        if not self._checked and int(self.table[0]) == UNFITTED:
            raise ValueError(
                f"the table of rule {self.settings.rule!r} was never fitted; next: "
                "cairn.models.byte_fit.fit_patch_rule(model, texts), or load a trained model"
            )
        self._checked = True
