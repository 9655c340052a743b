"""Progress of long work: how far, how fast, how long still, and the figures that matter.

    with Progress("pretrain", total=4000, unit="step", start=resumed_at) as progress:
        for step in ...:
            progress.advance(1, rates={"tokens": 4096}, loss=loss)

    terminal   one live line with a bar
    elsewhere  one plain line every ten seconds: logs and CI stay readable

Rates count only what this process did, so that a resumed run does not look faster than it is.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TextIO

__all__ = ["Progress", "duration_text", "figure_text"]


def duration_text(seconds: float) -> str:
    """Returns a duration as `7 s`, `4:05` or `2:03:09`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def figure_text(value: float) -> str:
    """Returns a number with a separator of thousands, or with three significant digits when it is small."""
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".") if value else "0"


class Progress:
    """Counts work towards a total and shows it on stderr.

    Args:
        title: what is being done.
        total: units of work in all.
        unit: name of one unit, in the singular.
        start: units done before this process (a resumed run).
        stream: where to write; default stderr.
        every: seconds between plain lines when the stream is no terminal.
        clock: returns seconds; replaced in tests.
    """

    def __init__(
        self,
        title: str,
        total: int,
        *,
        unit: str = "step",
        start: int = 0,
        stream: TextIO | None = None,
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = self._start = self._shown = start
        self._stream = stream if stream is not None else sys.stderr
        self._every, self._clock = every, clock
        self._began = self._printed = clock()
        self._counts: dict[str, float] = {}
        self._figures: dict[str, Any] = {}
        self._live: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        self._began = self._printed = self._clock()
        if self._stream.isatty():
            self._open_live()
        elif self._start:
            self._write(f"{self.title}: goes on at {self.unit} {self._start:,} of {self.total:,}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        elif self.done > self._shown:
            self._write(self.line())

    def advance(self, amount: int = 1, *, rates: Mapping[str, float] | None = None, **figures: Any) -> None:
        """Counts `amount` more units.

        Args:
            amount: units done since the last call.
            rates: further quantities done since then, shown per second (tokens, MB).
            figures: values shown as they are (loss=...); a later value replaces the earlier one.
        """
        self.done += amount
        for name, value in (rates or {}).items():
            self._counts[name] = self._counts.get(name, 0) + value
        self._figures.update(figures)
        now = self._clock()
        if self._live is not None:
            self._live.update(self._task, completed=self.done, facts=self.facts())
        elif now - self._printed >= self._every:
            self._printed, self._shown = now, self.done
            self._write(self.line())

    def note(self, text: str) -> None:
        """Prints a line of its own (a sample, a checkpoint) without disturbing the bar."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            self._write(text)

    def facts(self) -> str:
        """Returns rate, time left and figures, as both forms show them."""
        seconds = self._clock() - self._began
        mine = self.done - self._start
        parts = []
        if seconds > 0 and mine:
            counts = self._counts or {self.unit: mine}
            parts += [f"{figure_text(count / seconds)} {name}/s" for name, count in counts.items()]
            left = max(self.total - self.done, 0) * seconds / mine
            parts.append(f"ETA {duration_text(left)}" if left else f"took {duration_text(seconds)}")
        for name, value in self._figures.items():
            shown = figure_text(value) if isinstance(value, int | float) else str(value)
            parts.append(f"{name.replace('_', ' ')} {shown}")
        return ", ".join(parts)

    def line(self) -> str:
        """Returns the plain form: `title: step 1,200/4,000 (30%), 6,610 tokens/s, ETA 12:30, loss 2.31`."""
        share = 100 * self.done // self.total if self.total else 100
        facts = self.facts()
        return f"{self.title}: {self.unit} {self.done:,}/{self.total:,} ({share}%)" + (f", {facts}" if facts else "")

    def _write(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

    def _open_live(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        self._live = Bar(
            TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}", markup=False), console=Console(file=self._stream),
        )
        self._task = self._live.add_task(self.title, total=self.total, completed=self._start, facts="")
        self._live.start()
