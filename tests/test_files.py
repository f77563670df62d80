"""Laws of files: foreign ones are never overwritten, a full disk costs what it did not take, a kill is called one."""

import errno
import json
import os
import resource
import shutil
import signal
import threading
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from analysis import files
from analysis.chat.scripts import script_from_bytes
from analysis.experiments.ablation import Effect, EffectsFile
from analysis.figures import parse
from analysis.figures.export import export
from analysis.figures.report import report
from analysis.lab.folder import TrainingWriter, read
from analysis.lab.recipe import Recipe
from analysis.lab.training import Training
from analysis.maps.capture import capture
from analysis.maps.stretch import Stretch
from analysis.runs.about import about_of
from analysis.runs.folder import Folder, save
from analysis.runs.reader import load
from analysis.runs.result import ResultFolder
from analysis.runs.run import Run
from analysis.runs.spec import Spec
from analysis.runs.status import here, status_of

from .fuzz import seeds
from .test_record import SPEC, ends_alike, steps
from .test_status import ended

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_llama):
    """A run, a stretch and trainings, whole."""
    root = tmp_path_factory.mktemp("whole")
    seeds.run(root / "run", end="finished")
    seeds.stretch(root / "stretch", tiny_llama)
    seeds.trainings(root / "trainings")
    return root


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def one_line(caught) -> str:
    sentence = str(caught.value)
    assert sentence and "\n" not in sentence and "pickle" not in sentence
    return sentence


@pytest.mark.parametrize("data", [b"{}", b"", b"[]", b"\xff", b"[" * 200_000, b'{"spec": 3}', b'{"spec": {"text": 1}}'])
@pytest.mark.parametrize("name", ["run/run.json", "stretch/stretch.json", "trainings/0/run.json"])
def test_what_a_folder_says_of_itself_is_checked(whole, tmp_path, name, data):
    kind = name.split("/")[0]
    shutil.copytree(whole / kind, tmp_path / kind)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=r"\S") as caught:
        {"run": load, "stretch": Stretch, "trainings": read}[kind](tmp_path / kind)
    assert name in one_line(caught)


@pytest.mark.parametrize(
    "wrong",
    [{"sinks": 2**31}, {"sinks": 90}, {"first": 90}, {"step": 0}, {"window": 2**40}, {"sliding": -1}],
    ids=str,
)
def test_reach_that_no_text_of_its_length_has_is_one_sentence(whole, tmp_path, wrong):
    # 2^31 sinks would be 16 GB of positions.
    shutil.copytree(whole / "stretch", tmp_path / "stretch")
    file = tmp_path / "stretch" / "stretch.json"
    about = json.loads(file.read_text())
    about["segments"][0]["reach"] |= wrong
    file.write_text(json.dumps(about))
    with pytest.raises(ValueError, match="a reach") as caught:
        Stretch(tmp_path / "stretch")
    one_line(caught)


@pytest.mark.parametrize(
    "wrong",
    [
        {"policies": 3}, {"policies": [3]}, {"policies": "dense"}, {"tokens": "5"}, {"tokens": 2.5}, {"chunk": None},
        {"model": 1}, {"text": []}, {"sampling": 3}, {"sampling": {"seed": "x"}}, {"bos": 2}, {"special": None},
        {"weights": 8}, {"kv_heads": "1"}, {"dtype": ["float32"]}, {"more": 1},
    ],
)  # fmt: skip
def test_spec_with_a_value_of_another_type_is_one_sentence(wrong):
    with pytest.raises(ValueError, match="not the Spec of a run") as caught:
        Spec.from_json(json.dumps(json.loads(SPEC.to_json()) | wrong))
    one_line(caught)


def test_arrays_are_never_said_to_be_safe_with_pickles(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], object))
    np.savez(tmp_path / "a.npz", a=np.array([{}], object))
    with (tmp_path / "long.npy").open("wb") as f:
        np.lib.format.write_array(f, np.zeros(2, [(f"{'x' * 99}{i}", "f4") for i in range(300)]))
    kind = files.Kind("f", (None,))
    for work in (
        lambda: files.array(tmp_path / "a.npy", kind),
        lambda: files.array(tmp_path / "long.npy", kind),
        lambda: files.arrays(tmp_path / "a.npz", {"a": kind}),
        lambda: files.npy((tmp_path / "a.npy").read_bytes(), "a.npy"),
    ):
        with pytest.raises(ValueError, match=r"\S") as caught:
            work()
        one_line(caught)


