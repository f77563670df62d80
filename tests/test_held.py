"""Laws of what lies in the folders of a library: files of runs and of people, at any depth, and runs of any kind."""

import errno
import json
import os
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from analysis import files
from analysis.figures.inputs import check_folder
from analysis.lab.folder import About, read, write, write_about
from analysis.lab.recipe import Recipe
from analysis.lab.training import Training
from analysis.maps.capture import cut_off
from analysis.runs import folder, library, reader, resume, trash
from analysis.runs.archive import export, take_in
from analysis.runs.folder import Folder, save
from analysis.runs.held import strangers
from analysis.runs.reader import load
from analysis.runs.status import CAPTURING, here

from .fuzz import seeds
from .recordings import made_up


@pytest.mark.parametrize("where", ["notes/deep/thesis.md", "notes/a/b/c/run.json", "notes/deep/tokens.parquet"])
def test_limit_leaves_runs_in_which_a_person_keeps_files_however_deep(home, monkeypatch, where):
    seeds.run(home / "mine", end="finished")
    before = library.entry("mine").size
    (file := home / "mine" / where).parent.mkdir(parents=True)
    file.write_bytes(bytes(1000))
    assert strangers(home / "mine") == [where]
    assert library.entry("mine").size == before + 1000
    monkeypatch.setenv("SINKSCOPE_RUNS_GB", "1e-9")
    assert trash.free() == "" and file.exists()


def test_size_of_several_trainings_has_their_checkpoints_which_are_nobodys_own_files(home):
    seeds.trainings(home / "d")
    before = library.entry("d").size
    (home / "d" / "1" / "checkpoint").mkdir()
    (home / "d" / "1" / "checkpoint" / "00000001.safetensors").write_bytes(bytes(1000))
    assert library.entry("d").size == before + 1000
    assert strangers(home / "d") == []


def test_a_folder_of_runs_says_all_texts_and_models_that_they_are_of(home):
    for name, model, text in (("1", "tiny", "/a/a play.txt"), ("2", "some/other", "hamlet"), ("3", "tiny", "hamlet")):
        run = made_up(30, ("dense",))
        run.spec = replace(run.spec, model=model, text=text)
        save(run, home / "f" / name, text_sha256="t", weights_sha256="w")
    found = library.entry("f")
    assert (found.kind, found.model) == ("grid", "tiny, other")
    assert found.text == "a play, hamlet" and found.title == "Grid of runs: a play, hamlet"


@pytest.mark.parametrize("end", ["finished", "saved"])
def test_a_run_that_ended_and_has_no_tokens_is_damaged(home, end):
    if end == "saved":
        save(made_up(30), home / "a", text_sha256="t", weights_sha256="w")
    else:
        seeds.run(home / "a", end=end)
    (home / "a" / "tokens.parquet").unlink()
    with pytest.raises(ValueError, match=r"lacks tokens\.parquet"):
        load(home / "a")
    assert "lacks tokens.parquet" in library.entry("a").problem


@pytest.mark.parametrize("end", ["", "finished"])
def test_a_run_that_is_saved_over_what_a_killed_one_left_is_read_as_it_was_saved(home, end):
    seeds.run(home / "whole", end="finished")
    seeds.run(path := home / "a", end=end)
    if end:
        # Killed when all but the removal of what grew was done.
        seeds.run(home / "b")
        for name in ("tokens.arrow", "sinks.arrow"):
            (home / "b" / name).rename(path / name)
    else:
        about = json.loads((path / "run.json").read_text())
        about["process"]["began"] -= 100
        (path / "run.json").write_text(json.dumps(about))
    run = load(home / "whole")
    run.tracks[0].nll.view()[:] += 1
    save(run, path, text_sha256="t", weights_sha256="w")
    again = load(path)
    for one, other in zip(run.tracks, again.tracks, strict=True):
        assert other.nll.view().tolist() == one.nll.view().tolist()
    assert (again.status, library.entry("a").problem) == ("saved", "")


def test_a_run_is_not_saved_over_more_of_it_nor_while_somebody_writes_it(home):
    whole, shorter = made_up(400), made_up(400, ends={0: 200})
    save(whole, home / "a", text_sha256="t", weights_sha256="w")
    with pytest.raises(ValueError, match=r"holds 400 tokens of a lane, and what would be saved over them has 200"):
        save(shorter, home / "a", text_sha256="t", weights_sha256="w")
    assert len(load(home / "a").tracks[0].nll) == 399
    about = json.loads((home / "a" / "run.json").read_text())
    (home / "a" / "run.json").write_text(json.dumps(about | {"status": "running", "process": here()}))
    with pytest.raises(ValueError, match="is being written by process"):
        save(whole, home / "a", text_sha256="t", weights_sha256="w")


