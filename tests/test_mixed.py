"""Files of two runs in one folder, or a file that is missing: nothing of it is shown as if it were one whole run."""

import json
import shutil

import pytest

from analysis.runs import library
from analysis.runs.reader import load

from .fuzz import seeds

TABLES = ("tokens.parquet", "sinks.npz")


def test_tables_of_a_run_with_other_policies_are_not_shown_under_the_names_of_these(home):
    for name in ("a", "b"):
        seeds.run(home / name, end="finished")
    about = json.loads((home / "b" / "run.json").read_text())
    about["spec"]["policies"] = ["dense", "streaming:sinks=4,window=8"]
    (home / "b" / "run.json").write_text(json.dumps(about))
    for name in TABLES:
        shutil.copy(home / "a" / name, home / "b" / name)
    with pytest.raises(ValueError, match=r"b has tokens of another policy than its run\.json names"):
        load(home / "b")
    problems = {e.name: e.problem for e in library.entries()}
    assert problems["a"] == "" and "the two are of different runs" in problems["b"]


@pytest.mark.parametrize("end", ["", "interrupted", "failed"])
def test_a_run_that_lost_its_tokens_is_not_shown_as_one_that_read_nothing(home, end):
    seeds.run(home / "a", end=end)
    lost = "tokens.parquet" if end else "tokens.arrow"
    (home / "a" / lost).unlink()
    with pytest.raises(ValueError, match=rf"a lacks {lost}, though it has sink masses: copy all files of the run"):
        load(home / "a")


@pytest.mark.parametrize("end", ["finished", "saved"])
def test_a_run_that_lost_its_events_is_not_shown_as_one_where_nothing_happened(home, end):
    seeds.run(home / "a", end="finished")
    about = json.loads((home / "a" / "run.json").read_text())
    (home / "a" / "run.json").write_text(json.dumps({**about, "status": end}))
    load(home / "a")
    (home / "a" / "events.jsonl").unlink()
    with pytest.raises(ValueError, match=r"a lacks events\.jsonl, though its run has ended: copy all files of the run"):
        load(home / "a")
