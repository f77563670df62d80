"""What a kill cuts off at any byte takes no more of a run than what was being written."""

import json

import pytest

from analysis.runs import library
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