@pytest.mark.parametrize("name", ["tokens.arrow", "sinks.arrow", "events.jsonl"])
def test_a_run_that_a_full_disk_keeps_from_beginning_is_not_listed_as_damaged(home, monkeypatch, name):
    real = Path.open

    def full(path, *how, **more):
        if path.name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, *how, **more)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(ValueError, match="No space left on device"):
        seeds.run(home / "a")
    assert library.entries() == [] and not (home / "a").exists()


def test_a_saved_run_that_has_no_room_to_go_on_is_read_as_it_was(home, monkeypatch):
    save(made_up(300), path := home / "a", text_sha256="t", weights_sha256="w")
    before, real = load(path), files.write

    def full(path, text):
        if path.name == "events.jsonl":
            raise files.unwritten(path, OSError(errno.ENOSPC, "No space left on device"))
        real(path, text)

    monkeypatch.setattr(files, "write", full)
    with pytest.raises(ValueError, match="No space left on device"):
        Folder.reopened(path, load(path))
    assert [len(track.nll) for track in load(path).tracks] == [len(track.nll) for track in before.tracks]
    assert (library.entry("a").status, library.entry("a").problem) == ("saved", "")


@pytest.mark.parametrize("end", ["finished", "begun"])
def test_a_run_that_ends_or_goes_on_while_it_is_read_is_read_whole(home, monkeypatch, end):
    seeds.run(home / "whole", end="finished")
    seeds.run(path := home / "a", end="finished" if end == "begun" else "")
    whole, once, (read, finished) = load(home / "whole"), [1], (reader.read_stream, reader._finished)

    def meanwhile(*how):
        if once and once.pop():
            if end == "begun":
                Folder.reopened(path, whole)
            else:
                for name in ("run.json", "tokens.parquet", "sinks.npz"):
                    (home / "whole" / name).rename(path / name)
                for name in ("tokens.arrow", "sinks.arrow"):
                    (path / name).unlink()
        return (finished if end == "begun" else read)(*how)

    monkeypatch.setattr(reader, "_finished" if end == "begun" else "read_stream", meanwhile)
    assert [len(track.nll) for track in load(path).tracks] == [39, 39]


def test_a_run_that_goes_on_or_is_pinned_while_the_limit_looks_is_not_freed(home, monkeypatch):
    for name in ("a", "b", "c"):
        seeds.run(home / name, end="interrupted")
    listed = library.entries()
    monkeypatch.setattr(trash, "entries", lambda place: listed)
    Folder.reopened(home / "a", load(home / "a"))
    library.pin("b")
    monkeypatch.setenv("SINKSCOPE_RUNS_GB", "1e-9")
    trash.free()
    assert sorted(e.name for e in library.entries()) == ["a", "b"]


def test_the_run_that_was_deleted_last_comes_back_first_whatever_the_clock_says(home, monkeypatch):
    for name in ("a", "b"):
        seeds.run(home / name, end="finished")
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 10**18)
    trash.delete("a")
    monkeypatch.setattr(time, "time_ns", lambda: now)
    trash.delete("b")
    assert [name for _, name in trash.trashed()] == ["b", "a"]
    # The name of its folder only says the order: a day is a day.
    when = home / ".trash" / trash.trashed()[0][0]
    os.utime(when, (time.time() - 2 * trash.DAY,) * 2)
    trash.free()
    assert [name for _, name in trash.trashed()] == ["a"]


def test_a_training_that_was_killed_between_two_of_its_files_is_taken_in(home, tmp_path):
    # Maps are written first.
    training = Training(Recipe(width=16, vocabulary=24, length=16, batch=4, steps=2))
    moments = list(training.measurements(1))
    write(home / "a", training.recipe, moments[:-1], training.example, "running")
    curves = (home / "a" / "curves.csv").read_bytes()
    write(home / "a", training.recipe, moments, training.example, "running")
    (home / "a" / "curves.csv").write_bytes(curves)
    write_about(home / "a", About(training.recipe, "running", process=here()))
    export("a", tmp_path / "a.zip")
    name = take_in(tmp_path / "a.zip", check_folder)
    assert (library.entry(name).status, library.entry(name).problem) == ("killed", "")
    assert len(read(home / name)[0].maps) == 2


def test_a_pin_stays_with_who_pinned(home, tmp_path):
    seeds.run(home / "a", end="finished")
    library.rename("a", "Mine")
    library.pin("a")
    export("a", tmp_path / "a.zip")
    label = library.entry(take_in(tmp_path / "a.zip", check_folder)).label
    assert (label.title, label.pinned) == ("Mine", False) and library.entry("a").label.pinned


def test_a_run_that_ends_while_it_is_packed_is_packed_whole(home, tmp_path, monkeypatch):
    seeds.run(home / "a")
    seeds.run(home / "b", end="finished")
    real, once = zipfile.ZipFile.write, [1]

    def meanwhile(packed, found, written):
        if once and once.pop():
            for name in ("run.json", "tokens.parquet", "sinks.npz"):
                (home / "b" / name).rename(home / "a" / name)
            for name in ("tokens.arrow", "sinks.arrow"):
                (home / "a" / name).unlink()
        real(packed, found, written)

    monkeypatch.setattr(zipfile.ZipFile, "write", meanwhile)
    export("a", tmp_path / "a.zip")
    again = load(home / take_in(tmp_path / "a.zip", check_folder))
    assert again.status == "finished" and [len(track.nll) for track in again.tracks] == [39, 39]


