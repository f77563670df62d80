"""Laws of who may write a run folder that several would write at the same moment: one may, and the others hear it."""

import json
import os
import subprocess
import sys
import time

import pytest

from analysis import files
from analysis.lab import folder as lab
from analysis.lab.recipe import Recipe
from analysis.lab.training import Training
from analysis.maps import capture as capturing
from analysis.maps.capture import capture
from analysis.maps.stretch import Stretch
from analysis.runs import folder, result, trash
from analysis.runs.about import about_of
from analysis.runs.checkpoint import Checkpoints
from analysis.runs.claim import claimed, claimed_new
from analysis.runs.folder import Folder
from analysis.runs.result import ResultFolder
from analysis.runs.resume import Comparison, Standing, stopped
from analysis.runs.run import Run
from analysis.runs.spec import Spec
from analysis.runs.status import CAPTURING, here

from .families import twin, words
from .fuzz import seeds
from .test_atlas import Named

SPEC = Spec("embedded", "hamlet", ("dense", "window:window=8"), tokens=100, chunk=16)
DIGESTS = {"text_sha256": "t", "weights_sha256": "w"}
WRITTEN = "is being written by process"
OPENED_BY = "is just being opened by another process"


def reading(place):
    seeds.run(place, end="interrupted")

    def going():
        asked = stopped(place)
        lanes = [type("Lane", (), {"seconds": 1.0, "position": len(t.nll) + 1})() for t in asked.run.tracks]
        return lambda: Standing(lanes, [0] * len(lanes), Checkpoints(place), {}, []).open(asked, Comparison(asked.run))

    return going


def costs(place):
    ResultFolder(place, "costs", Run(SPEC), **DIGESTS).finish("interrupted")
    return lambda: lambda: ResultFolder.reopened(place)


def new(make):
    return lambda place: lambda: lambda: make(place)


TINY = Recipe(width=16, vocabulary=24, length=16, batch=4, steps=2)
OPENED = {
    "a reading that goes on": reading,
    "a result that goes on": costs,
    "a new run": new(lambda place: Folder(place, Run(SPEC, 7), **DIGESTS)),
    "a new result": new(lambda place: ResultFolder(place, "costs", Run(SPEC), **DIGESTS)),
    "a new training": new(lambda place: lab.TrainingWriter(place, Training(TINY), 1)),
}


@pytest.mark.parametrize("what", OPENED)
def test_of_two_that_open_a_folder_at_the_same_moment_one_writes_it(tmp_path, monkeypatch, what):
    going, real, heard = OPENED[what](place := tmp_path / "a"), files.reserve, []
    # Both have seen that nobody writes it.
    first, second = going(), going()

    def meanwhile(path):
        if not heard:
            heard.append(place)
            with pytest.raises(ValueError, match=WRITTEN):
                second()
        real(path)

    for module in (folder, result, lab):
        monkeypatch.setattr(module.files, "reserve", meanwhile)
    first()
    assert heard == [place]
    assert json.loads((place / "run.json").read_text())["status"] == "running"
    assert [p.name for p in place.glob(".*")] == [".reserve"]


CLAIMING = """
import sys, time
from pathlib import Path
from analysis.runs.claim import claimed
place = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
try:
    with claimed(place):
        print("got it", flush=True)
        sys.stdin.readline()
except ValueError as e:
    print(e, flush=True)
"""


def test_of_many_processes_one_gets_the_claim_of_a_process_that_was_killed(tmp_path):
    (tmp_path / ".claim-1").write_text(json.dumps(here() | {"began": 1.0}))
    command = [sys.executable, "-c", CLAIMING, str(tmp_path)]
    each = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for process in each:
        assert process.stdout.readline() == "ready\n"
    for process in each:
        process.stdin.write("now\n")
        process.stdin.flush()
    said = sorted(process.stdout.readline() for process in each)
    for process in each:
        process.communicate("end\n")
    assert ["got it" in one for one in said].count(True) == 1
    assert [WRITTEN in one or OPENED_BY in one for one in said].count(True) == 3
    assert [p.name for p in tmp_path.iterdir()] == [".claim-1"]


def test_a_claim_that_says_nothing_is_somebodys_for_a_moment_alone(tmp_path):
    (file := tmp_path / ".claim-1").touch()
    with pytest.raises(ValueError, match=OPENED_BY), claimed(tmp_path):
        pass
    os.utime(file, (time.time() - 60,) * 2)
    with claimed(tmp_path):
        pass


def long_ago(place):
    for path in (place, *place.rglob("*")):
        os.utime(path, (10**9, 10**9))


def test_a_run_that_was_killed_on_another_machine_is_nobodys_for_who_claims_it(home):
    """A container that begins anew has another name."""
    seeds.run(home / "a")
    about = json.loads((home / "a" / "run.json").read_text())
    (home / "a" / "run.json").write_text(json.dumps(about | {"process": here() | {"host": "another"}}))
    with claimed(home / "a"):
        assert about_of(home / "a")["status"] == "running"
    long_ago(home / "a")
    with claimed(home / "a"):
        assert about_of(home / "a")["status"] == "killed"
    assert trash.delete("a") and trash.trashed()


def test_a_claim_of_another_machine_is_somebodys_for_a_day(tmp_path):
    (tmp_path / ".claim-1").write_text(json.dumps(here() | {"host": "another"}))
    (tmp_path / "run.json").touch()
    os.utime(tmp_path / "run.json", (10**9, 10**9))
    with pytest.raises(ValueError, match=WRITTEN), claimed(tmp_path):
        pass
    long_ago(tmp_path)
    with claimed(tmp_path) as file:
        assert file.name == ".claim-2"


def test_a_number_that_is_free_again_is_nobodys_while_another_is_held(tmp_path):
    """Who found the first one held may have taken the second when the first had been given back."""
    (held := tmp_path / ".claim-2").write_text(json.dumps(here()))
    with pytest.raises(ValueError, match=WRITTEN), claimed(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == [held]
    held.write_text(json.dumps(here() | {"began": 1.0}))
    with claimed(tmp_path):
        assert (tmp_path / ".claim-1").exists()


def test_a_new_folder_is_empty_when_it_is_claimed(tmp_path, monkeypatch):
    real, made = files.new_folder, []

    def begun(path, what="something"):
        real(path, what)
        if not made:
            made.append(path)
            (path / "run.json").write_text("{}")

    monkeypatch.setattr(files, "new_folder", begun)
    with pytest.raises(ValueError, match="holds something already"), claimed_new(tmp_path / "a"):
        pass
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["run.json"]


def test_of_two_captures_that_begin_again_at_the_same_moment_one_is_made(tmp_path, tiny_llama, monkeypatch):
    model, tokens, spec = Named(twin(tiny_llama)), words(60), Spec("tiny", "words", ("dense",))
    next(killed := capture(model, tokens, spec, place := tmp_path / "s"))
    about = json.loads((place / CAPTURING).read_text())
    (place / CAPTURING).write_text(json.dumps(about | {"process": here() | {"began": 1.0}}))
    real, heard = capturing._remove, []

    def meanwhile(path):
        if not heard:
            heard.append(place)
            with pytest.raises(ValueError, match=WRITTEN):
                next(capture(model, tokens, spec, place))
        real(path)

    monkeypatch.setattr(capturing, "_remove", meanwhile)
    assert [*capture(model, tokens, spec, place)][-1] == 59
    assert heard == [place] and Stretch(place).tokens == 59
    assert not list(place.glob(".*"))
    del killed
