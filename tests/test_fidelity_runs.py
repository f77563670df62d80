"""Runs whose lanes are measured against the first one: their folders, tables and files, and that they go on exactly."""

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from analysis import metrics
from analysis.engine.stream import next_lane, open_lanes
from analysis.figures import parse as parse_figure
from analysis.figures.sheet import Layout, drawn
from analysis.models.loading import load as load_model
from analysis.policies import parse
from analysis.runs import checkpoint, resume
from analysis.runs.checkpoint import Checkpoints
from analysis.runs.folder import Folder
from analysis.runs.reader import load
from analysis.runs.run import Run
from analysis.runs.spec import Spec
from analysis.runs.summary import summarize
from analysis.texts import read as read_text

from .test_resume import LANES, copies, words
from .test_resume import text as text
from .waiting import copied

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def whole(model, text, tmp_path_factory):
    """The run that is never stopped, a lane of every kind."""
    place = tmp_path_factory.mktemp("whole") / "run"
    read(made(model, text, place))
    return load(place)


def made(model, text, place, policies=LANES, tokens=None):
    """A run at its beginning: folder and lanes."""
    spec = Spec(model, text, tuple(policies), tokens, chunk=32, device="cpu", fidelity=True)
    network, source = load_model(model, device="cpu"), read_text(text)
    ids = spec.tokenized(source, None).ids
    lanes = open_lanes(network, ids, [parse(p) for p in policies], fidelity=True)
    folder = Folder(place, Run(spec, int(ids[0])), text_sha256=source.sha256, weights_sha256=network.sha256)
    return folder, lanes


def read(of, steps=None, finish="finished"):
    folder, lanes = of
    while steps != 0 and (lane := next_lane(lanes)) is not None:
        folder.append(lane.read(32))
        steps = None if steps is None else steps - 1
    if finish:
        folder.finish(finish)
    return of


def same(run, other):
    for a, b in zip(run.tracks, other.tracks, strict=True):
        np.testing.assert_allclose(a.nll.view(), b.nll.view(), atol=1e-4)
        np.testing.assert_allclose(a.kl.view(), b.kl.view(), atol=1e-5)
        np.testing.assert_array_equal(a.agree.view(), b.agree.view())
        assert len(a.output_error) == len(a.spans)
        if a.spans == b.spans:
            np.testing.assert_allclose(a.output_error, b.output_error, atol=1e-4)
        assert a.policies == b.policies
        assert len(a.kl) == len(a.agree) == len(a.nll)


def test_the_folder_of_a_run_has_what_was_measured(whole, model, text, tmp_path):
    place = tmp_path / "run"
    folder, lanes = read(made(model, text, place), finish="")
    growing = load(place)
    same(growing, whole)
    folder.finish("finished")
    table = pq.read_table(place / "tokens.parquet")
    assert [(f.name, str(f.type)) for f in table.schema][-2:] == [("kl", "float"), ("agree", "bool")]
    rows = table.to_pandas()
    assert rows[rows.position == 0][["kl", "agree"]].isna().all(axis=None)
    later = rows[(rows.position > 0) & (rows.lane == 0)]
    assert (later.kl == 0).all() and later.agree.all()
    with np.load(place / "sinks.npz") as held:
        assert held["output_error_1"].shape == held["mass_1"].shape and held["output_error_1"].max() > 0.1
        assert not held["output_error_0"].any()
    assert rows[rows.lane == 1].kl.max() > 0.1 and not rows[rows.lane == 1].agree[1:].all()
    assert "checkpoint" not in {p.name for p in place.iterdir()} and lanes[0].done


def test_what_could_not_be_measured_has_no_number_in_the_folder(model, tmp_path):
    place, text = tmp_path / "run", tmp_path / "long.npy"
    # Of so many tokens a mean has an error.
    np.save(text, np.random.default_rng(0).integers(0, 97, 600))
    folder, lanes = made(model, str(text), place, LANES[:2])
    folder.append(lanes[1].read(32))
    read((folder, lanes))
    rows = pq.read_table(place / "tokens.parquet").to_pandas()
    assert rows[rows.lane == 1].kl.isna().sum() == rows[rows.lane == 1].agree.isna().sum() == 33
    track = load(place).tracks[1]
    assert np.isnan(track.kl.view()[:32]).all() and not np.isnan(track.kl.view()[32:]).any()
    summary = summarize(load(place))[1]
    assert (summary.kl, summary.kl_error) == metrics.mean(track.kl.view()[32:])


def test_a_run_that_is_not_measured_has_no_columns_of_it(model, text, tmp_path, run):
    code, said, error = run(*map(str, words(model, text, tmp_path / "run", 60)))
    assert code == 0, error
    assert "kl" not in pq.read_schema(tmp_path / "run" / "tokens.parquet").names and "Top-1" not in said


def test_a_folder_whose_files_disagree_is_refused_in_a_sentence(model, text, tmp_path, run):
    for name, flag in (("with", ["--fidelity"]), ("without", [])):
        assert run(*map(str, words(model, text, tmp_path / name, 60)), *flag)[0] == 0
    shutil.copy(tmp_path / "without" / "tokens.parquet", tmp_path / "with" / "tokens.parquet")
    with pytest.raises(ValueError, match="of different runs"):
        load(tmp_path / "with")


