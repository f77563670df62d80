"""Grids of runs: every cell is a run folder, the table says what the folders hold, and no cell is run twice."""

import csv
import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.experiments import gpus, grid
from analysis.experiments.measures import samples_of
from analysis.experiments.papers import EXPERIMENTS, Cell
from analysis.figures.inputs import check_folder
from analysis.metrics import perplexity
from analysis.models.loading import load as load_model
from analysis.policies import parse
from analysis.runs import archive, library, trash
from analysis.runs.reader import load
from analysis.runs.spec import Spec
from analysis.tables import as_markdown

from .families import our_nll


@pytest.fixture
def base(model, text):
    return Spec(model, text, ("dense",), 120, device="cpu")


def test_a_grid_leaves_a_run_for_each_cell_and_says_what_it_holds(tiny_llama, base, tmp_path):
    experiment = EXPERIMENTS["sinks"]
    cells = experiment.cells(base, 16)
    assert [c.label for c in cells] == ["0 + 16", "1 + 15", "2 + 14", "4 + 12", "8 + 8"]
    assert [c.name for c in grid.run(cells, tmp_path)] == [c.name for c in cells]
    header, rows = experiment.table(cells, tmp_path)
    tokens = np.load(base.text)[:120]
    for cell, row in zip(cells, rows, strict=True):
        nll = our_nll(tiny_llama, tokens, 512, parse(cell.spec.policies[0]))
        np.testing.assert_allclose(load(tmp_path / cell.name).tracks[0].nll.view(), nll, atol=1e-5)
        assert row == [cell.label, f"{perplexity(nll):.2f}", "120", "16", *cell.paper]
    asked = f"{Path(base.model).name} on {Path(base.text).name}"
    assert header[1].startswith(f"Perplexity, {asked}") and header[-1] == "Paper: Llama-2-7B, PG19"


