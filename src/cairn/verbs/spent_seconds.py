"""The time and the memory that a long command took, over all its sessions and in all its processes."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from types import TracebackType

from cairn.files import write_json

__all__ = ["SpentSeconds", "tree_memory_mib"]

_LOOK_EVERY = 0.5  # seconds between two looks at the memory


class SpentSeconds:
    """Counts the wall-clock seconds of a command over all its sessions, killed ones included.

        with SpentSeconds(OUT / "seconds.json") as spent:
            ...work...
        spent.total          what earlier sessions noted, plus this one
        spent.memory_mib     the most memory seen, of this process and those that it started, together

    A thread notes the time every few seconds, so that a session that is killed loses at most that much.

    Args:
        path: where the seconds are kept.
        every: seconds between notes.
    """

    def __init__(self, path: Path, every: float = 5.0) -> None:
        self._path, self._every = path, every
        noted = json.loads(path.read_text()) if path.exists() else {}
        self._earlier = float(noted.get("seconds", 0.0))
        self.memory_mib = float(noted.get("memory_mib", 0.0))
        self._began = time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    @property
    def total(self) -> float:
        """The seconds so far."""
        return self._earlier + time.monotonic() - self._began

    def __enter__(self) -> SpentSeconds:
        self._note()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        if kind is None:
            self._note()

    def _keep(self) -> None:
        next_note = self._every
        while not self._done.wait(min(self._every, _LOOK_EVERY)):
            self.memory_mib = max(self.memory_mib, tree_memory_mib())
            if time.monotonic() - self._began >= next_note:
                next_note += self._every
                self._note()

    def _note(self) -> None:
        self.memory_mib = max(self.memory_mib, tree_memory_mib())
        write_json(self._path, {"seconds": round(self.total, 3), "memory_mib": round(self.memory_mib, 1)})


def tree_memory_mib() -> float:
    """Returns the memory (resident, MiB) of this process and all that it has started; 0 where /proc is not Linux's.

    Pages that processes share are counted for each of them.
    """
    parents: dict[int, int] = {}
    kib: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            lines = (folder / "status").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:  # it has just ended
            continue
        facts = dict(line.split(":", 1) for line in lines if ":" in line)
        parents[int(folder.name)] = int(facts.get("PPid", "0"))
        kib[int(folder.name)] = int(facts.get("VmRSS", "0 kB").split()[0])
    mine = {os.getpid()}
    while more := {one for one, parent in parents.items() if parent in mine} - mine:
        mine |= more
    return sum(kib.get(one, 0) for one in mine) / 1024
