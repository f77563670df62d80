"""A live comparison of policies: what the command finds, dense first; it stops, goes on, and computes nothing twice."""

import json
import shlex
from dataclasses import replace
from functools import partial

import msgspec
import numpy as np
import pytest

from analysis.experiments import grid
from analysis.experiments.verdict import Plan, Verdict, kept, plan, read_verdict, tables, verdict
from analysis.experiments.verdict.kept import folder_of
from analysis.models.loading import load
from analysis.runs import library
from analysis.runs.held import strangers
from analysis.runs.spec import Spec
from app import recordings
from app.jobs.kept import ResultKeeper
from app.jobs.loading import Models
from app.jobs.verdict import VerdictJob
from app.panels.verdict_results import Found

from .test_jobs_recall import finished, home, speaking
from .test_resume import killed
from .waiting import copied, told, until

pytestmark = pytest.mark.whole

__all__ = ["home", "speaking"]
FILES = {"verdict.json", "table.csv", "pairs.csv", "table.md"}


def plan_of(speaking, tokens=300, **more) -> Plan:
    asked = {"policies": ("window", "streaming:sinks=2"), "budgets": (32, 64), "tasks": ("perplexity", "kl", "passkey")}
    asked |= {"texts": ("hamlet",), "lengths": (300,), "depths": (5.0, 95.0), "seed": 5}
    return Plan(Spec(speaking, "hamlet", ("dense",), tokens, 32, device="cpu"), **(asked | more))


def begun(registry, asked: Plan, **more) -> VerdictJob:
    return registry.start(partial(VerdictJob, asked, **more))


def stopped(job: VerdictJob) -> VerdictJob:
    job.request("stopped")
    until(job, lambda: not job.live)
    assert job.status == "stopped", job.note
    return job


def timeless(found: Verdict) -> Verdict:
    """The same without what takes time, which is measured anew each time."""
    return msgspec.structs.replace(
        found, entries=[msgspec.structs.replace(e, milliseconds=None) for e in found.entries]
    )


@pytest.fixture
def written(monkeypatch) -> list[str]:
    """Names of cells as they are computed."""
    names = []
    for kind in (plan.ReadingCell, plan.RecallCell):

        def write(cell, place, model, told=lambda tokens: None, real=kind.write):
            names.append(cell.name)
            real(cell, place, model, told)

        monkeypatch.setattr(kind, "write", write)
    return names


def test_its_numbers_are_those_of_the_command_dense_first(registry, speaking, tmp_path, written):
    asked = plan_of(speaking)
    job = finished(registry, begun(registry, asked))
    found = job.snapshot
    # A reading and two questions of each of five.
    assert found.done == found.total == len(asked.cells) == 15 and found.share == 1
    assert written == [cell.name for cell in asked.cells] and "dense" in written[0]
    list(grid.run(asked.cells, tmp_path / "alone"))
    assert timeless(found.found) == timeless(verdict(asked, tmp_path / "alone"))
    assert found.found == read_verdict(library.home() / job.id) == job.figure_input().data
    assert all(e.kl is not None and e.recall is not None and e.milliseconds for e in found.found.entries)


def test_what_says_that_all_cells_are_whole_knows_all_of_them(registry, speaking, monkeypatch):
    shown, announce = [], VerdictJob._announce

    def heard(job):
        announce(job)
        shown.append(Found.of_job(job))

    monkeypatch.setattr(kept, "TABLED_EVERY", 1e9)
    monkeypatch.setattr(VerdictJob, "_announce", heard)
    asked = plan_of(speaking, budgets=(32,), tasks=("kl", "passkey"))
    job = finished(registry, begun(registry, asked))
    told(job)
    partly, whole = [found for found in shown if not found.whole], [found for found in shown if found.whole]
    assert partly and len(whole) >= 2
    assert all(found.verdict == verdict(asked, library.home() / job.id) for found in whole)


def test_a_comparison_that_has_not_begun_is_not_called_whole(speaking):
    job = VerdictJob(plan_of(speaking, budgets=(32,), tasks=("kl",)), Models())
    assert job.snapshot.done == job.snapshot.total == 0 and not Found.of_job(job).whole


def test_a_comparison_that_was_killed_is_not_called_whole(registry, speaking):
    asked = plan_of(speaking, budgets=(32,), tasks=("kl",))
    job = finished(registry, begun(registry, asked))
    place = copied(library.home() / job.id, library.home() / "killed")
    folder_of(asked, place)
    killed(place)
    assert Found.of_job(job).whole and not Found.of_result(recordings.result("killed", "verdict")).whole