def test_what_is_finished_is_not_run_again(base, tmp_path, monkeypatch):
    cells = EXPERIMENTS["sinks"].cells(base, 16)
    going = grid.run(cells, tmp_path)
    first = [next(going).name, next(going).name]
    # Interrupted: what was under way leaves nothing but a word that it was.
    going.close()
    (mark,) = tmp_path.glob(".*")
    assert sorted(p.name for p in tmp_path.iterdir() if p != mark) == sorted(first)
    assert json.loads(mark.read_text()) == {"status": "interrupted", "cells": [c.name for c in cells]}
    done, compute = [], grid.compute
    monkeypatch.setattr(grid, "compute", lambda cell, *how: done.append(cell.name) or compute(cell, *how))
    assert len(list(grid.run(cells, tmp_path))) == 3
    assert done == [c.name for c in cells if c.name not in first]
    assert not list(grid.run(cells, tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(c.name for c in cells)


@pytest.mark.parametrize(("ends", "status"), [(KeyboardInterrupt, "interrupted"), (ValueError, "failed")])
def test_a_grid_that_did_not_come_to_its_end_says_so_also_in_other_hands(base, tmp_path, monkeypatch, ends, status):
    monkeypatch.setenv("SINKSCOPE_RUNS", str(tmp_path))
    cells, place, done, compute = EXPERIMENTS["sinks"].cells(base, 16), tmp_path / "sinks", [], grid.compute

    def some(cell, *how):
        if len(done) == 2:
            raise ends
        done.append(cell.name)
        return compute(cell, *how)

    with monkeypatch.context() as patched:
        patched.setattr(grid, "compute", some)
        with pytest.raises(ends):
            list(grid.run(cells, place))
    assert library.entry("sinks").status == status
    archive.export("sinks", tmp_path / "sinks.zip")
    taken = archive.take_in(tmp_path / "sinks.zip", check_folder)
    assert library.entry(taken).status == status
    # Another one of it, which was asked for less, says nothing of what this one lacks.
    assert not list(grid.run([c for c in cells if c.name in done], place))
    assert library.entry("sinks").status == status
    for name in ("sinks", taken):
        assert len(list(grid.run(cells, tmp_path / name))) == 3
        assert library.entry(name).status == "finished" and not list((tmp_path / name).glob(".*"))


def test_a_grid_that_another_process_brought_to_its_end_has_ended(base, tmp_path, monkeypatch):
    monkeypatch.setenv("SINKSCOPE_RUNS", str(tmp_path))
    cells, place = EXPERIMENTS["sinks"].cells(base, 16), tmp_path / "sinks"
    other = grid.run(cells, place)
    next(other)
    going = grid.run(cells, place)
    next(going)
    assert len(list(other)) == 4
    going.close()
    assert library.entry("sinks").status == "finished" and not list(place.glob(".*"))
    # As a kill leaves it: begun again, it has nothing left to do, and says so.
    (place / ".computing-0123abcd").write_text('{"status": "killed"}')
    assert library.entry("sinks").status == "killed"
    assert not list(grid.run(cells, place)) and library.entry("sinks").status == "finished"


def test_a_grid_of_which_cells_are_still_computed_is_live_and_neither_deleted_nor_freed(base, tmp_path, monkeypatch):
    monkeypatch.setenv("SINKSCOPE_RUNS", str(tmp_path))
    cells, place = EXPERIMENTS["sinks"].cells(base, 16), tmp_path / "sinks"
    going = grid.run(cells, place)
    next(going)
    (mark,) = place.glob(".*")
    assert library.entry("sinks").status == "running"
    with pytest.raises(ValueError, match="is still being written"):
        trash.delete("sinks")
    monkeypatch.setenv("SINKSCOPE_RUNS_GB", "1e-9")
    assert trash.free() == "" and library.entry("sinks").live
    # As a kill leaves it.
    about = json.loads(mark.read_text())
    about["process"]["began"] -= 100
    mark.write_text(json.dumps(about))
    assert library.entry("sinks").status == "killed"
    (killed := place / f"{mark.name}k").write_text(mark.read_text())
    going.close()
    assert json.loads(mark.read_text())["status"] == library.entry("sinks").status == "interrupted"
    mark.unlink()
    assert library.entry("sinks").status == "killed"
    assert len(list(grid.run(cells, place))) == 4
    assert not killed.exists() and library.entry("sinks").status == "finished"
    assert sorted(p.name for p in place.iterdir()) == sorted(c.name for c in cells)


def test_a_grid_without_a_cell_leaves_no_folder(base, tmp_path, monkeypatch):
    def fails(*_):
        raise ValueError("no cell can be computed")

    monkeypatch.setattr(grid, "compute", fails)
    with pytest.raises(ValueError, match="no cell can be computed"):
        list(grid.run(EXPERIMENTS["sinks"].cells(base, 16), tmp_path / "g"))
    assert not (tmp_path / "g").exists()


def test_a_folder_of_another_grid_is_refused(base, tmp_path):
    list(grid.run(EXPERIMENTS["sinks"].cells(base, 16), tmp_path))
    other = EXPERIMENTS["sinks"].cells(Spec(base.model, base.text, ("dense",), 80, device="cpu"), 16)
    with pytest.raises(ValueError, match="another model, text or length: choose another --out"):
        list(grid.run(other, tmp_path))


def of_other_weights(place) -> None:
    """Let a cell say that other weights computed it."""
    about = json.loads((place / "run.json").read_text()) | {"weights_sha256": "0" * 64}
    (place / "run.json").write_text(json.dumps(about))


def test_cells_of_other_weights_are_not_gone_on_with(base, tmp_path):
    cells = EXPERIMENTS["sinks"].cells(base, 16)
    list(grid.run(cells[:2], tmp_path))
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file() and "tokens" in file.name}
    # Whether all that is there is of others, or some of it.
    for cell, how in ((cells[0], "rest"), (cells[1], "has now")):
        of_other_weights(tmp_path / cell.name)
        with pytest.raises(ValueError, match=f"with other weights \\(SHA-256 .*{how}.*: choose another --out"):
            list(grid.run(cells, tmp_path))
    after = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file() and "tokens" in file.name}
    assert after == before


def test_a_worker_with_other_weights_adds_nothing(base, tmp_path, monkeypatch):
    cells, compute = EXPERIMENTS["sinks"].cells(base, 16), grid.compute

    def elsewhere(cell, *how):
        name, made = compute(cell, *how)
        if cell is cells[2]:
            made["run.json"] = json.dumps(json.loads(made["run.json"]) | {"weights_sha256": "0" * 64}).encode()
        return name, made

    monkeypatch.setattr(grid, "compute", elsewhere)
    with pytest.raises(ValueError, match=f"{cells[2].name} was computed with other weights"):
        list(grid.run(cells, tmp_path))
    (mark,) = tmp_path.glob(".*")
    assert {p.name for p in tmp_path.iterdir() if p != mark} == {cell.name for cell in cells[:2]}
    assert json.loads(mark.read_text())["status"] == "failed"


