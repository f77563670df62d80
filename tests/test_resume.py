"""A run that goes on is the run that was never stopped, whenever and however it was stopped."""

import json
import shutil
import signal
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from analysis.cli import reading
from analysis.models.loading import load as load_model
from analysis.policies import POLICIES, Streaming, parse
from analysis.runs import checkpoint, resume
from analysis.runs.about import about_of
from analysis.runs.checkpoint import Checkpoints
from analysis.runs.folder import Folder
from analysis.runs.reader import load
from analysis.texts import read as read_text

from . import waiting

pytestmark = pytest.mark.whole

LANES = ["dense", "streaming:sinks=4,window=28", "h2o:budget=24,recent=4,interval=3", "recompute:window=20,stride=4"]
LANES += ["duo:full=50,sinks=2,window=16"]


def words(model, text, place, tokens=None, lanes=LANES, chunk=32):
    more = ["--tokens", str(tokens)] if tokens else []
    chosen = [word for lane in lanes for word in ("--policy", lane)]
    return [
        "stream",
        "--model",
        model,
        "--text",
        text,
        "--chunk",
        str(chunk),
        "--device",
        "cpu",
        *more,
        *chosen,
        "--out",
        place,
    ]


def short(*about, **more):
    """The words for half the text, in as many chunks."""
    return words(*about, chunk=16, **more)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """So long that all lanes evict, and no longer: it is read again from every moment."""
    path = tmp_path_factory.mktemp("text") / "ids.npy"
    np.save(path, np.random.default_rng(0).integers(0, 97, 300))
    return str(path)


STEPS = 1, 2, 9, 30, 40, 77, 161
"""Steps after which there is a copy of the run's folder, as a kill leaves it."""


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """Where the run that is never stopped lies once it has been read, and its copies."""
    return tmp_path_factory.mktemp("once")


@pytest.fixture
def copied(model, text, once, command):
    """Copies of the run that is never stopped, a lane of every kind, with checkpoints at every chunk."""
    if not (once / "whole").exists():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint, "EVERY", 0)
            copies(patch, once, STEPS)
            command(*short(model, text, once / "whole"))
    return once


@pytest.fixture
def whole(copied):
    """The run that is never stopped."""
    return load(copied / "whole")


def same(run, other):
    """Token by token."""
    assert run.first_token == other.first_token
    for a, b in zip(run.tracks, other.tracks, strict=True):
        for name in ("token_ids", "cache_tokens", "cache_bytes", "roles"):
            np.testing.assert_array_equal(getattr(a, name).view(), getattr(b, name).view(), err_msg=name)
        np.testing.assert_allclose(a.nll.view(), b.nll.view(), atol=1e-4)
        assert a.policies == b.policies
        assert (np.diff(a.seconds.view()) > -1).all()


def killed(place):
    """Make a folder one whose process is no more."""
    about = json.loads((place / "run.json").read_text())
    about["process"] = {**about["process"], "began": 1.0}
    (place / "run.json").write_text(json.dumps(about))


def copies(monkeypatch, where, steps):
    """Copy the folder of a run when it has taken in so many steps: what a kill leaves."""
    real, count = Folder.append, [0]

    def append(self, step):
        real(self, step)
        count[0] += 1
        if count[0] in steps:
            to = where / str(count[0])
            waiting.copied(self.path, to)
            killed(to)

    monkeypatch.setattr(Folder, "append", append)


def test_a_run_of_fewer_tokens_goes_on_to_be_the_whole_run(model, text, whole, tmp_path, command):
    place = tmp_path / "run"
    command(*short(model, text, place, 65))
    assert (place / "checkpoint").exists()
    said = command("resume", place, "--tokens", 150)
    assert "Nothing had to be read again" in said and "from a checkpoint at token 65" in said
    assert "Again:" not in said
    assert load(place).spec.tokens == 150
    command("resume", place, "--tokens", 300)
    found = load(place)
    same(found, replace_tokens(whole, found))
    assert [e["what"] for e in found.events if e["what"] != "warning"] == ["resumed", "resumed"]
    assert sorted(p.name for p in place.iterdir() if not p.name.startswith(".")) == [
        *("checkpoint", "events.jsonl", "pieces.arrow", "run.json", "sinks.npz"),
        *("summary.json", "tokens.parquet"),
    ]


