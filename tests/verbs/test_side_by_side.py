"""Adapters side by side: who does what, whose lines are shown, and how an error, an interrupt or a kill ends it."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

import cairn.verbs.finetuning.side_by_side as side_by_side
from cairn.errors import ConfigError, EngineError
from cairn.training.finetune_plan import FinetuneConfig
from cairn.verbs.finetuning.finetune_jobs import Job
from cairn.verbs.finetuning.side_by_side import BaseOfWorkers, SideBySide

ROOT = str(Path(__file__).resolve().parents[2])


@pytest.fixture(autouse=True)
def fake_workers(monkeypatch):
    start = f"import sys; sys.path.insert(0, {ROOT!r}); from tests.verbs.fake_worker import main; main()"
    monkeypatch.setattr(side_by_side, "_START", start)


def job(folder, name, tokens=100, phase="gold"):
    return Job(name, phase, folder / name, folder / "run" / name, FinetuneConfig(tokens=tokens), [], [])


def several(count, done=lambda job, result: None, shown=None):
    shown = [] if shown is None else shown
    return SideBySide(count, BaseOfWorkers("the base", "cpu", {}, 3), done, shown.append)


def wait_for(path, seconds=30):
    end = time.monotonic() + seconds
    while not path.exists() or not path.read_text():
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.02)
    return path.read_text()


def gone(pid, seconds=5):
    """True if a process ends in time, or only waits for its parent to notice that it has."""
    end, stat = time.monotonic() + seconds, Path(f"/proc/{pid}/stat")
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
            if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


def test_the_longest_go_first_and_results_come_in_the_order_asked_for(tmp_path):
    jobs = [job(tmp_path, name, tokens) for name, tokens in (("a", 10), ("b", 500), ("c", 200), ("d", 30))]
    order, shown = [], []
    with several(1, lambda one, result: order.append(one.name), shown) as trainer:
        trainer.add(jobs)
        results = trainer.wait(jobs)
    assert order == ["b", "c", "d", "a"]
    assert [result["name"] for result in results] == ["a", "b", "c", "d"]
    assert {result["threads"] for result in results} == {"3"} and {result["base"] for result in results} == {"the base"}
    assert len({result["pid"] for result in results}) == 1, "a process does one job after the other"
    assert shown[:2] == ["b: step 1/1", "b: sample: 'x'"], "every line says whose it is"


def test_jobs_are_done_in_several_processes_also_those_added_later(tmp_path):
    first, later = [job(tmp_path, "a")], [job(tmp_path, name) for name in "bc"]
    with several(2) as trainer:
        trainer.add(first)
        one = trainer.wait(first)
        trainer.add(later)
        more = trainer.wait(later)
        assert trainer.wait(first) == one
    assert len({result["pid"] for result in more}) == 2 and os.getpid() not in {result["pid"] for result in more}
    assert all(gone(result["pid"]) for result in more), "none is left behind"


def test_an_error_in_one_stops_the_others_after_a_checkpoint_and_names_the_adapter(tmp_path):
    slow, fails = job(tmp_path, "slow", 500), job(tmp_path, "fails", phase="on_policy")
    with pytest.raises(ConfigError) as error, several(2) as trainer:
        trainer.add([slow])
        wait_for(slow.run / "pid")
        trainer.add([fails])
        trainer.wait([slow, fails])
    assert str(error.value).startswith("fails (on_policy): lora.targets: 2 faults")
    assert "use all-linear" in str(error.value) and error.value.faults[0] == "'x': no such layer"
    assert (slow.run / "checkpoint").read_text() == "whole"


def test_an_error_that_is_not_ours_comes_as_it_is(tmp_path):
    odd = job(tmp_path, "odd")
    with pytest.raises(ValueError, match="three of\nfour"), several(1) as trainer:
        trainer.add([odd])
        trainer.wait([odd])


def test_a_process_that_dies_is_an_error_that_says_what_to_do(tmp_path):
    dies = job(tmp_path, "dies")
    with pytest.raises(EngineError) as error, several(2) as trainer:
        trainer.add([dies])
        trainer.wait([dies])
    assert "the process that trained dies has ended: 'signal 9'" in str(error.value)
    assert "goes on from its checkpoint; if memory was short, with fewer --jobs" in str(error.value)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stops_all_after_their_checkpoints(tmp_path, number):
    jobs, before = [job(tmp_path, f"slow_{n}") for n in range(3)], signal.getsignal(signal.SIGTERM)
    began = []

    def interrupt():
        for one in jobs[:2]:
            wait_for(one.run / "pid")
        began.append(time.monotonic())
        os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt), several(2) as trainer:
        trainer.add(jobs)
        threading.Thread(target=interrupt).start()
        trainer.wait(jobs)
    assert time.monotonic() - began[0] < 20
    assert [(one.run / "checkpoint").exists() for one in jobs] == [True, True, False]
    assert signal.getsignal(signal.SIGTERM) == before


def test_in_the_background_where_ctrl_c_is_ignored_it_stops_as_well(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        test_an_interrupt_stops_all_after_their_checkpoints(tmp_path, signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_when_the_first_process_is_killed_the_others_end_by_themselves(tmp_path):
    slow = job(tmp_path, "slow")
    child = os.fork()
    if not child:
        with several(1) as trainer:
            trainer.add([slow])
            trainer.wait([slow])
        os._exit(0)
    pid = int(wait_for(slow.run / "pid"))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert gone(pid)
