"""Run folders: the same settings go on, others are refused, and half-written metrics are ignored."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from cairn.config import StrictModel, load_config
from cairn.errors import ArtifactError, ConfigError, DataError, StorageError
from cairn.files import sha256_file
from cairn.runs import RunFolder, read_jsonl, versions


class Inner(StrictModel):
    rate: float = 0.1


class Config(StrictModel):
    steps: int = 10
    inner: Inner = Inner()
    names: list[str] = ["a"]


def test_new_folder_holds_config_and_versions(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "runs" / "one", Config(steps=3), seed=7)
    assert not run.resumed and not run.finished
    assert load_config(Config, run.path / "config.yaml") == Config(steps=3)
    stamp = json.loads((run.path / "versions.json").read_text())
    assert stamp["seed"] == 7 and "torch" in stamp["packages"] and stamp["python"] == versions()["python"]


def test_same_settings_go_on(tmp_path: Path) -> None:
    RunFolder(tmp_path, Config()).log(step=1, loss=2.0)
    again = RunFolder(tmp_path, Config())
    assert again.resumed and again.metrics() == [{"step": 1, "loss": 2.0}]


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    RunFolder(tmp_path, Config()).log(step=1)
    with pytest.raises(ConfigError) as caught:
        RunFolder(tmp_path, Config(steps=20, inner=Inner(rate=0.2), names=["a", "b"]))
    text = str(caught.value)
    assert "other settings (steps was 10, is 20; inner.rate was 0.1, is 0.2; names.1 was None, is 'b')" in text
    assert "Next: choose another folder with --out" in text
    assert RunFolder(tmp_path, Config()).metrics() == [{"step": 1}]


@pytest.mark.skipif(sys.platform == "win32", reason="needs fcntl")
def test_a_second_process_is_kept_out_until_the_first_one_ends(tmp_path: Path) -> None:
    """Also when it is killed; this process may open the folder as often as it likes."""
    folder = tmp_path / "run"
    script = (
        "import sys, tests.test_runs as t\nfrom cairn.runs import RunFolder\n"
        "run = RunFolder(sys.argv[1], t.Config())\nprint('open', flush=True)\nsys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(folder)]
    root = Path(__file__).parents[1]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as other:
        assert other.stdout is not None and other.stdout.readline() == "open\n"
        with pytest.raises(ConfigError, match="another process is at work in this run folder"):
            RunFolder(folder, Config())
        RunFolder(folder, Config(), alone=False)
        other.kill()
    first, second = RunFolder(folder, Config()), RunFolder(folder, Config())
    assert first.resumed and second.resumed
    refused = subprocess.run(command, capture_output=True, text=True, input="", cwd=root, timeout=60)
    assert "another process" in refused.stderr
    del first, second
    assert subprocess.run(command, capture_output=True, text=True, input="", cwd=root, timeout=60).stdout == "open\n"


def test_damaged_stamp_is_an_artifact_error(tmp_path: Path) -> None:
    RunFolder(tmp_path, Config())
    (tmp_path / "versions.json").write_text("{")
    with pytest.raises(ArtifactError, match="versions.json is damaged"):
        RunFolder(tmp_path, Config())


def test_half_written_last_line_is_ignored_and_not_appended_to(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, Config())
    run.log(step=1)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "lo')
    assert run.metrics() == [{"step": 1}]
    again = RunFolder(tmp_path, Config())
    again.log(step=2)
    assert again.metrics() == [{"step": 1}, {"step": 2}]


def test_trim_drops_what_a_resumed_run_will_log_again(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, Config())
    for step in (1, 2, 3):
        run.log(step=step)
    run.trim_metrics(2)
    assert run.metrics() == [{"step": 1}, {"step": 2}]


def test_finish_writes_hashes_last(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, Config())
    (tmp_path / "out.txt").write_text("x")
    run.finish(["out.txt"])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert run.finished and manifest["files"] == {"out.txt": sha256_file(tmp_path / "out.txt")}


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot write"):
        RunFolder(tmp_path / "file" / "run", Config())


def test_log_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path, Config())
    run.log(step=1)

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(StorageError, match="no space left"):
        patch.setattr("builtins.open", full)
        run.log(step=2)
    assert run.metrics() == [{"step": 1}]


def test_read_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n{"a": "x\u2028y"}', encoding="utf-8")
    assert read_jsonl(path) == [{"a": 1}, {"a": "x\u2028y"}]  # a last line without newline counts if it is whole
    path.write_text('{"a": 1}\n{"a": \n{"a": 2}\n')
    with pytest.raises(DataError, match=r"a.jsonl, line 2: not a JSON object"):
        read_jsonl(path)
    path.write_text("[1]\n")
    with pytest.raises(DataError, match="line 1"):
        read_jsonl(path)
