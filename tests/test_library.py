"""Laws of the library of runs: what lies in it, what it is called, what is deleted and comes back."""

import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from analysis.runs import library, resume, trash
from analysis.runs.comparison import compare
from analysis.runs.folder import save
from analysis.runs.preview import preview_of
from analysis.runs.reader import load
from analysis.runs.status import here
from app.panels.run_comparison import lane_labels
from app.panels.run_list import words_of

from .fuzz import seeds
from .recordings import made_up


def names() -> list[str]:
    return [e.name for e in library.entries()]


def test_home_is_what_is_named_else_the_variable_else_the_users_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SINKSCOPE_RUNS", str(tmp_path / "b"))
    assert library.home(tmp_path / "a") == tmp_path / "a"
    assert library.home() == tmp_path / "b"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SINKSCOPE_RUNS", "~/c")
    assert library.home() == tmp_path / "c"
    # Nobody's home: a folder of that name.
    monkeypatch.setenv("SINKSCOPE_RUNS", "~nobody-here/c")
    assert library.home() == Path("~nobody-here/c") and library.entries() == []
    monkeypatch.delenv("SINKSCOPE_RUNS")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert library.home() == tmp_path / "data" / "sinkscope" / "runs"


def test_new_folders_are_unlike_one_another_however_many_ask_at_once(home):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: library.new_folder("Hämlet / x"), range(40)))
    assert len(set(made)) == 40 and all(p.parent == home and not list(p.iterdir()) for p in made)
    assert all(library.fits(p.name) and "-Hamlet-x" in p.name for p in made)
    assert library.entries() == []


def test_library_that_nobody_made_is_empty(home):
    assert library.entries() == [] and trash.trashed() == [] and trash.free() == ""
    assert not home.exists()


@pytest.mark.parametrize("name", ["file", "file/runs"])
def test_library_that_is_no_folder_is_said(run, tmp_path, name):
    (tmp_path / "file").write_text("mine")
    code, _, said = run("runs", "list", "--runs", str(tmp_path / name))
    assert code == 2 and "cannot be read (" in said and "SINKSCOPE_RUNS" in said and said.count("\n") == 1


def test_runs_of_every_kind_are_recognised(home):
    model = home.parent / "model"
    network = seeds.model(model)
    seeds.run(home / "a", end="finished")
    seeds.run(home / "b", end="interrupted", chat=True)
    seeds.stretch(home / "c", network)
    seeds.trainings(home / "d")
    (home / "d" / "0").rename(home / "e")
    seeds.run(home / "f" / "one", end="finished")
    seeds.run(home / "f" / "two", end="finished")
    (home / "foreign").mkdir()
    (home / "foreign" / "notes.txt").write_text("mine")
    found = {e.name: e for e in library.entries()}
    kinds = {"a": "reading", "b": "chat", "c": "capture", "d": "training", "e": "training", "f": "grid"}
    assert {name: e.kind for name, e in found.items()} == kinds
    assert not any(e.problem for e in found.values())
    assert {e.status for e in found.values()} == {"finished", "interrupted"}
    assert found["a"].policies == seeds.POLICIES == found["f"].policies
    assert found["a"].title == "hamlet" and found["e"].title == "Training: softmax"


@pytest.mark.parametrize(("ends", "said"), [("killed", "killed"), ("interrupted", "interrupted"), ("", "running")])
def test_several_trainings_have_ended_as_they_have(home, ends, said):
    seeds.trainings(home / "d")
    file = home / "d" / "1" / "run.json"
    about = json.loads(file.read_text()) | {"status": ends or "running", "started": "2020-01-01T00:00:00+00:00"}
    if ends == "killed":
        about |= {"status": "running", "process": here() | {"began": 1.0}}
    file.write_text(json.dumps(about if ends else about | {"process": here()}))
    found = library.entry("d")
    assert (found.status, found.live, found.goes_on) == (said, not ends, bool(ends))
    assert found.started == "2020-01-01T00:00:00+00:00"


def test_a_stretch_that_is_handed_on_began_when_it_began(home, tiny_llama):
    seeds.stretch(home / "c", tiny_llama)
    began = library.entry("c").started
    for file in (home / "c").iterdir():
        os.utime(file, (10**9, 10**9))
    assert library.entry("c").started == began > "2020"


