"""What a kill cuts off at any byte takes no more of a run than what was being written."""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest

from analysis import files
from analysis.runs import library, trash
from analysis.runs.reader import load

from .fuzz import seeds


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SINKSCOPE_RUNS", str(tmp_path))
    return tmp_path


def test_events_that_are_cut_at_any_byte_are_those_that_stand_whole(home):
    seeds.run(home / "a")
    file = home / "a" / "events.jsonl"
    events = [
        {"what": "warning", "lane": 0, "position": 5, "seconds": 1.0, "text": "keeps {4} of a } cache"},
        {"what": "resumed", "lane": None, "position": None, "seconds": 2.0, "about": {"positions": [1, 2]}},
        {"what": "running", "lane": None, "position": None, "seconds": 3.0},
    ]
    lines = [json.dumps(event) + "\n" for event in events]
    data = "".join(lines).encode()
    for cut in range(len(data) + 1):
        file.write_bytes(data[:cut])
        # A line whose end alone is missing says all.
        whole = sum(len("".join(lines[: i + 1])) - 1 <= cut for i in range(len(lines)))
        assert load(home / "a").events == events[:whole], data[:cut]
    assert library.entry("a").problem == ""


def test_drafts_of_dead_processes_go_before_the_limit_counts_and_no_others(home):
    seeds.run(home / "a", end="finished")
    (home / "a" / "checkpoint").mkdir()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    old, machine, mine = time.time() - 3600, files._machine(), os.getpid()
    now = psutil.Process(mine).create_time() + 5
    drafts = {
        f"checkpoint/.00000001.safetensors.{machine}-{dead.pid}-1-a.part": (old, False),
        f".run.json.{machine}-{dead.pid}-1-a.part": (old, False),
        # Its number was given again.
        f".events.jsonl.{machine}-{mine}-1-a.part": (psutil.Process(mine).create_time() - 3600, False),
        f".tokens.parquet.{machine}-{mine}-1-a.part": (now, True),
        f".sinks.npz.{machine}-{dead.pid}-1-a.part": (time.time(), True),
        f".sinks.npz.00000000-{dead.pid}-1-a.part": (old, True),
        f".sinks.npz.11111111-{dead.pid}-1-a.part": (old - trash.DAY, False),
        # Of older versions.
        f".tokens.arrow.{dead.pid}.part": (old, True),
        f".sinks.arrow.{dead.pid}.part": (old - trash.DAY, False),
        ".mine.part": (old - trash.DAY, True),
    }
    for name, (changed, _) in drafts.items():
        (home / "a" / name).write_bytes(b"half")
        os.utime(home / "a" / name, (changed,) * 2)
    assert trash.free() == ""
    there = {name: (home / "a" / name).exists() for name in drafts}
    assert there == {name: stays for name, (_, stays) in drafts.items()}
    assert load(home / "a").status == "finished"


def test_a_draft_says_who_writes_it(tmp_path):
    with files.written(tmp_path / "a") as f:
        f.write(b"half")
        (draft,) = tmp_path.iterdir()
        os.utime(draft)
        assert files.DRAFT.fullmatch(draft.name).groups() == (files._machine(), str(os.getpid()))
        assert not files.is_left(draft)


@pytest.mark.parametrize(("age", "stays"), [(2 * trash.DAY, False), (60, True)])
def test_a_folder_that_was_killed_before_it_said_anything_goes_after_a_day(home, age, stays):
    for name, more in (("20260101-000000-a", ""), ("20260101-000000-b", "notes.txt")):
        (home / name).mkdir()
        files.reserve(home / name)
        if more:
            (home / name / more).write_text("mine")
        os.utime(home / name, (time.time() - age,) * 2)
    trash.free()
    assert (home / "20260101-000000-a").exists() == stays
    assert sorted(p.name for p in (home / "20260101-000000-b").iterdir()) == [".reserve", "notes.txt"]
