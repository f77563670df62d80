"""Laws of the record: what goes in comes out, whole or after a kill."""

import json
import signal
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.engine.step import Step
from analysis.figures.perplexity import Perplexity
from analysis.policies import Dense, Window
from analysis.runs.folder import Folder
from analysis.runs.reader import load
from analysis.runs.run import Run, Track
from analysis.runs.spec import Spec
from analysis.runs.summary import summarize

SPEC = Spec("embedded", "hamlet", ("dense", "window:window=8"), tokens=100, chunk=16)


def steps(lane: int, policy, count: int, chunk: int = 16) -> list[Step]:
    """Steps of one lane that read `count` tokens, with numbers that tell their place."""
    made = []
    for start in range(1, count, chunk):
        at = np.arange(start, min(start + chunk, count))
        mass = np.random.default_rng([lane, start]).random((2, 3, len(at)), np.float32)
        nll = (at * 0.01 + lane).astype(np.float32)
        kept = np.minimum(at, 8).astype(np.int32)
        made.append(Step(lane, policy, start, at.astype(np.int32), nll, kept, kept.astype(np.int64) * 96, 0.5, mass))
    return made


def write(path: Path, spec: Spec = SPEC) -> Folder:
    """A folder that has taken in two lanes, one of which switched."""
    folder = Folder(path, Run(spec, first_token=7), text_sha256="t", weights_sha256="w")
    mine, other = steps(0, Dense(), 100), steps(1, Window(8), 70)
    for step in [*mine[:3], *other[:2]]:
        folder.append(step)
    folder.event("switch", lane=1, position=33, to="window:window=4")
    for step in [*(Step(**{**vars(s), "policy": Window(4)}) for s in other[2:]), *mine[3:]]:
        folder.append(step)
    return folder


def same(run: Run, other: Run) -> None:
    assert run.spec == other.spec
    assert run.first_token == other.first_token
    assert run.events == other.events
    for a, b in zip(run.tracks, other.tracks, strict=True):
        for name in ("nll", "token_ids", "cache_tokens", "cache_bytes", "seconds", "sums"):
            np.testing.assert_array_equal(getattr(a, name).view(), getattr(b, name).view(), err_msg=name)
        assert a.policies == b.policies
        assert a.spans == b.spans
        np.testing.assert_array_equal(np.stack(a.sink_mass), np.stack(b.sink_mass))


def test_finished_run_has_the_columns_of_the_contract(tmp_path):
    write(tmp_path / "run").finish("finished")
    table = pq.read_table(tmp_path / "run" / "tokens.parquet")
    kinds = ["int32", "string", "int64", "int32", "float", "int32", "int64", "double"]
    names = ["lane", "policy", "position", "token_id", "nll", "cache_tokens", "cache_bytes", "seconds"]
    assert [(f.name, str(f.type)) for f in table.schema] == list(zip(names, kinds, strict=True))
    rows = table.to_pydict()
    assert rows["lane"] == [0] * 100 + [1] * 70
    assert rows["position"] == [*range(100), *range(70)]
    assert [i for i, nll in enumerate(rows["nll"]) if nll is None] == [0, 100]
    assert rows["token_id"][0] == rows["token_id"][100] == 7
    assert rows["policy"][100:133] == ["window:window=8"] * 33
    assert rows["policy"][133:] == ["window:window=4"] * 37
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["status"] == "finished"
    assert set(about["versions"]) == {"python", "torch", "transformers"}
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        *("events.jsonl", "run.json", "sinks.npz", "summary.json", "tokens.parquet"),
    ]


def test_a_rate_is_of_the_whole_of_the_newest_chunks():
    track = Track()
    for start, seconds in ((1, 5.0), (11, 1.0), (21, 2.0)):
        at = np.arange(start, start + 10, dtype=np.int32)
        mass = np.zeros((2, 3, 10), np.float32)
        track.append(Step(0, Dense(), start, at, at.astype(np.float32), at, at * 96, seconds, mass), 9.0)
    assert track.rate(2) == pytest.approx(20 / 3) and track.rate(9) == pytest.approx(30 / 8)
    assert np.isnan(Track().rate(2))