def test_a_grid_of_which_a_run_was_interrupted_does_not_go_on_by_itself(home):
    seeds.run(home / "f" / "one", end="finished")
    seeds.run(home / "f" / "two", end="interrupted")
    assert library.entry("f").status == "interrupted" and not library.entry("f").goes_on


def test_preview_that_is_kept_says_what_the_run_says(home):
    seeds.run(home / "a", end="finished")
    kept = library.entry("a").preview
    assert (home / "a" / "summary.json").exists()
    assert kept == preview_of(load(home / "a"))
    assert [lane.tokens for lane in kept.lanes] == [40, 40]
    assert kept.lanes[0].perplexity == pytest.approx(np.exp(np.mean(load(home / "a").tracks[0].nll.view())), rel=1e-3)
    assert (kept.layers, kept.heads) == (2, 3)


def test_a_list_calls_a_switched_lane_by_all_policies_that_it_read_with(home, run, monkeypatch):
    """The perplexity beside its name is not that of the policy that it began with."""
    monkeypatch.setenv("COLUMNS", "200")
    policies = ("dense", "window:window=64", "streaming:sinks=4,window=60")
    # Lane 2 is switched before it has read anything.
    changes = {1: (200, "streaming:sinks=4,window=28"), 2: (1, "window:window=32")}
    save(made_up(300, policies, switches=changes), home / "a", text_sha256="", weights_sha256="")
    entry, called = library.entry("a"), ["Dense", "Window 64 → Sinks + window 4 + 28", "Window 32"]
    assert entry.lanes == [lane.name for lane in entry.preview.lanes] == called
    listed, words = run("runs")[1], words_of(entry, "a")
    assert all(name in listed and f"{name} <b>" in words for name in called)
    assert lane_labels(compare([load(home / "a")], ["a"]), ["a"]) == [f"a: {name}" for name in called]


def test_preview_follows_the_tables_it_is_of(home):
    seeds.run(home / "a", end="finished")
    seeds.run(home / "longer", end="finished", chat=True)
    before = library.entry("a").preview
    (home / "a" / "tokens.parquet").write_bytes(b"PAR1")
    assert library.entry("a").problem and library.entry("a").preview is None
    (home / "a" / "summary.json").write_text('{"of": {}, "preview": {"lanes": []}}')
    assert library.entry("a").problem
    seeds.run(home / "b", end="finished")
    (home / "b" / "summary.json").write_text("[" * 10**5)
    assert library.entry("b").preview == before


@pytest.mark.parametrize("form", [0, 10**6])
def test_preview_that_another_version_kept_is_made_anew(home, form):
    seeds.run(home / "a", end="finished")
    before, file = library.entry("a").preview, home / "a" / "summary.json"
    kept = json.loads(file.read_text()) | {"form": form}
    kept["preview"]["lanes"][0]["name"] = "as it was called then"
    file.write_text(json.dumps(kept))
    assert library.entry("a").preview == before and "as it was called then" not in file.read_text()


def test_a_list_reads_no_table_of_a_run_that_it_has_a_preview_of(home):
    """A library of long runs is listed at once."""
    for name in ("a", "b"):
        seeds.run(home / name, end="finished", chat=name == "b")
    before = library.entries()
    for file in (*home.glob("*/*.parquet"), *home.glob("*/*.npz")):
        of = file.stat()
        file.write_bytes(b"\0" * of.st_size)
        os.utime(file, ns=(of.st_atime_ns, of.st_mtime_ns))
        with pytest.raises(ValueError, match=file.parent.name):
            load(file.parent)
    found = library.entries()
    assert len(found) == 2 and [e.preview for e in found] == [e.preview for e in before] and found[0].preview


def test_titles_and_pins_stay_and_take_nothing_from_the_run(home):
    seeds.run(home / "a", end="finished")
    before = library.entry("a")
    library.rename("a", "  Drop\n the \x1b[31msinks\u202e ")
    library.pin("a")
    after = library.entry("a")
    assert after.title == "Drop the [31msinks" and after.label.pinned
    assert after.preview == before.preview
    library.rename("a", "")
    library.pin("a", False)
    assert library.entry("a").title == before.title and not library.entry("a").label.pinned
    (home / "a" / "label.json").write_text('{"title": 7}')
    assert library.entry("a").title == before.title and not library.entry("a").problem


