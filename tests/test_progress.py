"""Progress says how far, how fast and how long still, in a log as on a terminal."""

from __future__ import annotations

import io

import pytest

from cairn.progress import Progress, duration_text, figure_text


class Clock:
    """A clock that the test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_line_has_rate_time_left_and_figures() -> None:
    clock, stream = Clock(), io.StringIO()
    with Progress("pretrain", 4000, stream=stream, clock=clock) as progress:
        clock.now = 100.0
        progress.advance(1000, rates={"tokens": 661_000}, loss=2.3118, val_loss=3)
        assert progress.line() == (
            "pretrain: step 1,000/4,000 (25%), 6,610 tokens/s, ETA 5:00, loss 2.31, val loss 3"
        )
    assert stream.getvalue().splitlines()[0] == progress.line()


def test_without_rates_the_unit_is_the_rate() -> None:
    clock = Clock()
    progress = Progress("score", 100, unit="question", stream=io.StringIO(), clock=clock)
    clock.now = 10.0
    progress.advance(20)
    assert progress.line() == "score: question 20/100 (20%), 2.00 question/s, ETA 40 s"


def test_resumed_work_does_not_count_for_the_rate() -> None:
    clock, stream = Clock(), io.StringIO()
    with Progress("train", 100, start=90, stream=stream, clock=clock) as progress:
        clock.now = 5.0
        progress.advance(5)
        assert "1.00 step/s, ETA 5 s" in progress.line()
    assert stream.getvalue().startswith("train: goes on at step 90 of 100\n")


def test_a_log_gets_a_line_every_ten_seconds_and_one_at_the_end() -> None:
    clock, stream = Clock(), io.StringIO()
    with Progress("train", 40, stream=stream, clock=clock) as progress:
        for second in range(1, 36):
            clock.now = float(second)
            progress.advance()
        progress.note("sample: the cat")
    lines = stream.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "train: step 10/40 (25%)", "train: step 20/40 (50%)", "train: step 30/40 (75%)", "sample: the cat",
        "train: step 35/40 (87%)",
    ]  # fmt: skip


def test_the_last_line_of_a_log_is_not_told_twice() -> None:
    clock, stream = Clock(), io.StringIO()
    with Progress("score", 64, unit="question", stream=stream, clock=clock) as progress:
        clock.now = 20.0
        progress.advance(64)
    assert stream.getvalue() == "score: question 64/64 (100%), 3.20 question/s, took 20 s\n"


def test_a_terminal_gets_a_bar_and_the_same_facts() -> None:
    stream = Terminal()
    with Progress("train [x]", 4, stream=stream) as progress:
        for _ in range(4):
            progress.advance(loss=1.5)
        progress.note("a note [y]")
    text = stream.getvalue()
    assert "4/4" in text and "loss 1.50" in text and "a note [y]" in text and "train [x]" in text


def test_work_of_no_size() -> None:
    with Progress("nothing", 0, stream=io.StringIO()) as progress:
        assert progress.line() == "nothing: step 0/0 (100%)"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (61, "1:01"), (3725, "1:02:05")])
def test_duration_text(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (12, "12"), (1234567, "1,234,567"), (0.000123456, "0.000123"), (2.3118, "2.31"),
                        (123.4, "123"), (6610.4, "6,610"), (0.0, "0")],
)  # fmt: skip
def test_figure_text(value: float, text: str) -> None:
    assert figure_text(value) == text
