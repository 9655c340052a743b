"""The memory of a command is that of all its processes together."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cairn.verbs.spent_seconds import SpentSeconds, tree_memory_mib

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
CHILD = "import sys; held = b'x' * (200 << 20); print('ready', flush=True); sys.stdin.read()"


def test_memory_of_a_child_counts_and_is_remembered(tmp_path: Path) -> None:
    before = tree_memory_mib()
    with SpentSeconds(tmp_path / "seconds.json", every=0.05) as spent:
        child = subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        child.stdout.readline()
        while spent.memory_mib < before + 200:  # the thread looks by itself; a wrong sum would never get there
            pass
        child.communicate()
    assert before + 200 <= spent.memory_mib < before + 320
    assert tree_memory_mib() < before + 100
    assert json.loads((tmp_path / "seconds.json").read_text())["memory_mib"] == pytest.approx(spent.memory_mib, abs=0.1)
    assert SpentSeconds(tmp_path / "seconds.json").memory_mib >= before + 200
