"""What every test shares: no network, few threads, and a small disk to fill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Before any test imports torch or a Hugging Face library; children inherit it.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models here are 32 wide: threads only cost
os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = os.path.join(tempfile.gettempdir(), "hypothesis")
os.environ.pop("CAIRN_DEBUG", None)
# A background job ignores SIGINT, and so would the processes that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
_ROOT = Path(__file__).resolve().parents[1]
os.environ["PYTHONPATH"] = os.pathsep.join([str(_ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])

settings.register_profile("cairn", database=None, deadline=None, derandomize=True)
settings.load_profile("cairn")

Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return _ROOT


@pytest.fixture
def python(tmp_path: Path) -> Run:
    """Runs `python ARGUMENTS...` in a fresh process, in `tmp_path`; returns the completed process."""

    def run(*arguments: str, timeout: float = 60, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env={**os.environ, "COLUMNS": "100", **environment},
            capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip

    return run


@pytest.fixture
def cairn(python: Run) -> Run:
    """Runs `cairn ARGUMENTS...` as a user would, in `tmp_path`."""

    def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess:
        return python("-m", "cairn", *arguments, **settings)

    return run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, where the machine lets us mount one."""
    place = tmp_path / "small_disk"
    place.mkdir()
    try:
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], capture_output=True)
    except FileNotFoundError:
        pytest.skip("no mount command here")
    if made.returncode != 0:
        pytest.skip("mounting a small file system is not permitted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)
