"""Laws of deleting: what somebody writes or is about to is not moved, and what dead processes left goes."""

import errno
import os
from contextlib import contextmanager

import pytest

from analysis import files
from analysis.runs import library, trash
from analysis.runs.claim import claimed
from app import prepared

from .fuzz import seeds


@pytest.mark.parametrize("inner", ["", "1-softmax"])
def test_run_that_another_process_opens_just_now_is_not_deleted_and_the_other_way_round(home, monkeypatch, inner):
    seeds.run(home / "first", end="finished")
    path = home / "first"
    if inner:
        # One of several in a folder.
        (home / "several").mkdir()
        path = (home / "first").rename(home / "several" / inner)
    top = "several" if inner else "first"
    with claimed(path), pytest.raises(ValueError, match="is being written by process"):
        trash.delete(top)
    with monkeypatch.context() as patched:
        patched.setenv("SINKSCOPE_RUNS_GB", "1e-9")
        with claimed(path):
            assert trash.free() == ""
    real, looked = trash.entry, []

    def entry(*of):
        with pytest.raises(ValueError, match="is being written by process"), claimed(path):
            pass
        looked.append(of)
        return real(*of)

    with monkeypatch.context() as patched:
        patched.setattr(trash, "entry", entry)
        when = trash.delete(top)
    assert looked and trash.undo(when) == top
    # Nobody holds it any more.
    assert not list(home.rglob(".claim-*"))
    with claimed(path):
        pass


def test_run_is_deleted_where_nothing_can_be_written(home, monkeypatch):
    seeds.run(home / "first", end="finished")

    @contextmanager
    def full(path):
        raise files.unwritten(path, OSError(errno.ENOSPC, "No space left on device"))
        yield

    monkeypatch.setattr(trash, "claimed", full)
    assert trash.undo(trash.delete("first")) == "first"


def test_a_server_that_starts_sweeps_drafts_of_dead_processes_and_no_run(home, monkeypatch):
    seeds.run(home / "first", end="finished")
    draft = home / "first" / ".tokens.parquet.999999999-1-a.part"
    draft.write_bytes(b"half")
    os.utime(draft, (1e9, 1e9))
    monkeypatch.setattr(prepared.recordings, "prepare", lambda _: None)
    monkeypatch.setattr(prepared.LIBRARIES, "begin", lambda: None)
    prepared._prepare()
    assert not draft.exists() and [e.name for e in library.entries()] == ["first"]