def replace_tokens(whole, found):
    assert replace(whole.spec, tokens=300) == found.spec
    return whole


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_end_leaves_a_checkpoint_to_go_on_from(number, model, text, whole, tmp_path, command, monkeypatch):
    place, real, count = tmp_path / "run", Folder.append, [0]

    def append(self, step):
        real(self, step)
        count[0] += 1
        if count[0] == 21:
            signal.raise_signal(number)

    monkeypatch.setattr(Folder, "append", append)
    said = command(*short(model, text, place), code=130)
    assert f"analysis resume {place}" in said and about_of(place)["status"] == "interrupted"
    assert len(Checkpoints(place).newest().about["lanes"]) == len(LANES)
    said = command("resume", place)
    assert "Nothing had to be read again" in said
    same(load(place), whole)
    assert not (place / "checkpoint").exists()


@pytest.mark.parametrize("moment", ["_write_about", "pieces"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_end_before_the_first_chunk_is_no_kill(
    number, moment, model, text, whole, tmp_path, command, monkeypatch
):
    place, real = tmp_path / "run", getattr(Folder, moment)

    def now(self, *of):
        real(self, *of)
        monkeypatch.undo()
        signal.raise_signal(number)

    monkeypatch.setattr(Folder, moment, now)
    said = command(*short(model, text, place), code=130)
    assert f"analysis resume {place}" in said
    about = about_of(place)
    assert about["status"] == "interrupted" and "process" not in about and not (place / ".reserve").exists()
    command("resume", place)
    same(load(place), whole)
    assert load(place).pieces == whole.pieces and whole.pieces[0]


def test_a_run_that_fails_before_its_first_chunk_says_so(model, text, whole, tmp_path, command, monkeypatch):
    place = tmp_path / "run"

    def full(self, *of):
        raise ValueError("the disk is full: make room")

    monkeypatch.setattr(Folder, "pieces", full)
    said = command(*short(model, text, place), code=2)
    assert f"analysis resume {place}" in said and about_of(place)["status"] == "failed"
    monkeypatch.undo()
    command("resume", place)
    same(load(place), whole)


def test_a_run_that_was_killed_goes_on_from_any_moment(whole, copied, tmp_path, command):
    """With checkpoints at every chunk, at some, and none; and when all was read, and only its end had not been said."""
    for steps in (1, 2, 9, 40, 77, 161):
        shutil.copytree(copied / str(steps), tmp_path / str(steps))
        if steps == 40:
            shutil.rmtree(tmp_path / "40" / "checkpoint", ignore_errors=True)
        if steps == 77:
            # An older moment's.
            shutil.rmtree(tmp_path / "77" / "checkpoint")
            shutil.copytree(tmp_path / "run-9", tmp_path / "77" / "checkpoint")
        if steps == 9 and (tmp_path / "9" / "checkpoint").exists():
            shutil.copytree(tmp_path / "9" / "checkpoint", tmp_path / "run-9")
        said = command("resume", tmp_path / str(steps))
        assert "again" in said
        same(load(tmp_path / str(steps)), whole)
        assert load(tmp_path / str(steps)).status == "finished"


def test_a_run_that_was_killed_before_its_first_chunk_is_the_whole_run(whole, copied, tmp_path, command):
    place = tmp_path / "0"
    shutil.copytree(copied / "1", place, ignore=shutil.ignore_patterns("checkpoint"))
    for name in ("tokens.arrow", "sinks.arrow"):
        (place / name).write_bytes(b"")
    assert load(place).first_token is None
    command("resume", place)
    same(load(place), whole)


def test_a_line_of_events_cut_short_by_a_kill_goes(whole, copied, tmp_path, command):
    place = tmp_path / "30"
    shutil.copytree(copied / "30", place)
    with (place / "events.jsonl").open("a") as f:
        f.write('{"what": "swi')
    with (place / "tokens.arrow").open("ab") as f:
        f.write(b"\xff\xff\xff\xff half a chunk")
    command("resume", place)
    same(load(place), whole)
    assert [e["what"] for e in load(place).events if e["what"] != "warning"] == ["resumed"]


def files_of(place):
    return {p.relative_to(place): p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}


def test_a_record_that_says_something_else_is_left_as_it_was(model, text, tmp_path, command):
    place = tmp_path / "run"
    command(*short(model, text, place, 130))
    table = pq.read_table(place / "tokens.parquet").to_pandas()
    for column, value in (("nll", 9.5), ("token_id", 5)):
        changed = table.copy()
        changed.loc[77, column] = value
        schema = pq.read_schema(place / "tokens.parquet")
        pq.write_table(
            __import__("pyarrow").Table.from_pandas(changed, schema, preserve_index=False), place / "tokens.parquet"
        )
        shutil.rmtree(place / "checkpoint", ignore_errors=True)
        before = files_of(place)
        said = command("resume", place, "--tokens", 300, code=2)
        assert "token 77 of lane 0 (Dense)" in said and ("9.5" in said if column == "nll" else "is 5 in" in said)
        assert files_of(place) == before


def test_a_folder_that_is_written_is_refused(model, text, tmp_path, command):
    place = tmp_path / "run"
    command(*short(model, text, place, 40))
    asked, of = resume.stopped(place, 60), (load_model(model, device="cpu"), read_text(text))
    folder, before = Folder.reopened(place, load(place)), files_of(place)
    assert "is being written by process" in command("resume", place, "--tokens", 60, code=2)
    # Whoever had looked at it before, and had still to load the model, hears it as well.
    with pytest.raises(ValueError, match="is being written by process"):
        resume.resumed(asked, *of)
    assert files_of(place) == before
    folder.finish("interrupted")
    with pytest.raises(ValueError, match="was written by another process meanwhile"):
        resume.resumed(asked, *of)
    assert about_of(place)["status"] == "interrupted"


def test_another_text_or_other_weights_are_refused_in_a_sentence(model, tmp_path, command):
    text, place = tmp_path / "ids.npy", tmp_path / "run"
    ids = np.arange(300) * 7 % 97
    np.save(text, ids)
    mine = tmp_path / "model"
    shutil.copytree(model, mine)
    command(*short(str(mine), str(text), place, 60))
    np.save(text, ids[::-1])
    assert "text" in (said := command("resume", place, "--tokens", 90, code=2)) and "sha256" in said
    np.save(text, ids)
    weights = mine / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert "the model" in (said := command("resume", place, "--tokens", 90, code=2)) and "sha256" in said


def test_what_has_nothing_left_to_read_is_refused_in_a_sentence(model, text, tmp_path, command):
    command(*short(model, text, tmp_path / "some", 60))
    assert "--tokens asks for more" in command("resume", tmp_path / "some", code=2)
    assert "--tokens must be more than the 60 that" in command("resume", tmp_path / "some", "--tokens", 30, code=2)
    command(*short(model, text, tmp_path / "all", lanes=["window:window=8"]))
    assert "the text has no more" in command("resume", tmp_path / "all", code=2)
    assert "holds no run" in command("resume", tmp_path, code=2)


def test_switches_after_the_checkpoint_are_made_again(model, text, tmp_path, command, monkeypatch):
    """With and without sinks that are pinned again, at any distance from the checkpoint."""
    place = tmp_path / "run"
    monkeypatch.setattr(reading, "read_on", lambda *about: None)
    command(*short(model, text, place, lanes=["window:window=20", "dense"]))
    run = load(place)
    folder = Folder.reopened(place, run)
    network = load_model(model, device="cpu")
    lanes = resume.open_lanes(network, np.load(text).astype(np.int32), [parse(p) for p in run.spec.policies])
    twins = resume.open_lanes(network, np.load(text).astype(np.int32), [parse(p) for p in run.spec.policies])
    checkpoints = Checkpoints(place)

    def go_on(upto):
        for lane, twin in zip(lanes, twins, strict=True):
            while lane.position < upto:
                folder.append(lane.read(32, upto=upto))
                twin.read(32, upto=upto)

    def switch(index, policy, pin):
        lane = lanes[index]
        missing = lane.missing_sinks(policy)
        lane.switch(policy, pin=pin)
        twins[index].switch(policy, pin=pin)
        how = ("sinks pinned again" if pin else "without sinks") if missing else ""
        folder.event("switch", lane=index, position=lane.position, policy=str(policy), how=how)

    go_on(100)
    switch(1, POLICIES.find("h2o")(budget=24, recent=4), False)
    checkpoints.write(*resume.state_of(run, lanes))
    switch(0, Streaming(4, 12), True)
    go_on(150)
    switch(1, Streaming(4, 12), False)
    go_on(180)
    switch(0, parse("tova:budget=16,recent=4"), False)
    folder.finish("interrupted")
    going = resume.resumed(resume.stopped(place), network, read_text(text))
    assert "from a checkpoint at token 100" in going.said[0]
    assert [str(lane.policy) for lane in going.lanes] == [str(lane.policy) for lane in twins]
    for lane, twin in zip(going.lanes, twins, strict=True):
        while not lane.done:
            np.testing.assert_allclose(lane.read(32).nll, twin.read(32).nll, atol=1e-5)
    going.folder.finish("interrupted")


def test_a_lane_that_had_failed_begins_again_with_all_its_switches(model, text, tmp_path, command):
    place = tmp_path / "run"
    command(*short(model, text, place, 60, lanes=["window:window=20", "dense"]))
    run, network = load(place), load_model(model, device="cpu")
    run.go_on([0.0, 0.0])
    folder = Folder.reopened(place, run)
    lanes, twins = (
        resume.open_lanes(network, np.load(text).astype(np.int32), [parse(p) for p in run.spec.policies])
        for _ in range(2)
    )
    for lane, twin in zip(lanes, twins, strict=True):
        while lane.position < 60:
            lane.read(32, upto=60)
            twin.read(32, upto=60)
    for of in (lanes, twins):
        of[0].switch(Streaming(4, 12), pin=True)
    folder.event("switch", lane=0, position=60, policy="streaming:sinks=4,window=12", how="sinks pinned again")
    for lane, twin in zip(lanes, twins, strict=True):
        folder.append(lane.read(32, upto=90))
        twin.read(32, upto=90)
    Checkpoints(place).write(*resume.state_of(run, lanes, [0]))
    folder.finish("failed")
    going = resume.resumed(resume.stopped(place, 120), network, read_text(text))
    assert str(going.lanes[0].policy) == str(twins[0].policy)
    for lane, twin in zip(going.lanes, twins, strict=True):
        np.testing.assert_allclose(lane.read(30, upto=120).nll, twin.read(30, upto=120).nll, atol=1e-5)
    going.folder.finish("interrupted")


def test_seconds_go_on_from_the_last(model, text, tmp_path, command):
    place = tmp_path / "run"
    command(*short(model, text, place, 100, lanes=["window:window=8"]))
    before = load(place).tracks[0].seconds.view()
    table = command("resume", place, "--tokens", 200)
    after = load(place).tracks[0].seconds.view()
    np.testing.assert_array_equal(after[: len(before)], before)
    assert before[-1] < after[len(before)] < before[-1] + 60
    assert "nan" not in table