def test_pinned_runs_come_first_and_then_the_newest(home):
    for name in ("a", "b", "c"):
        seeds.run(home / name, end="finished")
        about = (home / name / "run.json").read_text()
        start = about.index('"started": "') + len('"started": "')
        (home / name / "run.json").write_text(f"{about[:start]}202{ord(name) - 96}{about[start + 4 :]}")
    assert names() == ["c", "b", "a"]
    library.pin("a")
    assert names() == ["a", "c", "b"]


def test_search_finds_all_words_wherever_they_stand(home):
    seeds.run(home / "a", end="finished")
    seeds.run(home / "b", end="interrupted", chat=True)
    library.rename("a", "Sinks")
    found = [e.name for e in library.entries() if e.says("SINKS hamlet window=8")]
    assert found == ["a"]
    assert [e.name for e in library.entries() if e.says("conversation")] == ["b"]


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "a/../a", "/etc", ".trash", "a\0", "x" * 300, "b", "C:\\x"])
def test_names_that_are_none_reach_no_file(home, name):
    seeds.run(home / "a", end="finished")
    for ask in (library.find, library.entry, trash.delete, library.pin):
        with pytest.raises(ValueError, match="the library has no run"):
            ask(name)


def test_linked_folders_are_no_runs_of_the_library(home, tmp_path):
    seeds.run(tmp_path / "elsewhere", end="finished")
    home.mkdir()
    (home / "a").symlink_to(tmp_path / "elsewhere")
    assert names() == []
    with pytest.raises(ValueError, match="has no run"):
        trash.delete("a")


def test_deleted_run_comes_back_as_it_was(home):
    seeds.run(home / "a", end="finished")
    before = {p.name: p.read_bytes() for p in (home / "a").iterdir()}
    when = trash.delete("a")
    assert names() == [] and trash.trashed() == [(when, "a")]
    assert trash.undo(when) == "a"
    assert {p.name: p.read_bytes() for p in (home / "a").iterdir()} == before
    assert trash.trashed() == []
    with pytest.raises(ValueError, match="gone for good"):
        trash.undo(when)


def test_run_that_cannot_be_deleted_leaves_no_folder_behind(home, monkeypatch):
    seeds.run(home / "a", end="finished")

    def refused(path, to):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(ValueError, match="cannot be deleted"):
        trash.delete("a")
    assert names() == ["a"] and not list((home / ".trash").iterdir())


def test_deleted_run_comes_back_beside_one_that_has_its_name_now(home):
    seeds.run(home / "a", end="finished")
    when = trash.delete("a")
    seeds.run(home / "a", end="interrupted")
    assert trash.undo(when) == "a-2"
    assert {e.name: e.status for e in library.entries()} == {"a": "interrupted", "a-2": "finished"}


def test_deleted_run_comes_back_from_beside_what_a_system_put_there(home):
    seeds.run(home / "a", end="finished")
    when = trash.delete("a")
    (home / ".trash" / when / ".DS_Store").touch()
    assert trash.undo(when) == "a" and names() == ["a"] and trash.trashed() == []


def test_run_that_goes_while_it_is_brought_back_leaves_no_empty_folder(home, monkeypatch):
    seeds.run(home / "a", end="finished")
    when = trash.delete("a")

    def meanwhile(place, name):
        shutil.rmtree(home / ".trash" / when)
        return library.unique(place, name)

    monkeypatch.setattr(trash, "unique", meanwhile)
    with pytest.raises(ValueError, match="cannot be brought back"):
        trash.undo(when)
    assert [path.name for path in home.iterdir()] == [".trash"]


@pytest.mark.parametrize("when", ["", "..", "../x", "1", "x", "²", "9" * 400])
def test_what_was_never_deleted_does_not_come_back(home, when):
    with pytest.raises(ValueError, match="gone for good"):
        trash.undo(when)


def test_run_that_is_written_is_neither_deleted_nor_freed(home, monkeypatch):
    seeds.run(home / "a")
    assert library.entry("a").live
    with pytest.raises(ValueError, match="still being written"):
        trash.delete("a")
    monkeypatch.setenv("SINKSCOPE_RUNS_GB", "1e-9")
    assert trash.free() == "" and names() == ["a"]