def test_a_cell_outlasts_the_files_of_its_model_and_names_the_weights_that_computed_it(base, tmp_path, monkeypatch):
    named, write = tmp_path / "model", Cell.write
    shutil.copytree(base.model, named)

    def meanwhile(cell, place, model):
        shutil.rmtree(named)
        write(cell, place, model)

    monkeypatch.setattr(Cell, "write", meanwhile)
    (cell,) = grid.run(EXPERIMENTS["sinks"].cells(replace(base, model=str(named)), 16)[:1], tmp_path / "out")
    about = json.loads((tmp_path / "out" / cell.name / "run.json").read_text())
    assert about["weights_sha256"] == load_model(base.model, device="cpu").sha256


def test_a_cell_that_cannot_be_run_says_why(base, tmp_path):
    cell = EXPERIMENTS["newlines"].cells(base, 16)[-1]
    with pytest.raises(ValueError, match="no tokenizer"):
        list(grid.run([cell], tmp_path))
    assert not list(tmp_path.glob("*"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_can_be_read_at_all(name, base):
    """Every policy of every experiment stands in a cache as small as its own, and cells have folders of their own."""
    experiment = EXPERIMENTS[name]
    cells = experiment.cells(Spec("embedded", "hamlet", ("dense",)))
    assert len({c.name for c in cells}) == len(cells) and all(c.spec.tokens == experiment.tokens for c in cells)
    assert all(len(c.paper) == len(experiment.columns) or not c.paper for c in cells)


def test_samples_are_spread_over_the_text():
    samples = samples_of(np.arange(100), 4, 10)
    assert samples[:, 0].tolist() == [0, 30, 60, 90] and samples[-1].tolist() == list(range(90, 100))
    with pytest.raises(ValueError, match="choose a longer one"):
        samples_of(np.arange(5), 2, 10)


def test_no_sample_is_measured_twice():
    assert len(set(samples_of(np.arange(100), 91, 10)[:, 0].tolist())) == 91
    with pytest.raises(ValueError, match="91 different samples of 10 tokens, and 92 are asked for"):
        samples_of(np.arange(100), 92, 10)


def test_sink_rate_is_the_share_of_heads_above_the_threshold(base, tmp_path):
    experiment = EXPERIMENTS["sink-rate"]
    cells = experiment.cells(Spec(base.model, base.text, ("dense",), 24, device="cpu"))
    list(grid.run(cells, tmp_path))
    header, rows = experiment.table(cells, tmp_path)
    with np.load(tmp_path / cells[0].name / "alpha.npz") as held:
        assert held["alpha"].shape == (100, 3, 4)
        alpha = held["alpha"]
    assert [row[0] for row in rows[:4]] == ["0", "1", "2", "all"] and len(header) == len(rows[0])
    assert rows[3][1] == f"{alpha.mean():.4f}" and rows[3][3] == f"{100 * (alpha > 0.3).mean():.1f} %"
    assert [row[3] for row in rows[:3]] == [f"{100 * (alpha[:, layer] > 0.3).mean():.1f} %" for layer in range(3)]
    assert ["Paper: GPT2-XL", "–", "–", "77.00 %"] in rows


@pytest.mark.parametrize(("tokens", "even"), [(2, "0.7500"), (64, "0.0741"), (2048, "0.0040")])
def test_what_is_said_of_a_sink_rate_is_of_as_many_tokens(base, tokens, even):
    experiment = EXPERIMENTS["sink-rate"]
    (said,) = experiment.remarks(experiment.cells(replace(base, tokens=tokens)))
    assert f"first of {tokens:,} tokens gets, over 100 stretches" in said and f"would give {even}." in said
    assert f"fewer than {100 * tokens:,} tokens" in said and "the paper's are of 64 tokens" in said


def test_the_command_writes_tables_and_goes_on(run, model, text, tmp_path):
    asked = ["reproduce", "sinks", "--model", model, "--text", text, "--tokens", "100", "--cache", "16"]
    asked += ["--device", "cpu", "--out", str(tmp_path)]
    code, said, _ = run(*asked)
    assert code == 0 and "4 + 12" in said and "Table 2" in said and str(tmp_path) in said.replace("\n", "")
    rows = list(csv.reader((tmp_path / "table.csv").open(encoding="utf-8")))
    assert len(rows) == 6 and rows[0][0] == "Policy" and rows[1][4:] == ["17.90", "460.29", "21.62", "3359.95"]
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert as_markdown(rows[0], rows[1:]) in table and table.startswith("# How many sinks are enough?")
    code, again, _ = run(*asked)
    assert code == 0 and "done" not in again and "4 + 12" in again


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["nothing"], "there is no experiment 'nothing'; choose one of: policies"),
        (["sinks", "--text", "nowhere"], "there is no text 'nowhere'"),
        (["sinks", "--jobs", "0"], "--jobs must be at least 1 process"),
        (["sinks", "--cache", "0"], "window must be at least 1, not 0"),
        (["sinks", "--backend", "abacus"], "choose one of: local, dask, ray"),
        (["sinks", "--backend", "dask"], "--address HOST:PORT"),
        (["sinks", "--address", "127.0.0.1:1"], "add --backend dask"),
        (["sinks", "--backend", "dask", "--address", "127.0.0.1:1"], "no dask cluster answers"),
        (["sinks", "--cache", "4"], "window must be at least 1"),
    ],
)
def test_what_is_wrong_with_a_grid_is_one_line_and_status_2(run, wrong, says, tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "PATIENCE", 1)
    code, _, said = run("reproduce", *wrong, "--out", str(tmp_path / "o"))
    assert code == 2 and said.startswith("error: ") and said.count("\n") == 1
    assert says in said


