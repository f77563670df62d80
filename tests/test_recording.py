"""A recording shows at every position what a live page showed there, and says what it does not have."""

import base64
import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from analysis.engine.stream import open_lanes
from analysis.maps.recent import HeadMap, head_map
from analysis.models.loading import load
from analysis.policies import parse
from analysis.runs import library
from analysis.runs.codec import levels_of
from analysis.runs.folder import Folder, save
from analysis.runs.maps import EACH, MOST, SIDE, MapsFile, RecordedMap, read_maps
from analysis.runs.reader import load as load_run
from analysis.runs.recording import recorded, recording
from analysis.runs.run import Run
from analysis.runs.screen import GRIDS, MODES
from analysis.runs.spec import Spec
from app import recordings
from app.view import View

from .fuzz import seeds
from .recordings import FOUR, decoded, live_frame, made_up
from .test_jobs_reading import begin
from .test_resume import killed
from .waiting import copied, until

pytestmark = pytest.mark.whole

SHARED = Path(__file__).parents[1] / "app" / "components" / "shared"
SCRIPT = "\n".join((SHARED / f"{part}.js").read_text(encoding="utf-8") for part in ("frame", "recording"))


@pytest.fixture(scope="module")
def script(chromium):
    """The script that plays recordings, in a browser: opens one, and tells frames of it as numbers."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--headless", "--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.add_script_tag(content=f"{SCRIPT}\nwindow.openRecording = openRecording;")
        yield page
        browser.close()


def frames(page, data: bytes, asked: list) -> list[tuple[dict, dict]]:
    """Headers and arrays of the frames of a recording at positions, each with a view."""
    answer = page.evaluate(
        """([data, asked]) => {
          const recording = openRecording(Uint8Array.from(atob(data), (c) => c.charCodeAt(0)));
          const number = (x) => (Number.isNaN(x) ? null : x);
          return JSON.stringify(asked.map(([position, view]) => {
            const { arrays, ...head } = recording.frameAt(position, view);
            const numbers = ([k, { data, shape }]) => [k, [Array.from(data, number), shape]];
            return [head, Object.fromEntries(Object.entries(arrays).map(numbers))];
          }));
        }""",
        [base64.b64encode(data).decode(), asked],
    )
    return [
        (head, {k: np.array(data, np.float64).reshape(shape) for k, (data, shape) in arrays.items()})
        for head, arrays in json.loads(answer)
    ]


SAME = ("mode", "paint", "grid", "measured", "reference", "chosen", "roll", "trained_length", "card", "marks", "map")
TEXT = ("tokens", "tokens_start")
NUMBERS = ("relative", "excess", "error", "rolling")


def compare(head: dict, arrays: dict, live: bytes) -> None:
    expected, numbers = decoded(live)
    for name in SAME + TEXT:
        assert head[name] == expected[name], name
    for mine, theirs in zip(head["lanes"], expected["lanes"], strict=True):
        for name in theirs.keys() - {*NUMBERS, "rate", "offers"}:
            assert mine[name] == theirs[name], name
        for name in NUMBERS:
            assert mine[name] == (None if theirs[name] is None else pytest.approx(theirs[name], rel=1e-6, abs=1e-9))
    assert arrays.keys() == numbers.keys()
    for name, array in numbers.items():
        assert arrays[name].shape == array.shape, name
        # Sink masses are kept in steps of 1/65,534.
        off = 1e-5 if name == "grid" else 0
        np.testing.assert_allclose(arrays[name], array, rtol=3e-7, atol=off, err_msg=name)


def test_a_recorded_frame_equals_the_live_one_at_every_position(script):
    switches = {1: (600, "streaming:sinks=4,window=60"), 3: (1500, "window:window=128,block=16")}
    run = made_up(3000, chunk=96, ends={2: 700}, switches=switches, fidelity=True)
    random, asked = np.random.default_rng(1), []
    edges = [1, 2, 5, 33, 34, 97, 257, 289, 600, 601, 700, 701, 1500, 1501, 2999, 3000]
    for position in (*edges, *random.integers(1, 3000, 24).tolist()):
        mode, (reference, chosen) = str(random.choice(MODES)), random.integers(4, size=2).tolist()
        view = View(mode, "nll", reference, chosen, grid=str(random.choice(GRIDS)))
        asked.append((position, {k: v for k, v in asdict(view).items() if k != "lanes"}))
    data = recorded(run, "x", {})
    for (position, view), (head, arrays) in zip(asked, frames(script, data, asked), strict=True):
        compare(head, arrays, live_frame(run, position, View(**view)))


def test_a_recorded_grid_is_of_those_chunks_that_were_measured(script):
    run = made_up(700, fidelity=True)
    error = run.tracks[1].output_error
    error[-3][:], error[-2][:], error[-1][:] = 2, np.nan, 0.5
    error[-1][0, 0] = error[-3][0, 0] = np.nan
    view = View(chosen=1, grid="output error")
    ((head, arrays),) = frames(script, recorded(run, "x", {}), [(700, asdict(view) | {"lanes": None})])
    assert np.isnan(arrays["grid"]).sum() == 1
    compare(head, arrays, live_frame(run, 700, view))


def test_a_small_cache_is_not_rounded_to_nothing(script):
    sizes = {0: "0.0 MB", 2048: "2 kB", 65_536: "66 kB", 999_600: "1.0 MB", 9_440_000: "9.4 MB", 23e6: "23 MB"}
    assert script.evaluate("(sizes) => sizes.map(size)", list(sizes)) == list(sizes.values())


def test_a_recorded_map_is_the_newest_that_was_kept_before_a_position(script, tmp_path):
    run, random = made_up(1200), np.random.default_rng(2)
    kept, drawn = MapsFile(tmp_path, 4, 1200), []
    for read in (300, 600, 1200):
        weights = np.where(np.tri(SIDE, dtype=bool), random.random((SIDE, SIDE)), np.nan).astype(np.float32)
        map_ = HeadMap(1, 2, read - SIDE, weights, random.random((SIDE, 4)).astype(np.float32))
        drawn.append((3, 1, 2, read, map_))
        kept.add(RecordedMap.of(3, 1, 2, read, map_.first, map_.weights, map_.sinks))
    maps = read_maps(tmp_path, 4)
    view = {"mode": "rolling", "paint": "attention", "grid": "sink mass", "reference": 0, "chosen": 3, "head": [1, 2]}
    asked = [(position, view) for position in (299, 300, 500, 599, 600, 1000, 1200)]
    made = frames(script, recorded(run, "x", {}, maps), asked)
    for (position, _), (head, arrays) in zip(asked, made, strict=True):
        compare(head, arrays, live_frame(run, position, View(**{**view, "head": (1, 2)}), drawn))
    assert "kept at token 300" in made[0][0]["invitation"]
    ((other, _),) = frames(script, recorded(run, "x", {}, maps), [(1200, {**view, "head": [0, 3]})])
    assert "--maps 0.3" in other["invitation"] and "layer 1, head 2" in other["invitation"]


def test_a_recording_of_a_folder_is_that_of_the_run(script, tmp_path):
    import gzip

    run = made_up(700, FOUR[:2])
    save(run, tmp_path / "run", text_sha256="", weights_sha256="")
    view = {"mode": "relative", "paint": "nll", "grid": "sink mass", "reference": 0, "chosen": 1, "head": None}
    ((head, arrays),) = frames(script, gzip.decompress(recording(tmp_path / "run")), [(500, view)])
    compare(head, arrays, live_frame(run, 500, View(**view)))
    assert head["run"] == "run"


def test_pauses_are_left_out_of_the_time_that_a_recording_takes():
    run, still = made_up(300), made_up(300)
    for track in run.tracks:
        track.seconds.view()[150:] += 100
    # All lanes have read so far before a run stands still.
    at = max(float(track.seconds.view()[149]) for track in run.tracks)
    run.event("paused", seconds=at)
    run.event("running", seconds=at + 100)
    paused, whole = (decoded(recorded(of, "run", {}))[1]["clock"] for of in (run, still))
    np.testing.assert_allclose(paused, whole, atol=1e-3)


def test_times_and_means_over_all_that_was_read_are_those_of_the_run(script):
    run = made_up(700, chunk=96, ends={2: 300})
    clock = [max(float(t.seconds.view()[:at].max(initial=0)) for t in run.tracks) for at in range(700)]
    asked = [0.0, 0.1, *(clock[at] + 1e-3 for at in (1, 96, 97, 350, 698))]
    seconds, positions, grids = script.evaluate(
        """([data, asked]) => {
          const recording = openRecording(Uint8Array.from(atob(data), (c) => c.charCodeAt(0)));
          const positions = Array.from({ length: recording.total }, (_, k) => k + 1);
          const grids = [0, 1, 2, 3].map((lane) => Array.from(recording.wholeGrid(lane, "sink mass").data));
          return [positions.map(recording.secondsAt), asked.map(recording.positionAt), grids];
        }""",
        [base64.b64encode(recorded(run, "x", {})).decode(), asked],
    )
    np.testing.assert_allclose(seconds, clock, atol=1e-4)
    assert positions == [sum(then <= at for then in clock) for at in asked]
    for track, grid in zip(run.tracks, grids, strict=True):
        chunks = [stop - start for start, stop in track.spans]
        mean = sum(n * mass for n, mass in zip(chunks, track.sink_mass, strict=True)) / sum(chunks)
        np.testing.assert_allclose(grid, np.ravel(mean), atol=1e-5)


def test_a_run_that_read_nothing_has_no_recording():
    with pytest.raises(ValueError, match="nothing to replay"):
        recorded(Run(Spec("m", "t", ("dense",))), "x", {})


def test_a_run_of_sixty_thousand_tokens_is_some_megabytes():
    run = made_up(60_000, chunk=128, layers=30, heads=9)
    assert len(recorded(run, "x", {})) < 8e6


def test_a_run_keeps_some_dozens_of_maps_and_the_newest_of_each_head(tmp_path):
    kept, weights = MapsFile(tmp_path, 2, 12_000), np.full((8, 8), 0.5, np.float32)
    for read in range(100, 12_001, 100):
        for head in range(8):
            if kept.due(1, 0, head, read):
                kept.add(RecordedMap.of(1, 0, head, read, read - 8, weights, weights[:, :4]))
    maps = read_maps(tmp_path, 2)
    assert MOST // 2 <= len(maps) <= MOST
    for head in range(8):
        of = [m.read for m in maps if m.head == head]
        assert max(of) == 12_000 and len(of) <= EACH + 1


def test_damaged_maps_are_refused_in_a_sentence(tmp_path):
    weights = np.full((8, 8), 0.5, np.float32)
    MapsFile(tmp_path, 2, 100).add(RecordedMap.of(1, 0, 0, 50, 42, weights, weights[:, :4]))
    assert len(read_maps(tmp_path, 2)) == 1
    with pytest.raises(ValueError, match="another run"):
        read_maps(tmp_path, 1)


def test_maps_that_a_command_is_asked_for_are_those_of_the_lanes(run, model, text, tmp_path):
    lanes = ["--policy", "dense", "--policy", "window:window=32"]
    asked = ["stream", "--model", model, "--text", text, "--chunk", "64", *lanes]
    code, *_ = run(*asked, "--maps", "1.2,0.3", "--out", str(tmp_path / "run"))
    maps = read_maps(tmp_path / "run", 2)
    assert code == 0 and {m.of_head for m in maps} == {(lane, *head) for lane in (0, 1) for head in ((1, 2), (0, 3))}
    # The newest token is known, and asks when the next one is read.
    assert max(m.read for m in maps) == 600 and {m.read - m.first - len(m.weights) for m in maps} <= {0, 1}
    # Drawn anew from a lane that has read as much, the newest one is the same.
    ids, policy = np.load(text), parse("window:window=32")
    lane = open_lanes(load(model, device="cpu"), ids, [policy], history=SIDE)[0]
    while not lane.done:
        lane.read(64)
    (kept,) = (m for m in maps if m.of_head == (1, 1, 2) and m.read == 600)
    drawn = head_map(lane, 1, 2, SIDE)
    np.testing.assert_array_equal(kept.weights, levels_of(drawn.weights))
    np.testing.assert_array_equal(kept.received, drawn.received())
    for wrong, says in (("9.9", "has no layer 9"), ("one", "layer.head")):
        code, _, said = run(*asked, "--maps", wrong, "--out", str(tmp_path / "other"))
        assert code == 2 and says in said and not (tmp_path / "other").exists()


@pytest.mark.parametrize("stopped", ["finished early", "killed"])
def test_a_run_that_goes_on_goes_on_recording_maps(run, model, text, tmp_path, monkeypatch, stopped):
    """Of the same heads at the same places; a killed one may not have recorded any yet."""
    lanes, place = ["--policy", "dense", "--policy", "window:window=32"], tmp_path / "run"
    asked = ["stream", "--model", model, "--text", text, "--chunk", "64", *lanes, "--maps", "1.2,0.3"]
    assert run(*asked, "--out", str(tmp_path / "whole"))[0] == 0
    if stopped == "killed":
        real = Folder.append

        def append(self, step):
            real(self, step)
            if not place.exists():
                copied(self.path, place)
                killed(place)

        monkeypatch.setattr(Folder, "append", append)
        assert run(*asked, "--out", str(tmp_path / "other"))[0] == 0
        monkeypatch.undo()
        assert not read_maps(place, 2)
    else:
        assert run(*asked, "--tokens", "257", "--out", str(place))[0] == 0
    more = [] if stopped == "killed" else ["--tokens", "600"]
    code, _, said = run("resume", str(place), *more)
    assert code == 0, said
    found, whole = ({(*m.of_head, m.read): m for m in read_maps(p, 2)} for p in (place, tmp_path / "whole"))
    late = {key for key in whole if key[-1] > 257 + SIDE}
    assert late and late <= found.keys()
    for key in late:
        np.testing.assert_array_equal(found[key].weights, whole[key].weights)


def test_a_head_that_is_open_while_a_page_reads_is_kept(registry, model):
    job = begin(registry, model, count=700)
    until(job, lambda: job.map(2, 1, 3) is not None or not job.live)
    until(job, lambda: job.status == "finished")
    maps = read_maps(library.home() / job.id, 4)
    assert maps and {m.of_head for m in maps} == {(2, 1, 3)} and len({m.read for m in maps}) == len(maps)


def test_a_recording_that_has_grown_has_another_address_whatever_its_files_say_of_the_time(tmp_path, monkeypatch):
    monkeypatch.setenv("SINKSCOPE_RUNS", str(tmp_path))
    seeds.run(tmp_path / "a", end="finished")
    for name, when in (("events.jsonl", 2 * 10**9), ("tokens.parquet", 10**9)):
        os.utime(tmp_path / "a" / name, (when, when))
    before = recordings.address_of("a")
    assert before == recordings.address_of("a")
    os.utime(tmp_path / "a" / "tokens.parquet", (10**9 + 1, 10**9 + 1))
    assert before != recordings.address_of("a")


@pytest.mark.parametrize("wrong", [{"how": -1.5}, {"how": None}, {"text": [1]}, {"why": {}}, {"stop": "soon"}])
def test_an_event_of_which_something_is_no_word_is_damage(tmp_path, wrong):
    seeds.run(tmp_path / "run", end="finished")
    events = tmp_path / "run" / "events.jsonl"
    events.write_text("".join(json.dumps(json.loads(line) | wrong) + "\n" for line in events.read_text().splitlines()))
    with pytest.raises(ValueError, match=r"line 1 of .* is no event of this run"):
        load_run(tmp_path / "run")
