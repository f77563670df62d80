"""Off a terminal a command says every few seconds how far it is; on one its bars do."""

import io
import re
import time
from functools import partial

import pytest
from rich.console import Console

from analysis.cli import waiting
from analysis.cli.waiting import Bars


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(waiting, "EVERY", 0.02)


def written(terminal: bool, work) -> list[str]:
    file = io.StringIO()
    work(Console(file=file, force_terminal=terminal, width=100))
    return file.getvalue().splitlines()


def load(out):
    with waiting.waiting(out, "Loading the model") as tell:
        time.sleep(0.07)
        tell("Loading the model: 40 %")
        time.sleep(0.07)


def read(out, lines=0):
    with Bars(out, rates=True) as bars:
        tasks = [bars.add_task(name, total=2000, rate="") for name in ("Dense", "Window [64]")]
        bars.update(tasks[1], completed=1000, rate="340 tokens/s")
        time.sleep(0.1)
        until = time.monotonic() + 30
        # On a busy machine they take longer.
        while lines and out.file.getvalue().count("\n") < lines and time.monotonic() < until:
            time.sleep(0.01)


@pytest.mark.usefixtures("quick")
def test_a_log_is_told_what_is_waited_for():
    lines = written(False, load)
    assert re.fullmatch(r"Loading the model \(\d s\)", lines[0])
    assert re.fullmatch(r"Loading the model: 40 % \(\d s\)", lines[-1])


@pytest.mark.usefixtures("quick")
def test_a_log_is_told_how_far_every_task_is():
    lines = written(False, partial(read, lines=2))
    assert re.fullmatch(r"Dense: 0 of 2,000\. Window \[64\]: 1,000 of 2,000, 340 tokens/s \(\d s\)", lines[0])
    assert len([line for line in lines if line == lines[0]]) >= 2


@pytest.mark.usefixtures("quick")
def test_a_terminal_has_bars_and_no_lines():
    for work in (load, read):
        assert not any(re.search(r"\(\d s\)", line) for line in written(True, work))


def test_what_is_quick_needs_no_line():
    assert not any(re.search(r"\(\d s\)", line) for line in [*written(False, load), *written(False, read)])


@pytest.mark.usefixtures("quick")
def test_a_command_tells_its_log(run, model, text, tmp_path):
    code, said, wrong = run(
        "stream", "--model", model, "--text", text, "--device", "cpu", "--policy", "dense", "--chunk", "2", "--out",
        str(tmp_path / "o"),
    )  # fmt: skip
    assert code == 0, wrong
    assert re.search(r"^Dense: \d+ of 600, [\d,]+ tokens/s \(\d+ s\)$", said, re.MULTILINE)


def test_names_that_look_like_markup_are_waited_for_as_they_are():
    terminal = Console(file=io.StringIO(), force_terminal=True, width=140)
    with waiting.waiting(terminal, "Loading the model") as tell:
        tell("Checking /models/[new]:key:")
    with waiting.Bars(terminal, rates=True) as bars:
        bars.add_task("[draft].txt", total=2, rate="[/] 3 tokens/s")
    said = re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", terminal.file.getvalue())
    for name in ("/models/[new]:key:", "[draft].txt", "[/] 3 tokens/s"):
        assert name in said