@pytest.mark.parametrize(("jobs", "left", "processes"), [(100_000, 5, 5), (3, 5, 3), (8, 1, 2), (1, 5, 1)])
def test_no_more_processes_are_started_than_there_are_cells_left(base, tmp_path, monkeypatch, jobs, left, processes):
    cells = EXPERIMENTS["sinks"].cells(base, 16)
    missing = {cell.name: cell for cell in cells[:left]}
    asked = []
    monkeypatch.setattr(grid, "unfinished", lambda cells, out: list(missing.values()))
    monkeypatch.setattr(grid, "about_of", lambda place: {})
    monkeypatch.setattr(
        grid.joblib, "parallel_config", lambda *backend, n_jobs, **_: asked.append(n_jobs) or nullcontext()
    )
    monkeypatch.setattr(grid, "_results", lambda work, one_by_one: iter(()))
    assert not list(grid.run(cells, tmp_path, jobs=jobs)) and asked == [processes]


def test_experiments_are_listed(run):
    code, said, _ = run("reproduce")
    assert code == 0 and all(name in said for name in EXPERIMENTS)


def test_each_worker_takes_a_gpu_of_its_own(tmp_path, monkeypatch):
    """Locks are the system's, and this process is one of two."""
    from filelock import FileLock

    monkeypatch.setattr(gpus.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(gpus, "count", lambda: 2)
    monkeypatch.setattr(gpus, "held", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with FileLock(tmp_path / "sinkscope-gpu-0"):
        gpus.take_one()
    assert gpus.os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    gpus.held.release()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")


def test_cells_of_one_policy_and_another_have_other_names():
    spec = Spec("m", "t", ("duo:scores=/a/b c.tsv",))
    assert Cell("x", spec).name == "duo-scores=-a-b-c.tsv"


def test_a_command_that_was_begun_twice_keeps_the_cell_that_came_first(base, tmp_path, monkeypatch):
    cells, compute = EXPERIMENTS["sinks"].cells(base, 16)[:2], grid.compute

    def late(cell, *how):
        found = compute(cell, *how)
        if cell is cells[0]:
            grid.put(tmp_path / cell.name, found[1])
        return found

    monkeypatch.setattr(grid, "compute", late)
    assert [cell.name for cell in grid.run(cells, tmp_path)] == [cell.name for cell in cells]
    assert {p.name for p in tmp_path.iterdir()} == {cell.name for cell in cells}
