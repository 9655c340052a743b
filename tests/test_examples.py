"""Every example runs as the reader would run it, and says what it promises."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PROMISED = {"command_to_json.py": '"intent": "AddToPlaylist"', "scripted_stack.py": "answer: Petra"}
ARGUMENTS = {"command_to_json.py": ["put the quiet hour on my evening list"]}


def test_no_example_is_left_out():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(PROMISED)


@pytest.mark.parametrize("name", PROMISED)
def test_example_runs(name, tmp_path):
    command = [sys.executable, str(EXAMPLES / name), *ARGUMENTS.get(name, [])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert PROMISED[name] in done.stdout