def test_sink_mass_is_the_mean_over_the_queries_of_each_chunk(tmp_path):
    write(tmp_path / "run").finish("finished")
    with np.load(tmp_path / "run" / "sinks.npz") as sinks:
        for i, step in enumerate(steps(0, Dense(), 100)):
            np.testing.assert_allclose(sinks["mass_0"][i], step.sink_mass.mean(-1), rtol=1e-6)
            assert sinks["span_0"][i].tolist() == [step.start, step.stop]


@pytest.mark.parametrize("status", ["finished", "interrupted", "failed"])
def test_what_was_written_is_read_again(tmp_path, status):
    folder = write(tmp_path / "run")
    folder.finish(status)
    same(load(tmp_path / "run"), folder.run)


def test_a_run_is_readable_while_it_runs(tmp_path):
    folder = write(tmp_path / "run")
    same(load(tmp_path / "run"), folder.run)


def test_a_lane_that_has_not_begun_is_read_again(tmp_path):
    folder = Folder(tmp_path, Run(SPEC, 7), text_sha256="t", weights_sha256="w")
    assert [len(t.nll) for t in load(tmp_path).tracks] == [0, 0]
    folder.append(steps(1, Window(8), 20)[0])
    assert [len(t.nll) for t in load(tmp_path).tracks] == [0, 16]
    folder.finish("interrupted")
    assert [len(t.nll) for t in load(tmp_path).tracks] == [0, 16]


