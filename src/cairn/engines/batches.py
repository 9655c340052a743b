"""Which requests go through a model together: the same adapters, like lengths, within a memory budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

__all__ = ["Runs", "batches"]

Runs = tuple[str | None, ...]  # the adapters that write together, mostly one; None is the base


def batches(
    runs: Sequence[Runs], read: Sequence[int], kept: Sequence[int] | None = None, *, most: int, room: int = 0
) -> Iterator[tuple[Runs, list[int]]]:
    """Yields (runs, places): places that the same adapters run, of like size, within the budgets.

    Args:
        runs: the adapters of each place, one, or several that write together.
        read: tokens that each place reads in one forward pass.
        kept: tokens of each place in the cache in the end; None keeps none.
        most: padded tokens in one forward pass; a place that reads more goes alone.
        room: tokens in the cache of one model, all places together; several that write share it.
    """
    kept = kept or [0] * len(read)
    groups: dict[Runs, list[int]] = {}
    for place, names in enumerate(runs):
        groups.setdefault(names, []).append(place)
    for names, places in groups.items():
        batch: list[int] = []
        widest = longest = 0
        for place in sorted(places, key=lambda place: (read[place], kept[place])):
            widest, longest = max(widest, read[place]), max(longest, kept[place])
            if batch and (widest * (len(batch) + 1) > most or longest * (len(batch) + 1) > room // len(names)):
                yield names, batch
                batch, widest, longest = [], read[place], kept[place]
            batch.append(place)
        yield names, batch
