"""Every error that Cairn raises on purpose.

    CairnError                     exit code
    ├── ConfigError                2   a recipe, stack.yaml or --set is wrong; all faults at once
    ├── InputError                 2   text given to a model: empty, too long, unreadable
    ├── DataError                  3   a data source or example file cannot be used
    ├── ArtifactError              3   something Cairn or a peer wrote cannot be trusted
    │   ├── ShardError                 token shards: truncated, half-written, foreign
    │   ├── CheckpointError            training checkpoints and model folders
    │   ├── AdapterError               adapter folders: damaged, or made for another base
    │   └── TokenizerError             tokenizer that does not fit the model or the data
    ├── EngineError                4   an engine cannot do what was asked
    ├── StorageError               5   full disk, no permission, read-only file system
    └── MissingExtraError          6   an optional dependency is not installed

A message is built from fields, so that code can read them and a person reads one line:
what is wrong, the value, what is allowed, and the next command.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from typing import Any

__all__ = [
    "AdapterError",
    "ArtifactError",
    "CairnError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "EngineError",
    "InputError",
    "MissingExtraError",
    "ShardError",
    "StorageError",
    "TokenizerError",
    "did_you_mean",
    "storage_error",
]

_UNSET = object()


class CairnError(Exception):
    """Base of all errors above.

    Args:
        what: what is wrong, a clause without a final stop.
        value: the offending value, shown with repr() and cut at 120 characters.
        allowed: what would have been right.
        next: the command or change to try next.
    """

    exit_code = 1

    def __init__(
        self, what: str, *, value: object = _UNSET, allowed: str | None = None, next: str | None = None
    ) -> None:
        self.what = what
        self.value = None if value is _UNSET else value
        self.allowed = allowed
        self.next = next
        text = what
        if value is not _UNSET:
            shown = repr(value)
            text += f": {shown if len(shown) <= 120 else shown[:117] + '...'}"
        if allowed:
            text += f". Allowed: {allowed}"
        if next:
            text += f". Next: {next}"
        super().__init__(text)

    def __reduce__(self) -> tuple[Any, ...]:
        """Keeps fields and message when an error crosses a process border (the default would call __init__)."""
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(kind: type[CairnError], args: tuple[Any, ...], fields: dict[str, Any]) -> CairnError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(fields)
    return error


class ConfigError(CairnError):
    """One or more faults in a configuration, all listed in one message.

    Args:
        source: file name or command line that was read.
        faults: one line per fault, each with its place, value and what is allowed.
    """

    exit_code = 2

    def __init__(self, source: str, faults: Iterable[str], *, next: str | None = None) -> None:
        self.source = source
        self.faults = list(faults)
        count = len(self.faults)
        body = self.faults[0] if count == 1 else "".join(f"\n  - {fault}" for fault in self.faults)
        head = f"{source}: " + ("" if count == 1 else f"{count} faults")
        super().__init__(head + body, next=next)


class InputError(CairnError):
    """Text given to a model is empty, too long or unreadable."""

    exit_code = 2


class DataError(CairnError):
    """A data source or an example file cannot be used."""

    exit_code = 3


class ArtifactError(CairnError):
    """Something that Cairn or a peer wrote cannot be trusted."""

    exit_code = 3


class ShardError(ArtifactError):
    """Token shards are truncated, half-written or made with another tokenizer."""


class CheckpointError(ArtifactError):
    """A training checkpoint or a model folder is missing a part or damaged."""


class AdapterError(ArtifactError):
    """An adapter folder is damaged, or was made for another base."""


class TokenizerError(ArtifactError):
    """A tokenizer does not fit the model or the data."""


class EngineError(CairnError):
    """An engine cannot do what was asked."""

    exit_code = 4


class StorageError(CairnError):
    """The disk is full or read-only, or there is no permission to write."""

    exit_code = 5


class MissingExtraError(CairnError):
    """An optional dependency is missing; the message names the extra to install."""

    exit_code = 6

    def __init__(self, package: str, extra: str) -> None:
        self.package = package
        self.extra = extra
        super().__init__(f"{package} is not installed", next=f"pip install 'cairn-lm[{extra}]'")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns ' (did you mean X?)' for the closest known word, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


_STORAGE = {
    errno.ENOSPC: ("no space left on the disk", "free some space and run the same command again"),
    errno.EDQUOT: ("disk quota exceeded", "free some space and run the same command again"),
    errno.EACCES: ("no permission to write", "choose another folder with --out, or change its permissions"),
    errno.EPERM: ("no permission to write", "choose another folder with --out, or change its permissions"),
    errno.EROFS: ("the file system is read-only", "choose another folder with --out"),
}


def storage_error(error: OSError, path: object) -> StorageError:
    """Turns an OSError raised while writing into a StorageError that says what to do."""
    what, then = _STORAGE.get(error.errno or 0, (f"cannot write ({error.strerror or error})", "check the path"))
    return StorageError(what, value=str(path), next=then)