def test_what_is_no_regular_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "run.json")
    with pytest.raises(ValueError, match="not a regular file"):
        load(tmp_path)


def test_lines_end_where_newlines_are_and_nowhere_else():
    said = "a\u2028b\u0085c\x0bd"
    assert script_from_bytes(f"{said}\nsecond".encode(), "s.txt")[0] == [said, "second"]
    assert script_from_bytes(json.dumps({"turns": [said]}, ensure_ascii=False).encode(), "s.jsonl")[0] == [said]
    with pytest.raises(ValueError, match=r"line 1 of s\.jsonl is not JSON"):
        script_from_bytes(b'{"turns": ' + b"[" * 100_000, "s.jsonl")


@pytest.mark.parametrize(
    "words",
    [
        ["stream", "--policy", "dense"],
        ["capture"],
        ["emergence", "steps=1,width=16,length=16,batch=2"],
        ["reproduce", "sinks", "--cache", "16", "--tokens", "30"],
    ],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize("name", ["tokens.parquet", "keys.npy", "curves.csv", "table.csv", "notes.txt"])
def test_a_folder_that_holds_something_else_is_left_as_it_is(run, model, text, tmp_path, words, name):
    (tmp_path / name).write_text("mine")
    words += [] if words[0] == "emergence" else ["--model", model, "--text", text]
    code, _, said = run(*words, "--device", "cpu", "--out", str(tmp_path))
    assert code == 2 and said.count("\n") == 1 and name in said and "another" in said
    assert [p.name for p in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "mine"


def test_a_figure_replaces_a_figure_and_nothing_else(whole, tmp_path):
    place = shutil.copytree(whole / "run", tmp_path / "run")
    (place / "mine.html").write_text("<p>mine")
    before = {p.name: p.read_bytes() for p in place.iterdir()}
    with pytest.raises(ValueError, match="not made by Sinkscope"):
        export(parse("sink-grid"), place, place / "sinks.npz")
    with pytest.raises(ValueError, match="not made by Sinkscope"):
        report(place, place / "mine.html")
    with pytest.raises(ValueError, match=r"a report is a page: name it run\.html"):
        report(place, place / "run.json")
    assert {p.name: p.read_bytes() for p in place.iterdir()} == before
    for kind in ("pdf", "svg", "png", "csv", "npz"):
        out = tmp_path / f"a.{kind}"
        out.write_text("mine")
        with pytest.raises(ValueError, match="not made by Sinkscope"):
            export(parse("memory"), place, out)
        assert out.read_text() == "mine"
        out.unlink()
        for _ in range(2):
            export(parse("memory"), place, out)
    (tmp_path / "b.csv.json").write_text("{}")
    with pytest.raises(ValueError, match=r"b\.csv\.json is there already"):
        export(parse("memory"), place, tmp_path / "b.csv")
    assert not (tmp_path / "b.csv").exists()


@pytest.mark.parametrize("kind", ["csv", "npz"])
def test_numbers_that_the_disk_does_not_take_leave_those_that_were_there_and_what_they_are_of(
    whole, tmp_path, kind, monkeypatch
):
    """No file may grow beyond a limit, which to a process is a full disk."""
    out = tmp_path / f"a.{kind}"
    export(parse("memory"), whole / "run", out)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    about = len(before[f"{out.name}.json"])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr("analysis.figures.export.rendered", lambda *_: bytes(4 * about))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * about, hard))
    try:
        with pytest.raises(ValueError, match="File too large"):
            export(parse("sink-grid"), whole / "run", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    monkeypatch.undo()
    export(parse("sink-grid"), whole / "run", out)


def test_two_who_write_one_file_at_once_write_it_whole(tmp_path):
    with files.written(tmp_path / "label.json") as one:
        one.write(b"one, and more")
        one.flush()
        thread = threading.Thread(target=files.write, args=(tmp_path / "label.json", "two"))
        thread.start()
        thread.join()
        assert (tmp_path / "label.json").read_text() == "two"
    assert (tmp_path / "label.json").read_text() == "one, and more"
    assert [p.name for p in tmp_path.iterdir()] == ["label.json"]


def test_a_name_may_be_as_long_as_a_system_lets_it_be_and_begin_as_that_of_a_file_beside_it(tmp_path):
    file = tmp_path / f"{'汇' * 83}.json"
    with files.written(file.with_suffix(".csv")) as beside:
        beside.write(b"numbers")
        files.write(file, "{}")
    assert {p.suffix: p.read_text() for p in tmp_path.iterdir()} == {".csv": "numbers", ".json": "{}"}


def test_what_fails_while_it_is_written_leaves_what_was_there(tmp_path, monkeypatch):
    files.write(tmp_path / "a", "first")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match=r"a cannot be written \(No space left"):
        files.write(tmp_path / "a", "second")
    assert (tmp_path / "a").read_text() == "first" and len(list(tmp_path.iterdir())) == 1


