"""Laws of who writes a run: one that nobody writes is killed, whatever the clock says."""

import json
import platform
import subprocess
import sys

import pytest

from analysis.runs.about import about_of
from analysis.runs.reader import load
from analysis.runs.status import here, status_of

from .fuzz import seeds


def ended() -> dict:
    """A process that is not any more."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return {"pid": child.pid, "host": platform.node(), "began": here()["began"]}


def test_only_who_lives_is_running(tmp_path):
    assert status_of({"status": "running", "process": here()}, tmp_path) == "running"
    assert status_of({"status": "running", "process": ended()}, tmp_path) == "killed"
    assert status_of({"status": "running", "process": here() | {"began": 1.0}}, tmp_path) == "killed"
    assert status_of({"status": "finished"}, tmp_path) == "finished"
    seeds.run(tmp_path / "run")
    assert load(tmp_path / "run").status == "running"
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(about | {"process": ended()}))
    assert load(tmp_path / "run").status == about_of(tmp_path / "run")["status"] == "killed"


@pytest.mark.skipif(not here()["boot"], reason="the system does not say when it was started")
def test_a_clock_that_is_set_ends_nobody(tmp_path):
    hour = {name: here()[name] - 3600 for name in ("began", "booted")}
    assert status_of({"status": "running", "process": here() | hour}, tmp_path) == "running"
    # A number that another process has now, and one of another start of the machine.
    for other in ({"began": here()["began"] - 3600}, hour | {"boot": "of yesterday"}, {"booted": "x"}):
        assert status_of({"status": "running", "process": here() | other}, tmp_path) == "killed"