def cuts(folder: Path, name: str):
    """The folder once for each of many places where a kill could have cut the file short."""
    whole = (folder / name).read_bytes()
    for size in range(0, len(whole), max(1, len(whole) // 40)):
        (folder / name).write_bytes(whole[:size])
        yield load(folder)
    (folder / name).write_bytes(whole)


def test_files_cut_anywhere_are_read_up_to_there(tmp_path):
    folder = write(tmp_path / "run")
    whole = [t.nll.view() for t in folder.run.tracks]
    for name in ("tokens.arrow", "sinks.arrow", "events.jsonl"):
        for run in cuts(tmp_path / "run", name):
            for track, nll in zip(run.tracks, whole, strict=True):
                np.testing.assert_array_equal(track.nll.view(), nll[: len(track.nll)])
                assert len(track.spans) == len(track.sink_mass)
                assert ends_alike(track)


def test_a_run_that_grows_takes_no_more_memory_than_it_has(tmp_path):
    write(tmp_path / "run")
    load(tmp_path / "run")
    tracemalloc.start()
    load(tmp_path / "run")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


@pytest.mark.parametrize("stops", [(1,), (30, 20, 21), (), (17, 17, 21)])
def test_chunks_that_go_nowhere_or_back_are_damage(tmp_path, stops):
    folder = Folder(
        tmp_path / "run", Run(replace(SPEC, policies=("dense",)), first_token=7), text_sha256="t", weights_sha256="w"
    )
    for step in steps(0, Dense(), 21):
        folder.append(step)
    folder.finish("finished")
    count = stops[-1] if stops else 1
    table = pq.read_table(tmp_path / "run" / "tokens.parquet")
    pq.write_table(table.slice(0, count), tmp_path / "run" / "tokens.parquet")
    spans = np.array([*zip((1, *stops[:-1]), stops, strict=False)], np.int64).reshape(-1, 2)
    np.savez(tmp_path / "run" / "sinks.npz", span_0=spans, mass_0=np.ones((len(stops), 2, 3), np.float32))
    with pytest.raises(ValueError, match="are not those of its tokens"):
        load(tmp_path / "run")


def ends_alike(track) -> bool:
    """Whether a lane's tokens and its sink masses end with the same chunk."""
    return (track.spans[-1][1] if track.spans else 1) == len(track.nll) + 1


def on_disk(place) -> list[tuple[int, int]]:
    """Where tokens and sink masses of each lane of a finished run end."""
    table = pq.read_table(place / "tokens.parquet").to_pydict()
    with np.load(place / "sinks.npz") as sinks:
        return [
            (table["lane"].count(lane), int(sinks[f"span_{lane}"][-1, 1]) if f"span_{lane}" in sinks else 0)
            for lane in range(2)
        ]


@pytest.mark.parametrize("table", ["_tokens", "_sinks"])
def test_what_fails_between_the_two_tables_is_in_neither(tmp_path, table):
    folder = Folder(tmp_path / "run", Run(SPEC, 7), text_sha256="t", weights_sha256="w")
    mine = steps(0, Dense(), 100)
    for step in mine[:2]:
        folder.append(step)

    class Full:
        def __init__(self, writer):
            self.close = writer.close

        def write_batch(self, batch):
            raise OSError("no space left on device")

    setattr(folder, table, Full(getattr(folder, table)))
    with pytest.raises(OSError, match="no space"):
        folder.append(mine[2])
    folder.finish("failed")
    assert on_disk(tmp_path / "run") == [(33, 33), (0, 0)]
    assert all(ends_alike(track) for track in load(tmp_path / "run").tracks)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("table", ["_tokens", "_sinks"])
def test_signal_while_a_chunk_is_written_waits_until_it_is(tmp_path, table, number):
    folder = Folder(tmp_path / "run", Run(SPEC, 7), text_sha256="t", weights_sha256="w")

    class Interrupted:
        def __init__(self, writer):
            self.close, self.write = writer.close, writer.write_batch

        def write_batch(self, batch):
            signal.raise_signal(number)
            self.write(batch)

    setattr(folder, table, Interrupted(getattr(folder, table)))

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(number, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            folder.append(steps(0, Dense(), 100)[0])
        assert signal.getsignal(number) is interrupt
    finally:
        signal.signal(number, before)
    folder.finish("interrupted")
    assert on_disk(tmp_path / "run") == [(17, 17), (0, 0)] and len(folder.run.tracks[0].nll) == 16


WRITER = """
import signal, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from analysis.policies import Dense
from analysis.runs.folder import Folder
from analysis.runs.run import Run
from tests.test_record import SPEC, steps

def interrupt(*_):
    raise KeyboardInterrupt

# A shell that starts tests in the background lets its children ignore SIGINT.
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, interrupt)
made = steps(0, Dense(), 60_000, chunk=3)
folder = Folder(Path({place!r}), Run(SPEC, 7), text_sha256="t", weights_sha256="w")
print("begun", flush=True)
try:
    for step in made:
        folder.append(step)
    sys.exit("read to the end before anybody asked it to stop")
except KeyboardInterrupt:
    folder.finish("interrupted")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_process_that_is_ended_leaves_tables_that_end_alike(tmp_path, number):
    place = tmp_path / "run"
    words = [sys.executable, "-c", WRITER.format(root=str(Path(__file__).parent.parent), place=str(place))]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n"
    until = time.monotonic() + 60
    while (place / "sinks.arrow").stat().st_size < 20_000 and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(number)
    code = process.wait(60)
    process.stdout.close()
    track = load(place).tracks[0]
    assert len(track.nll) and ends_alike(track)
    if number == signal.SIGKILL:
        assert code == -9 and (place / "tokens.arrow").exists()
        return
    assert code == 0
    (tokens, sinks), _ = on_disk(place)
    assert tokens == sinks == len(track.nll) + 1


def test_process_killed_while_it_finished_leaves_a_readable_run(tmp_path):
    folder = write(tmp_path / "run")
    for name in ("tokens.parquet", "sinks.npz"):
        (tmp_path / "run" / name).write_bytes(b"half of")
        same(load(tmp_path / "run"), folder.run)


@pytest.mark.parametrize("damage", [3e38, -3.0])
def test_nll_that_no_model_gives_is_told_as_damage(tmp_path, damage):
    write(tmp_path / "run").finish("finished")
    rewrite_nll(tmp_path / "run" / "tokens.parquet", 20, damage)
    with pytest.raises(ValueError, match="whose NLL no model gives"):
        load(tmp_path / "run")


@pytest.mark.parametrize("mode", ["relative", "rolling", "cumulative"])
def test_perplexity_beyond_the_largest_number_is_infinite_everywhere(tmp_path, mode):
    write(tmp_path / "run").finish("finished")
    rewrite_nll(tmp_path / "run" / "tokens.parquet", 40, 1e5)
    run = load(tmp_path / "run")
    assert summarize(run)[0].perplexity == np.inf
    figure = Perplexity(mode=mode, reference=1)
    numbers = figure.numbers(run)
    assert np.isinf(numbers["perplexity"]).any()
    figure.draw(numbers)


def rewrite_nll(file: Path, row: int, value: float) -> None:
    """Put another NLL into a row of a table of tokens."""
    table = pq.read_table(file)
    frame = table.to_pandas()
    frame.loc[row, "nll"] = value
    column = pa.array(frame["nll"], pa.float32(), mask=table["nll"].is_null().to_numpy(), from_pandas=False)
    pq.write_table(table.set_column(table.column_names.index("nll"), table.schema.field("nll"), column), file)


def test_folder_that_holds_a_run_is_not_overwritten(tmp_path):
    write(tmp_path / "run").finish("finished")
    before = (tmp_path / "run" / "tokens.parquet").read_bytes()
    with pytest.raises(ValueError, match="holds a run already"):
        write(tmp_path / "run")
    assert (tmp_path / "run" / "tokens.parquet").read_bytes() == before


def test_folder_that_is_a_file_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("text")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match="cannot be written"):
            write(path)


def test_folder_without_a_run_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        load(tmp_path)


def test_a_run_began_when_it_began_whenever_it_is_saved(tmp_path):
    from analysis.runs.folder import save

    run = Run(SPEC, 7)
    run.started = "2001-02-03T04:05:06+00:00"
    run.append(steps(0, Dense(), 20)[0])
    for _ in range(2):
        save(run, tmp_path / "r", text_sha256="t", weights_sha256="w")
        assert json.loads((tmp_path / "r" / "run.json").read_text())["started"] == run.started
    assert load(tmp_path / "r").started == run.started
    save(load(tmp_path / "r"), tmp_path / "copy", text_sha256="t", weights_sha256="w")
    assert json.loads((tmp_path / "copy" / "run.json").read_text())["started"] == run.started


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, "float32"),
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"weights": "int4"}, "int4 weights, bfloat16 products, float32 elsewhere"),
        ({"weights": "int8", "dtype": "bfloat16"}, "int8 weights, bfloat16 products"),
    ],
)
def test_what_is_computed_in_is_said(tmp_path, more, words):
    spec = replace(SPEC, **more)
    assert spec.arithmetic == words
    Folder(tmp_path / "run", Run(spec, 7), text_sha256="t", weights_sha256="w")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["arithmetic"] == words


def test_a_run_kept_in_memory_is_saved_and_read_again(tiny_llama, tmp_path):
    from analysis.engine.stream import open_lanes
    from analysis.policies import parse
    from analysis.runs.folder import save

    tokens = np.random.default_rng(0).integers(0, 97, 120)
    policies = ("dense", "streaming:sinks=4,window=12,positions=cache")
    run = Run(Spec("tiny", "random", policies), int(tokens[0]))
    for lane in open_lanes(tiny_llama, tokens, [parse(p) for p in policies]):
        run.append(lane.read(50))
        if lane.index:
            lane.switch(parse("window:window=12"))
            run.event("switch", lane=1, position=lane.position, policy="window:window=12", how="")
        run.append(lane.read(30))
    for _ in range(2):
        # Saving again overwrites what the same run was before.
        save(run, tmp_path / "r", text_sha256="t", weights_sha256="w")
        again = load(tmp_path / "r")
        for one, other in zip(run.tracks, again.tracks, strict=True):
            for name in ("nll", "token_ids", "cache_tokens", "cache_bytes", "seconds", "sums"):
                np.testing.assert_allclose(getattr(other, name).view(), getattr(one, name).view(), rtol=1e-6)
            assert other.policies == one.policies and other.spans == one.spans
            np.testing.assert_allclose(other.sink_mass, one.sink_mass)
        assert again.events == run.events and again.first_token == tokens[0] and again.spec == run.spec
    with pytest.raises(ValueError, match="holds another run"):
        save(Run(Spec("tiny", "random", ("dense",))), tmp_path / "r", text_sha256="t", weights_sha256="w")