def test_run_on_a_full_disk_has_failed_and_keeps_what_was_taken(tmp_path, monkeypatch):
    """No file may grow beyond a limit, which to a process is a full disk."""
    place = tmp_path / "run"
    folder = Folder(place, Run(SPEC, 7), text_sha256="t", weights_sha256="w")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    monkeypatch.setattr("pyarrow.parquet.write_table", full)
    try:
        with pytest.raises(ValueError, match="File too large") as caught:
            list(map(folder.append, steps(0, seeds.Dense(), 20_000, chunk=64)))
        assert "make room" in one_line(caught)
        with pytest.raises(ValueError, match="No space left"):
            folder.finish("failed")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    track = load(place).tracks[0]
    assert len(track.nll) > 1000 and ends_alike(track)
    np.testing.assert_array_equal(track.nll.view(), folder.run.tracks[0].nll.view())
    assert about_of(place)["status"] == "failed" and load(place).status == "failed"


def test_what_cannot_begin_for_want_of_room_takes_none(tmp_path, monkeypatch):
    digests = {"text_sha256": "t", "weights_sha256": "w"}
    training = Training(Recipe(width=16, vocabulary=24, length=16, batch=4, steps=4))
    begins = {
        "run": lambda at: Folder(at, Run(SPEC, 7), **digests),
        "result": lambda at: ResultFolder(at, "costs", Run(SPEC), **digests),
        "training": lambda at: TrainingWriter(at, training, 1),
    }
    fails = {"fsync": (os, "fsync"), "room": (files.os, "urandom"), "tables": (pa.ipc, "new_stream")}
    for what, how in fails.items():
        with monkeypatch.context() as patch:
            patch.setattr(*how, full)
            for name in ["run"] if what == "tables" else begins:
                with pytest.raises(ValueError, match="No space left"):
                    begins[name](tmp_path / what / name)
                assert not (tmp_path / what / name).exists()


@pytest.mark.parametrize(("free", "has"), [(300_000, "0.3"), (299_999, "0.2"), (0, "0.0")])
def test_room_that_is_too_small_never_looks_as_if_it_were_enough(tmp_path, monkeypatch, free, has):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(ValueError, match=rf"a run needs 0\.4 MB on disk, and .* has {has} MB: make room"):
        files.check_room(tmp_path, 300_001 - files.RESERVE + 10_000, "a run")
    files.check_room(tmp_path, free - files.RESERVE, "a run")


@pytest.mark.parametrize("what", ["room", "allocation", "reading"])
def test_capture_without_room_ends_in_a_sentence_and_leaves_nothing(tiny_llama, tmp_path, monkeypatch, what):
    patched = {
        "room": ("shutil.disk_usage", lambda _: SimpleNamespace(free=70_000)),
        "allocation": ("os.posix_fallocate", full),
        "reading": ("analysis.metrics.median_size", full),
    }
    monkeypatch.setattr(*patched[what])
    with pytest.raises(ValueError, match=r"make room") as caught:
        seeds.stretch(tmp_path / "s", tiny_llama)
    one_line(caught)
    assert not (tmp_path / "s").exists()


def test_capture_that_is_stopped_leaves_nothing(tiny_llama, tmp_path):
    spec = Spec("tiny", "words", ("dense",))
    going = capture(seeds.Named(tiny_llama), seeds.IDS, spec, tmp_path / "s", chunk=8)
    next(going)
    assert (tmp_path / "s" / "queries.npy").stat().st_blocks * 512 >= 3 * 4 * 40 * 8 * 4
    going.close()
    assert not (tmp_path / "s").exists()


def test_a_polite_request_to_end_is_an_interruption(run, tmp_path, monkeypatch):
    """Raised where it would come: while the command works."""
    moments = Training.moments

    def ending(self, every):
        for moment in moments(self, every):
            signal.raise_signal(signal.SIGTERM)
            yield moment

    monkeypatch.setattr(Training, "moments", ending)
    before = signal.getsignal(signal.SIGTERM)
    try:
        code, *_ = run("emergence", "steps=9,width=16,length=16,batch=2", "--every", "1", "--out", str(tmp_path / "e"))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert code == 130 and len(read(tmp_path / "e")[0].curves["step"]) == 1
    assert json.loads((tmp_path / "e" / "run.json").read_text())["status"] == "interrupted"