@pytest.mark.parametrize(("mode", "column", "unit"), [("KL", "kl", 1), ("top-1", "agree", 100)])
def test_the_figure_draws_means_of_what_was_measured(whole, mode, column, unit):
    figure = parse_figure(f"perplexity:mode={mode},roll=40")
    data = figure.numbers(whole)
    name = {"KL": "kl", "top-1": "agreement"}[mode]
    assert set(data) == {"lane", "policy", "token", "mark", name}
    for lane, track in enumerate(whole.tracks):
        known, of = getattr(track, column).view(), (data["lane"] == lane) & (data["mark"] == "")
        assert of.sum() == len(known) - 31
        for token, value in zip(data["token"][of], data[name][of], strict=True):
            assert value == pytest.approx(unit * known[max(0, token - 40) : token].mean(dtype=np.float64), abs=1e-6)
    with drawn(figure, data, Layout("acl", 8, 72)) as sheet:
        (ax,) = sheet.axes
        assert ax.get_yscale() == "linear"
        assert ax.get_ylabel().startswith({"KL": "KL from ", "top-1": "Top-1 as "}[mode])
        for lane, line in enumerate(ax.lines[: len(whole.tracks)]):
            np.testing.assert_array_equal(line.get_ydata(), data[name][(data["lane"] == lane) & (data["mark"] == "")])


def test_a_figure_of_what_was_not_measured_is_refused(model, text, tmp_path, run):
    assert run(*map(str, words(model, text, tmp_path / "run", 60)))[0] == 0
    with pytest.raises(ValueError, match="were not measured against the first one: read with --fidelity"):
        parse_figure("perplexity:mode=KL").numbers(load(tmp_path / "run"))


def test_means_leave_out_what_was_not_measured():
    values = np.r_[np.nan, np.arange(600.0), np.nan]
    mean, error = metrics.mean(values)
    blocks = np.arange(512.0).reshape(2, 256).mean(1)
    assert mean == np.arange(600.0).mean() and error == pytest.approx(blocks.std(ddof=1) / np.sqrt(2))
    assert np.isnan(metrics.mean(np.full(3, np.nan))).all() and np.isnan(metrics.mean(np.zeros(0))).all()


def test_the_command_measures_and_its_table_tells(whole, model, text, tmp_path, run):
    code, said, error = run(*map(str, words(model, text, tmp_path / "run")), "--fidelity")
    assert code == 0, error
    same(load(tmp_path / "run"), whole)
    for lane in summarize(whole)[1:]:
        assert f"{lane.kl:.4f}" in said and f"{100 * lane.agree:.2f} %" in said
    assert "100.00 %" in said and "KL divergence" in said


def test_one_lane_alone_is_refused_in_a_sentence(model, text, tmp_path, run):
    code, _, error = run(*map(str, words(model, text, tmp_path / "run", lanes=["dense"])), "--fidelity")
    assert code == 2 and "give at least two policies" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("every", "moments"),
    [(0, [1, 2, 10, 22, 41]), (1e9, [2, 22])],
    ids=["checkpoints at every chunk", "no checkpoint"],
)
def test_a_run_that_was_killed_goes_on_from_any_moment(every, moments, whole, model, text, tmp_path, run, monkeypatch):
    monkeypatch.setattr(checkpoint, "EVERY", every)
    copies(monkeypatch, tmp_path, set(moments))
    assert run(*map(str, words(model, text, tmp_path / "run")), "--fidelity")[0] == 0
    monkeypatch.undo()
    for steps in moments:
        code, _, error = run("resume", str(tmp_path / str(steps)))
        assert code == 0, error
        same(load(tmp_path / str(steps)), whole)


@pytest.mark.parametrize("reference", ["dense", "h2o:budget=24,recent=4", "recompute:window=20,stride=4"])
def test_switches_inside_a_chunk_are_made_again(reference, model, text, tmp_path):
    """The reference is switched while another lane stands inside its chunk, before and after the checkpoint."""
    policies, place = (reference, "window:window=20", "snapkv:budget=24,recent=4,interval=3"), tmp_path / "run"
    folder, lanes = made(model, text, place, policies, 220)
    _, twins = made(model, text, tmp_path / "twin", policies, 220)
    moves = [read_some(7), switch(0, "streaming:sinks=4,window=24"), read_some(1), switch(1, "dense"), read_some(4)]
    moves += [switch(0, "dense"), read_some(2)]
    moments = {1, 2, 3, 4, 6}
    for i, move in enumerate(moves):
        if i in moments:
            Checkpoints(place).write(*resume.state_of(folder.run, lanes))
            shutil.copytree(place / "checkpoint", tmp_path / f"checkpoint-{i}")
            shutil.rmtree(place / "checkpoint")
        move(lanes, folder)
        move(twins, None)
    folder.finish("interrupted")
    stood = [(lane.position, str(lane.policy)) for lane in twins]
    rest = []
    while (lane := next_lane(twins)) is not None:
        rest.append(lane.read(32))
    for moment in moments:
        again = copied(place, tmp_path / f"run-{moment}")
        shutil.copytree(tmp_path / f"checkpoint-{moment}", again / "checkpoint")
        going = resume.resumed(resume.stopped(again), load_model(model, device="cpu"), read_text(text))
        assert [(lane.position, str(lane.policy)) for lane in going.lanes] == stood
        for expected in rest:
            got = next_lane(going.lanes).read(32)
            assert (got.lane, got.start, got.stop) == (expected.lane, expected.start, expected.stop)
            np.testing.assert_allclose(got.nll, expected.nll, atol=1e-5)
            np.testing.assert_allclose(got.kl, expected.kl, atol=1e-5)
            assert not np.isnan(got.kl).any()
        assert next_lane(going.lanes) is None
        going.folder.finish("interrupted")


def read_some(steps):
    def move(lanes, folder):
        for _ in range(steps):
            step = next_lane(lanes).read(32)
            if folder is not None:
                folder.append(step)

    return move


def switch(index, policy):
    def move(lanes, folder):
        lane = lanes[index]
        lane.switch(parse(policy))
        if folder is not None:
            folder.event("switch", lane=index, position=lane.position, policy=policy, how="without sinks")

    return move
