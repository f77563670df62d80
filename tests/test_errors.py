"""The border of the command line: one line for whatever is raised, and a status that says whose mistake it is."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from analysis import errors, files, texts
from analysis.cli import main as cli
from analysis.engine import stream
from analysis.engine.lane import Lane

from .fuzz.jobs import THROWN, Panic, Silent

OURS = (KeyError, AttributeError, IndexError, ZeroDivisionError, TypeError, AssertionError, Panic, Silent)


@pytest.fixture
def log(tmp_path, monkeypatch):
    """The log of commands, which ends with the test."""
    monkeypatch.setenv("SINKSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(errors.LOG, "propagate", True)
    yield tmp_path / "cache" / "errors.log"
    for handler in errors.LOG.handlers[:]:
        handler.close()
        errors.LOG.removeHandler(handler)


@pytest.fixture
def run(run, capsys):
    """As a command ends in a process of its own: what it lets pass comes to the hook, and the status is 1."""

    def command(*arguments: str) -> tuple[int, str, str]:
        try:
            return run(*arguments)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as e:
            cli.failed(type(e), e, e.__traceback__)
            said = capsys.readouterr()
            return 1, said.out, said.err

    return command


@pytest.mark.parametrize("make", THROWN, ids=lambda make: type(make()).__name__)
def test_whatever_ends_a_command_is_one_line(run, log, monkeypatch, make):
    thrown = make()

    def raised(*_):
        raise thrown

    monkeypatch.setattr(texts, "read", raised)
    code, said, wrong = run("stream", "--text", "hamlet")
    if isinstance(thrown, KeyboardInterrupt | SystemExit):
        assert (code, wrong) == ((3, "") if isinstance(thrown, SystemExit) else (130, "Interrupted.\n"))
        return
    assert wrong.startswith("error: ") and wrong.count("\n") == 1 and len(wrong) < 900 and not said
    if isinstance(thrown, OURS):
        assert code == 1 and type(thrown).__name__ in wrong and str(log) in wrong
        name = wrong.split("says of ")[1].split(" in ")[0]
        assert f"{name}: {type(thrown).__name__}" in log.read_text() and "Traceback" in log.read_text()
    if isinstance(thrown, ValueError | OSError | MemoryError):
        assert code == 2 and not log.exists()


def test_a_log_that_cannot_be_written_is_no_second_mistake(run, log, monkeypatch, tmp_path):
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setattr(texts, "read", lambda _: {}["parts"])
    code, _, wrong = run("stream")
    assert code == 1 and wrong.count("\n") == 1
    assert wrong.startswith("error: something failed inside Sinkscope (KeyError)")


def test_a_process_of_its_own_ends_so(log, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("from analysis import texts\ntexts.plays = lambda: {}['parts']\n")
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(Path(__file__).parents[1])))}
    command = [sys.executable, "-m", "analysis", "texts"]
    process = subprocess.run(command, capture_output=True, text=True, env=paths)
    assert process.returncode == 1 and process.stderr.count("\n") == 1 and "(KeyError)" in process.stderr
    assert "Traceback" in log.read_text()


@pytest.mark.parametrize(("thrown", "status"), [(KeyError("parts"), 1), (MemoryError(), 2)])
def test_a_lane_that_cannot_read_on_ends_no_other(run, log, monkeypatch, model, text, tmp_path, thrown, status):
    real = Lane.read

    def read(lane, *how, **more):
        if lane.policy.label == "Window 16" and lane.position > 100:
            raise thrown
        return real(lane, *how, **more)

    monkeypatch.setattr(stream, "adapt", stream.adapt)
    monkeypatch.setattr(Lane, "read", read)
    lanes = ("--policy", "window:window=16", "--policy", "dense", "--chunk", "64", "--device", "cpu")
    code, said, wrong = run("stream", "--model", model, "--text", text, *lanes, "--out", str(tmp_path / "r"))
    assert code == status and wrong.count("\n") == 1
    rows = {line.split()[1]: line for line in said.splitlines() if line.startswith("│")}
    assert "600" in rows["Dense"] and "129" in rows["Window"] and "Failed. The run lies in" in said
    assert '"status": "failed"' in (tmp_path / "r" / "run.json").read_text()


def test_who_has_seen_enough_is_told_nothing():
    command = [sys.executable, "-m", "analysis", "policies"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == ""
    process.wait(60)


@pytest.mark.parametrize(
    ("thrown", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/a/b.npy"), "/a/b.npy: no space left on device: make room"),
        (PermissionError(errno.EACCES, "Permission denied", "/a"), "/a: permission denied: check who may read and"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), "out of memory: use smaller caches"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "something failed inside Sinkscope"),
        (ValueError("  too\n short "), "too short"),
        (ValueError(), "something failed inside Sinkscope (ValueError)"),
    ],
    ids=str,
)
def test_what_is_said_of_an_exception(thrown, says):
    assert errors.reason(thrown, "x").startswith(says)
    message = errors.error_message(thrown, "x")
    assert message[0] in (says[0], says[0].upper()) and message[-1] in ".!?…"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("the run has no lane 2", "The run has no lane 2."),
        ("it: one. Two", "It: one. Two."),
        ("bin.txt is binary data", "bin.txt is binary data."),
        ("runs/mine is none", "runs/mine is none."),
        (r"runs\mine is none", r"runs\mine is none."),
    ],
)
def test_a_sentence_begins_with_a_capital_and_a_file_as_it_is_called(text, said):
    assert errors.sentence(text) == said


@pytest.mark.parametrize(("number", "does"), [(28, "make room on that disk"), (30, "a place that can be written")])
def test_what_is_said_of_a_file_that_cannot_be_written_is_what_helps(number, does, tmp_path):
    said = str(files.unwritten(tmp_path / "a", OSError(number, "no")))
    # Not every page or command has an --out, and on a read-only disk room helps nobody.
    assert said.endswith(does) and "--out" not in said and ("make room" in said) == (number == 28)
