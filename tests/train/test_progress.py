"""What a person sees: a bar that moves with every step, and what the run will take."""

import io
import re

import pytest

import bertmill
from bertmill.data.yardsticks import Yardsticks
from bertmill.train.metrics import Metrics, TrainRecord
from bertmill.train.progress import RunProgress
from small import SMALL

RECORD = TrainRecord(
    step=10,
    mlm_loss=5.0,
    nsp_loss=0.5,
    pairs_per_second=8.0,
    tokens_per_second=80.0,
    mfu=0.5,
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_bar_moves_with_every_step():
    with RunProgress(Terminal()) as progress:
        progress.start(None, Metrics([], []))
        shown = lambda: progress._bar.tasks[0].description  # noqa: E731
        assert shown() == "first step ..."
        progress.step(1, 0.1)
        assert shown() == "step      1  ..."
        progress.update(RECORD, 0.5, 60.0)
        assert shown().startswith("step     10  mlm 5.000  nsp 0.500")
        progress.step(11, 0.55)
        assert shown().startswith("step     11  mlm 5.000  nsp 0.500")
        assert progress._bar.tasks[0].completed == 0.55


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (60, "step     10  mlm 5.000 (no context 6.000)  nsp 0.500"),
        (80, "step     10  mlm 5.000 (no context 6.000)  nsp 0.500  0:01:00 left"),
        (200, "step     10  mlm 5.000 (no context 6.000)  nsp 0.500  0:01:00 left  8 pairs/s  80 "),
    ],
)
def test_a_narrow_terminal_shows_the_losses(width, shown, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    with RunProgress(stream := Terminal()) as progress:
        progress.start(Yardsticks(6.5, 6.0, 0.69, 0.6, 0.5), Metrics([], []))
        progress.update(RECORD, 0.5, 60.0)
        progress._bar.refresh()
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", stream.getvalue()).splitlines()
    assert any(line.startswith(shown) for line in lines)
    assert all(len(line) <= width and "…" not in line for line in lines)


def forecast(*args, **kwargs):
    with RunProgress(stream := io.StringIO()) as progress:
        progress.forecast(*args, **kwargs)
    return stream.getvalue().splitlines()


@pytest.mark.parametrize(
    ("seconds", "epochs", "is_by_time", "first", "others"),
    [
        (145.0, 1.7, True, "about 0:02:25 to the end; 1.7 epochs of this text in all", []),
        (86_400 * 10, 40.0, False, "about 10 days to the end; 40 epochs of", []),
        (86_400 * 300, 39.0, False, "about 300 days to the end; 39 epochs of", ["that is long: "]),
        (86_400 * 300, 39.0, True, "about 300 days", []),
        (60.0, 121_000, True, "about 0:01:00 to the end; 121,000 epochs of", ["after 40 epochs "]),
        (3e7, 50, False, "about 347 days", ["that is long: ", "after 40 epochs "]),
    ],
)
def test_a_forecast_says_what_is_absurd(seconds, epochs, is_by_time, first, others):
    lines = forecast(seconds, epochs, is_by_time=is_by_time)
    assert len(lines) == 1 + len(others)
    assert all(line.startswith(start) for line, start in zip(lines, [first, *others], strict=True))


def test_a_run_says_once_what_it_will_take(corpus_file, tmp_path):
    stream = io.StringIO()
    settings = [*SMALL, "train.log_every_steps=1"]
    out = tmp_path / "run"
    bertmill.pretrain(str(corpus_file), "tiny", out=out, steps=6, settings=settings, stream=stream)
    lines = stream.getvalue().splitlines()
    [number] = [n for n, line in enumerate(lines) if "to the end" in line]
    [examples] = [line.split(", ")[2].split()[0] for line in lines if " in an epoch" in line]
    assert f" {6 * 8 / int(examples):.2g} epochs of this text" in lines[number]
    assert lines[number + 1].startswith("step      1 ")


def test_elsewhere_than_on_a_terminal_a_line_is_said_now_and_then(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("bertmill.train.progress.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    with RunProgress(stream) as progress:
        for second in range(70):
            now[0] = 100.0 + second
            progress.show(f"encoding: {second} MB", second / 70)
    assert stream.getvalue() == "encoding: 31 MB\nencoding: 62 MB\n"