def test_a_comparison_does_not_go_on_with_cells_of_other_weights(registry, speaking, written):
    asked = plan_of(speaking)
    job = begun(registry, asked)
    until(job, lambda: job.snapshot is not None and job.snapshot.done >= 2)
    stopped(job)
    kept = library.home() / job.id / asked.cells[0].name / "run.json"
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"weights_sha256": "0" * 64}))
    written.clear()
    again = begun(registry, asked, resumes=job.id)
    until(again, lambda: not again.live)
    assert again.status == "failed" and "was computed with other weights" in again.note and not written


def test_the_library_lists_it_and_opens_it_as_the_page_left_it(registry, speaking):
    job = finished(registry, begun(registry, plan_of(speaking)))
    entry = library.entry(job.id)
    assert (entry.kind, entry.status, entry.title) == ("verdict", "finished", "Verdict: hamlet")
    assert Found.of_result(recordings.result(job.id, "verdict")) == Found.of_job(job)
    assert not strangers(entry.path)
    for name, text in tables.written(job.snapshot.found).items():
        assert (entry.path / name).read_text() == text


def test_what_is_stopped_goes_on_and_computes_nothing_twice(registry, speaking, written):
    asked = plan_of(speaking)
    job = begun(registry, asked)
    until(job, lambda: job.snapshot is not None and job.snapshot.done >= 4)
    stopped(job)
    assert library.entry(job.id).status == "interrupted"
    before, found = job.snapshot, Found.of_result(recordings.result(job.id, "verdict"))
    kept = list((library.home() / job.id).glob("*/run.json"))
    assert 4 <= before.done == len(kept) < before.total == 15 and not found.whole
    # What was told last, and what lies there, is of all cells that are whole.
    assert found.verdict == before.found == verdict(asked, library.home() / job.id)
    first = set(written[: before.done])
    written.clear()
    again = finished(registry, begun(registry, asked, resumes=job.id))
    assert again.id == job.id and len(set(written)) == len(written) == 15 - before.done and not first & set(written)
    assert again.snapshot.done == 15 and library.entry(job.id).status == "finished"
    assert again.snapshot.found.entries[:1] == before.found.entries[:1]


def test_a_stop_is_heard_in_the_middle_of_a_cell(registry, speaking):
    job = begun(registry, plan_of(speaking, tokens=30_000, tasks=("kl",)))
    until(job, lambda: job.snapshot is not None and job.snapshot.share > 0)
    assert job.snapshot.seconds_left > 0 and job.snapshot.done == 0
    stopped(job)
    # What was not read to its end is not kept.
    assert job.snapshot.done == 0 and not list((library.home() / job.id).glob("*/run.json"))


def test_what_was_killed_is_completed_by_a_job_and_by_the_command(registry, speaking, run, home, monkeypatch):
    real, copies = ResultKeeper.write, []

    def write(self, what):
        real(self, what)
        if self.folder is not None and json.loads((self.folder.path / "run.json").read_text())["status"] == "running":
            copies.append(copied(self.folder.path, home / f"killed-{len(copies)}"))
            killed(copies[-1])

    asked = plan_of(speaking, budgets=(32,), tasks=("kl",))
    with monkeypatch.context() as patch:
        patch.setattr(ResultKeeper, "write", write)
        whole = finished(registry, begun(registry, asked)).snapshot.found
    assert len(copies) >= 4
    for i, place in enumerate(copies):
        if i % 2:
            found = finished(registry, begun(registry, asked, resumes=place.name)).snapshot.found
        else:
            code, said, wrong = run("resume", place.name)
            assert code == 0 and "Finished" in said, wrong
            found = read_verdict(place)
        assert timeless(found) == timeless(whole) and library.entry(place.name).status == "finished"
        assert {p.name for p in place.iterdir() if p.is_file()} >= FILES


def test_cells_of_another_run_are_taken_over_where_they_are_the_same(registry, speaking, written):
    first = finished(registry, begun(registry, plan_of(speaking)))
    written.clear()
    more = plan_of(speaking, policies=("window", "streaming:sinks=2", "random:interval=8"), tasks=("kl", "passkey"))
    job = finished(registry, begun(registry, more, like=first.id))
    assert len(written) == 6 and all("random" in name for name in written) and job.snapshot.done == 21
    written.clear()
    # Other numbers are another run.
    other = replace(plan_of(speaking), base=replace(more.base, dtype="bfloat16"))
    finished(registry, begun(registry, other, like=first.id))
    assert len(written) == 15


