"""Errors carry fields, read as one line, and cross process borders."""

from __future__ import annotations

import errno
import pickle
import re
from concurrent.futures import ProcessPoolExecutor

import pytest

from cairn import errors
from cairn.errors import (
    AdapterError,
    CairnError,
    ConfigError,
    MissingExtraError,
    ShardError,
    StorageError,
    did_you_mean,
    storage_error,
)


def _classes() -> list[type[CairnError]]:
    found = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, CairnError)]
    return sorted(found, key=lambda kind: kind.__name__)


def test_message_says_what_value_allowed_and_next() -> None:
    error = AdapterError("rank is too big", value=512, allowed="1 to 64", next="cairn finetune --set lora.rank=8")
    assert str(error) == "rank is too big: 512. Allowed: 1 to 64. Next: cairn finetune --set lora.rank=8"
    assert (error.what, error.value, error.allowed) == ("rank is too big", 512, "1 to 64")
    assert error.exit_code == 3


def test_value_may_be_none_and_is_then_shown() -> None:
    assert str(CairnError("no seed", value=None)) == "no seed: None"
    assert str(CairnError("no seed")) == "no seed"


def test_long_value_is_cut() -> None:
    text = str(CairnError("too long", value="x" * 10_000))
    assert text.endswith("...") and len(text) < 140


def test_every_fault_of_a_configuration_is_in_one_message() -> None:
    error = ConfigError("recipe.yaml", ["steps: required", "rate: -1: must be positive"], next="cairn pretrain --help")
    assert str(error) == (
        "recipe.yaml: 2 faults\n  - steps: required\n  - rate: -1: must be positive. Next: cairn pretrain --help"
    )
    assert str(ConfigError("recipe.yaml", ["steps: required"])) == "recipe.yaml: steps: required"


def test_missing_extra_names_the_command() -> None:
    error = MissingExtraError("lm_eval", "eval")
    assert str(error) == "lm_eval is not installed. Next: pip install 'cairn-lm[eval]'"
    assert error.exit_code == 6


@pytest.mark.parametrize(
    ("number", "words", "then"),
    [
        (errno.ENOSPC, "no space left on the disk", "free some space"),
        (errno.EACCES, "no permission to write", "--out"),
        (errno.EROFS, "the file system is read-only", "--out"),
        (errno.ENOTDIR, "cannot write (Not a directory)", "check the path"),
    ],
)
def test_storage_error_says_what_to_do(number: int, words: str, then: str) -> None:
    import os

    error = storage_error(OSError(number, os.strerror(number)), "/runs/one")
    assert isinstance(error, StorageError) and error.exit_code == 5
    assert str(error).startswith(words + ": '/runs/one'") and then in str(error)


def test_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    drawn = re.findall(r"^\s*[│├└─ ]*(\w+Error)(?:\s+(\d))?", errors.__doc__ or "", re.MULTILINE)
    assert {name for name, _ in drawn} == {kind.__name__ for kind in _classes()}
    for name, code in drawn:
        if code:
            assert getattr(errors, name).exit_code == int(code), name


def test_every_error_is_public_and_documented() -> None:
    for kind in _classes():
        assert kind.__name__ in errors.__all__
        assert kind.__doc__ and kind.__doc__ != CairnError.__doc__ or kind is CairnError, kind


def _raise(which: str) -> None:
    if which == "config":
        raise ConfigError("a.yaml", ["x: wrong", "y: wrong"])
    if which == "extra":
        raise MissingExtraError("lm_eval", "eval")
    raise ShardError("truncated", value="shard-0", next="write it again")


@pytest.mark.parametrize("which", ["config", "extra", "shard"])
def test_error_survives_pickling(which: str) -> None:
    with pytest.raises(CairnError) as caught:
        _raise(which)
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is type(caught.value)
    assert str(again) == str(caught.value)
    assert vars(again) == vars(caught.value)


def test_error_of_a_worker_process_reaches_the_parent() -> None:
    with ProcessPoolExecutor(1) as pool, pytest.raises(ConfigError, match="2 faults"):
        pool.submit(_raise, "config").result(timeout=30)


def test_did_you_mean() -> None:
    assert did_you_mean("finetun", ["pretrain", "finetune"]) == " (did you mean finetune?)"
    assert did_you_mean("zzz", ["pretrain", "finetune"]) == ""