def test_limit_frees_what_was_deleted_first_and_then_the_oldest_that_nobody_pinned(home, monkeypatch):
    for i, name in enumerate(("old", "pinned", "mine", "new", "gone")):
        seeds.run(home / name, end="finished")
        for file in (home / name).iterdir():
            os.utime(file, (10**9 + i, 10**9 + i))
    library.pin("pinned")
    (home / "mine" / "notes.txt").write_text("of a person")
    for name in ("pinned", "mine"):
        for file in (home / name).iterdir():
            os.utime(file, (10**9, 10**9))
    trash.delete("gone")
    sizes = {e.name: e.size for e in library.entries()}
    # Room for all but what was deleted.
    monkeypatch.setenv("SINKSCOPE_RUNS_GB", str((sum(sizes.values()) + 10) / 1e9))
    assert trash.free() == "" and trash.trashed() == [] and len(names()) == 4
    monkeypatch.setenv("SINKSCOPE_RUNS_GB", str((sum(sizes.values()) - 10) / 1e9))
    assert "1 old run (hamlet; 0.00 GB) had to go" in trash.free()
    assert sorted(names()) == ["mine", "new", "pinned"] and trash.trashed() == []
    assert "1 old run (hamlet; 0.00 GB) had to go" in trash.last_freed()
    monkeypatch.setenv("SINKSCOPE_RUNS_GB", "1e-9")
    trash.free(keep="new")
    assert sorted(names()) == ["mine", "new", "pinned"]
    trash.free()
    assert sorted(names()) == ["mine", "pinned"]


@pytest.mark.parametrize("of", ["folder", "run"])
def test_deleted_run_that_another_process_removes_meanwhile_ends_nothing(home, of, monkeypatch):
    seeds.run(home / "a", end="finished")
    seeds.run(home / "b", end="finished")
    folder = home / ".trash" / trash.delete("a")
    trash.delete("b")
    scandir, going = os.scandir, [folder if of == "folder" else folder / "a"]

    def look(path="."):
        if going and str(path) == str(going[0]):
            # Removed between the moment when its name was read and this.
            shutil.rmtree(going.pop())
        return scandir(path)

    monkeypatch.setattr(os, "scandir", look)
    monkeypatch.setattr(os, "listdir", lambda path=".": [f.name for f in look(path)])
    assert trash.free() == "" and not going
    assert [name for _, name in trash.trashed()] == ["b"]


def test_deleted_run_is_gone_after_a_day_and_leftovers_too(home, monkeypatch):
    seeds.run(home / "a", end="finished")
    library.new_folder("x")
    (home / ".import-x").mkdir()
    (home / "own").mkdir()
    when = trash.delete("a")
    trash.free()
    assert trash.trashed() == [(when, "a")] and len(list(home.iterdir())) == 4
    now = time.time_ns() + 2 * 86_400 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: now)
    monkeypatch.setattr(time, "time", lambda: now / 1e9)
    trash.free()
    assert trash.trashed() == [] and sorted(p.name for p in home.iterdir()) == [".trash", "own"]
    assert trash.last_freed() == ""


@pytest.mark.parametrize("said", ["x", "nan", "-1", "0", "inf"])
def test_limit_that_is_no_number_is_said(home, monkeypatch, said):
    monkeypatch.setenv("SINKSCOPE_RUNS_GB", said)
    with pytest.raises(ValueError, match="SINKSCOPE_RUNS_GB must be a number of gigabytes"):
        trash.free()


def test_damaged_run_is_listed_with_a_sentence_and_can_be_deleted(home):
    seeds.run(home / "a", end="finished")
    (home / "a" / "run.json").write_text("{")
    (home / "b").mkdir()
    (home / "b" / "tokens.parquet").write_bytes(b"")
    (home / "c").mkdir()
    (home / "c" / "run.json").mkdir()
    found = library.entries()
    assert sorted(e.name for e in found) == ["a", "b", "c"]
    for e in found:
        assert not e.kind and e.problem.endswith(".") and "\n" not in e.problem
        trash.delete(e.name)
    assert names() == []


def test_run_of_another_machine_is_given_up_after_a_day(home):
    """And goes on from there; a container has another name each time.  The label of a run is no news of it."""
    seeds.run(home / "a")
    file = home / "a" / "run.json"
    about = file.read_text()
    start = about.index('"host": "') + len('"host": "')
    file.write_text(about[:start] + "elsewhere-" + about[start:])
    assert library.entry("a").live
    with pytest.raises(ValueError, match="is being written by process"):
        resume.stopped(home / "a")
    for path in (home / "a").iterdir():
        os.utime(path, (10**9, 10**9))
    library.rename("a", "mine")
    assert library.entry("a").status == "killed" and library.entry("a").goes_on
    assert resume.stopped(home / "a").path == home / "a"