def test_what_a_killed_capture_left_makes_room_for_the_next(tiny_llama, tmp_path):
    place = tmp_path / "s"
    place.mkdir()
    (place / "queries.npy").write_bytes(b"half")
    (place / ".capturing").write_text(json.dumps({"status": "running", "process": here()}))
    with pytest.raises(ValueError, match="is being captured"):
        seeds.stretch(place, tiny_llama)
    (place / ".capturing").write_text(json.dumps({"status": "running", "process": ended()}))
    seeds.stretch(place, tiny_llama)
    assert Stretch(place).tokens == 40 and not (place / ".capturing").exists()


def test_knock_outs_are_kept_as_they_come(tmp_path):
    kept = EffectsFile(tmp_path / "new" / "heads.csv")
    kept.add(Effect(0, 1, 0.5, 0.1))
    kept.add(Effect(0, 2, 0.75, 0.1))
    lines = (tmp_path / "new" / "heads.csv").read_text().splitlines()
    assert lines == ["layer,head,excess_nats_per_token,standard_error", "0,1,0.5,0.1", "0,2,0.75,0.1"]
    kept.finish()
    assert (tmp_path / "new" / "heads.csv").read_text().splitlines() == [lines[0], lines[2], lines[1]]
    with pytest.raises(ValueError, match="File exists"):
        EffectsFile(tmp_path / "new" / "heads.csv")


def test_no_row_of_knock_outs_is_cut_where_the_disk_is_full(tmp_path):
    file = tmp_path / "heads.csv"
    kept = EffectsFile(file)
    kept.add(Effect(0, 1, 0.5, 0.1))
    before, (soft, hard) = file.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    # Of the next row "0,2,1.25" fits, which would be another number.
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 8, hard))
    try:
        with pytest.raises(ValueError, match="File too large"):
            kept.add(Effect(0, 2, 1.25e-05, 0.1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file.read_bytes() == before and [*tmp_path.iterdir()] == [file]


def test_a_training_is_kept_as_it_goes_and_when_the_disk_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr("analysis.lab.folder.MAX_LOST", 0)
    monkeypatch.setattr("analysis.lab.folder.SHARE", 0)
    training = Training(Recipe(width=16, vocabulary=24, length=16, batch=4, steps=4))
    kept = TrainingWriter(tmp_path / "t", training, 1)
    moments = training.measurements(1)
    kept.add(next(moments))
    kept.add(next(moments))
    assert read(tmp_path / "t")[0].curves["step"].tolist() == [0, 1]
    assert status_of(json.loads((tmp_path / "t" / "run.json").read_text()), tmp_path / "t") == "running"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        kept.add(next(moments))
        assert "No space left" in kept.problem
        with pytest.raises(ValueError, match="No space left"):
            kept.finish("finished")
    assert read(tmp_path / "t")[0].curves["step"].tolist() == [0, 1]
    with monkeypatch.context() as patch:
        patch.setattr("analysis.lab.folder.np.savez_compressed", full)
        with pytest.raises(ValueError, match="No space left"):
            kept.finish("finished")
    # The room that was kept for it is enough to say so.
    assert json.loads((tmp_path / "t" / "run.json").read_text())["status"] == "failed"
    assert not (tmp_path / "t" / ".reserve").exists()
    for moment in moments:
        kept.add(moment)
    kept.finish("finished")
    assert read(tmp_path / "t")[0].curves["step"].tolist() == [0, 1, 2, 3, 4]
    assert json.loads((tmp_path / "t" / "run.json").read_text())["status"] == "finished"
    with pytest.raises(ValueError, match="holds something already"):
        TrainingWriter(tmp_path / "t", training, 1)


def test_a_run_of_a_page_is_not_saved_over_something_else(tmp_path):
    (tmp_path / "tokens.parquet").write_text("mine")
    with pytest.raises(ValueError, match="holds something already"):
        save(Run(SPEC, 7), tmp_path, text_sha256="t", weights_sha256="w")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="not that of a run"):
        save(Run(SPEC, 7), tmp_path, text_sha256="t", weights_sha256="w")
    assert (tmp_path / "tokens.parquet").read_text() == "mine"