def test_where_the_disk_takes_nothing_the_verdict_is_told_all_the_same(registry, speaking, monkeypatch):
    def full(*_):
        raise ValueError("the disk is full: make room")

    monkeypatch.setattr(kept, "_put", full)
    job = finished(registry, begun(registry, plan_of(speaking)))
    rest = "The library has what was written before, and the rest is kept in memory only"
    assert job.kept.problem == f"{rest}: the disk is full." and job.snapshot.done == 15
    assert all(e.tokens == 299 for e in job.snapshot.found.entries) and not Found.of_job(job).table
    with pytest.raises(ValueError, match="make room"):
        job.figure_input()


def test_what_cannot_be_compared_is_one_sentence(registry, speaking):
    job = begun(registry, plan_of(speaking, lengths=(300, 20)))
    until(job, lambda: not job.live)
    assert job.status == "failed" and "choose a larger length" in job.note
    assert not library.entries()
    # What no model can be asked is no plan.
    with pytest.raises(ValueError, match="depths must be from 0 to 100 % of the text, not 101"):
        plan_of(speaking, depths=(101.0,))


@pytest.mark.parametrize(
    ("more", "wrong"),
    [
        ({"texts": ("secret.txt",)}, "there is no bundled text"),
        ({"tasks": ("jsonl:file=secret.jsonl",)}, "pages read no files by name"),
        ({"tasks": ("passkey:haystack=secret.txt",)}, "there is no bundled text"),
    ],
)
def test_a_page_reads_no_file_that_a_plan_names(registry, speaking, tmp_path, monkeypatch, more, wrong):
    monkeypatch.chdir(tmp_path)
    for name in ("secret.txt", "secret.jsonl"):
        (tmp_path / name).write_text(json.dumps({"context": "a", "question": "b", "answer": "c"}))
    asked = plan_of(speaking, **more)
    with pytest.raises(ValueError, match=wrong):
        begun(registry, asked)
    # One of other hands is shown as it lies there.
    folder_of(asked, library.home() / "theirs").finish("interrupted")
    found = Found.of_result(recordings.result("theirs", "verdict"))
    assert found.verdict is None


def test_a_folder_says_what_is_compared(speaking):
    asked = plan_of(speaking, depths=(2.5,))
    assert Plan.of(asked.spec, json.loads(json.dumps(asked.settings))) == asked
    for wrong in ({}, asked.settings | {"more": 1}, asked.settings | {"budgets": [48]}):
        with pytest.raises(ValueError, match="it does not say what is compared"):
            Plan.of(asked.spec, wrong)


def test_what_a_command_compared_is_opened_by_its_page_which_says_the_same_command(speaking, run, registry):
    words = ["compare", "--model", speaking, "--device", "cpu", "--policies", "window,streaming:sinks=2,positions=text"]
    words += ["--budgets", "32", "--tokens", "300", "--tasks", "perplexity,kl,passkey", "--lengths", "300"]
    assert run(*words, "--depths", "2.5,95", "--text", "hamlet", "--text", "macbeth")[0] == 0
    found = Found.of_result(recordings.result("compare", "verdict"))
    entry = library.entry("compare")
    assert (entry.kind, entry.status) == ("verdict", "finished") and found.whole and found.table
    assert found.plan.policies == ("window", "streaming:sinks=2,positions=text")
    cells = {p: p.stat().st_mtime_ns for p in entry.path.glob("*/run.json")}
    assert len(cells) == 18
    assert run(*shlex.split(found.plan.command())[3:])[0] == 0
    assert {p: p.stat().st_mtime_ns for p in entry.path.glob("*/run.json")} == cells
    assert timeless(read_verdict(entry.path)) == timeless(found.verdict)
    assert np.isfinite([e.kl for e in found.verdict.entries]).all()


def test_what_the_command_was_interrupted_at_is_completed_by_the_page(speaking, run, registry):
    asked = plan_of(speaking)
    place = library.home() / "half"
    folder = folder_of(asked, place)
    for cell, _ in zip(asked.cells, range(3), strict=False):
        grid.put(place / cell.name, grid.made(partial(cell.write, model=load(speaking, device="cpu"))))
    folder.finish("interrupted")
    job = finished(registry, begun(registry, asked, resumes="half"))
    assert job.snapshot.done == 15 and library.entry("half").status == "finished"