def test_a_capture_that_was_cut_off_is_not_packed_as_if_it_were_one(home, tmp_path, tiny_llama):
    seeds.stretch(home / "a", tiny_llama)
    (home / "a" / "stretch.json").rename(home / "a" / CAPTURING)
    with pytest.raises(ValueError, match="has not come to its end"):
        export("a", tmp_path / "a.zip")
    assert not list(tmp_path.glob("*.zip"))


@pytest.mark.parametrize("tokens", [None, 40])
def test_a_run_that_has_read_all_says_so_before_its_model_is_loaded(home, tokens):
    run = made_up(40)
    run.spec = replace(run.spec, tokens=tokens)
    save(run, home / "a", text_sha256="t", weights_sha256="w")
    why = "the text has no more" if tokens is None else "--tokens asks for more"
    with pytest.raises(ValueError, match=f"read all 40 tokens that it was asked for: {why}"):
        resume.stopped(home / "a")
    if tokens is None:
        with pytest.raises(ValueError, match="the text has no more"):
            resume.stopped(home / "a", 40)
    else:
        assert resume.stopped(home / "a", 41).spec.tokens == 41


def test_a_run_whose_tables_have_no_memory_is_written_by_nobody_and_kept_as_it_grew(home, monkeypatch):
    def full(run, path):
        raise MemoryError

    monkeypatch.setattr(folder, "write_tables", full)
    with pytest.raises(MemoryError):
        seeds.run(home / "a", end="finished")
    found = library.entry("a")
    assert (found.status, found.problem, found.goes_on) == ("failed", "", True)
    assert [len(track.nll) for track in load(home / "a").tracks] == [39, 39]


def test_a_stretch_that_was_killed_when_it_was_written_is_whole(home, tiny_llama):
    seeds.stretch(home / "a", tiny_llama)
    asked = {"spec": json.loads((home / "a" / "stretch.json").read_text())["spec"]}
    (home / "a" / CAPTURING).write_text(json.dumps({"status": "running", "process": here() | {"began": 1.0}} | asked))
    assert cut_off(home / "a") is None
    assert (library.entry("a").status, library.entry("a").goes_on) == ("finished", False)


def test_a_run_that_is_asked_for_fewer_tokens_than_it_has_says_how_many_these_are(home):
    seeds.run(home / "a", end="finished")
    with pytest.raises(ValueError, match="tokens must be more than the 40 that this run has read already, not 10"):
        resume.stopped(home / "a", 10)


@pytest.mark.parametrize("outer", ["from a colleague", "run"])
def test_a_run_that_lies_one_folder_too_deep_is_taken_in_as_a_run(home, tmp_path, outer):
    seeds.run(tmp_path / "deep" / outer / "run", end="finished")
    (tmp_path / "deep" / outer / "run" / "checkpoint").mkdir()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as z:
        for path in (tmp_path / "deep").rglob("*"):
            z.write(path, path.relative_to(tmp_path / "deep"))
    found = library.entry(take_in(tmp_path / "a.zip", check_folder))
    assert (found.name, found.kind, found.problem) == ("run", "reading", "")
    assert len(load(found.path).tracks[0].nll) == 39
    assert [e.name for e in library.entries()] == ["run"] and not list(home.glob(".*"))


@pytest.mark.parametrize("what", ["trainings", "grid"])
def test_what_is_a_folder_of_one_is_taken_in_as_it_was(home, tmp_path, what):
    if what == "grid":
        seeds.run(home / "a" / "dense", end="finished")
        (home / "a" / "table.csv").write_text("Policy\n")
    else:
        training = Training(Recipe(width=16, vocabulary=24, length=16, batch=4, steps=2))
        write(home / "a" / "1-softmax", training.recipe, list(training.measurements(1)), training.example, "finished")
    before = library.entry("a")
    export("a", tmp_path / "a.zip")
    found = library.entry(take_in(tmp_path / "a.zip", check_folder))
    assert (found.kind, found.text, found.problem) == (before.kind, before.text, "")
    folders = [[p.name for p in path.iterdir() if p.is_dir()] for path in (found.path, home / "a")]
    assert folders[0] == folders[1]


def test_a_list_opens_each_file_of_a_run_once(home, monkeypatch):
    seeds.run(home / "r", end="finished")
    library.entries()
    real, read_of = files.contents, []
    monkeypatch.setattr(files, "contents", lambda path, *most: read_of.append(path.name) or real(path, *most))
    (entry,) = library.entries()
    assert entry.preview is not None and not entry.problem
    # Without a title there is no label to be read.
    assert sorted(read_of) == ["label.json", "run.json", "summary.json"]
