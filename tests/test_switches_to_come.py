"""A run whose switches are planned does them all, wherever it was stopped: it is the run that never was."""

import json
import shutil
from functools import partial

import numpy as np
import pytest

from analysis import texts
from analysis.policies import parse
from analysis.runs import resume
from analysis.runs.about import about_of
from analysis.runs.reader import load
from analysis.runs.run import Run
from analysis.runs.spec import Spec
from analysis.runs.switches import Switch, to_come
from app.jobs.reading import ReadingJob

from .fuzz import seeds
from .test_jobs_kept import home as home
from .test_resume import killed
from .waiting import copied, until

PINNED, DROPPED = "streaming:sinks=4,window=12,positions=cache", "window:window=16"
LANES = PINNED, DROPPED
STORY = (Switch(60, 1, PINNED, pin=True), Switch(160, 1, DROPPED), Switch(160, 0, "dense"), Switch(220, 1, "dense"))


@pytest.fixture(scope="module")
def ids(tmp_path_factory):
    """A text as a file, which a command finds, too."""
    path = tmp_path_factory.mktemp("text") / "ids.npy"
    np.save(path, np.random.default_rng(3).integers(0, 97, 260))
    return str(path)


def begin(registry, model, ids, **more) -> ReadingJob:
    spec = Spec(model, ids, LANES, chunk=32, device="cpu")
    return registry.start(partial(ReadingJob, spec, texts.read(ids), switches=STORY, **more))


def ended(registry, job) -> None:
    registry.free(job.id)
    job.join()


@pytest.fixture
def whole(registry, model, ids) -> Run:
    """The run that is never stopped."""
    job = begin(registry, model, ids)
    until(job, lambda: job.status == "finished")
    return job.run


def switched(run: Run) -> list[tuple]:
    return sorted((e["lane"], e["position"], e["policy"], e["how"]) for e in run.events if e["what"] == "switch")


def same(run: Run, other: Run) -> None:
    """Token by token, with the same switches."""
    assert switched(run) == switched(other)
    for mine, its in zip(run.tracks, other.tracks, strict=True):
        assert mine.policies == its.policies
        for name in ("token_ids", "cache_tokens"):
            np.testing.assert_array_equal(getattr(mine, name).view(), getattr(its, name).view(), err_msg=name)
        np.testing.assert_allclose(mine.nll.view(), its.nll.view(), atol=1e-4)


@pytest.mark.parametrize("at", [40, 160])
def test_a_story_that_was_stopped_does_the_switches_to_come(registry, model, ids, whole, home, at):
    assert len(switched(whole)) == len(STORY)
    job = begin(registry, model, ids, pause=at)
    until(job, lambda: job.status == "paused")
    ended(registry, job)
    assert len(switched(job.run)) < len(STORY)
    again = registry.start(partial(ReadingJob, job.spec, job.text, resumes=job.id))
    until(again, lambda: again.status == "finished")
    same(again.run, whole)
    same(load(home / job.id), whole)


def test_a_command_goes_on_with_a_story_that_was_killed(registry, model, ids, whole, home, tmp_path, run):
    """With a checkpoint, without one, and in the moment before switches whose token has come."""
    job = begin(registry, model, ids, pause=160)
    until(job, lambda: job.status == "paused")
    for left in ("checkpoint", "nothing", "before"):
        killed(place := copied(home / job.id, tmp_path / left))
        if left != "checkpoint":
            shutil.rmtree(place / "checkpoint")
        if left == "before":
            lines = (place / "events.jsonl").read_text().splitlines(keepends=True)
            (place / "events.jsonl").write_text("".join(line for line in lines if '"position": 160' not in line))
        assert len(switched(load(place))) == {"before": 1}.get(left, 3)
        code, said, error = run("resume", str(place))
        assert code == 0, (said, error)
        same(load(place), whole)
    ended(registry, job)


def test_a_lane_that_somebody_switched_has_left_the_story_for_good(registry, model, ids, home):
    job = begin(registry, model, ids, pause=40)
    until(job, lambda: job.status == "paused")
    job.switch(1, parse("dense"), pin=False)
    until(job, lambda: switched(job.run))
    ended(registry, job)
    again = registry.start(partial(ReadingJob, job.spec, job.text, resumes=job.id))
    until(again, lambda: again.status == "finished")
    assert [told[:3] for told in switched(again.run)] == [(0, 160, "dense"), (1, 40, "dense")]


@pytest.mark.parametrize("where", ["switched", "planned"])
def test_no_page_reads_a_file_that_a_run_from_other_hands_was_switched_to(registry, model, ids, home, tmp_path, where):
    job = begin(registry, model, ids, pause=100)
    until(job, lambda: job.status == "paused")
    ended(registry, job)
    (secret := tmp_path / "scores.tsv").write_text("0.5\t0.5\n" * 2)
    name = "events.jsonl" if where == "switched" else "run.json"
    told = (home / job.id / name).read_text()
    old, new = (json.dumps(policy) for policy in (PINNED if where == "switched" else "dense", f"duo:scores={secret}"))
    (home / job.id / name).write_text(told.replace(f'"policy": {old}', f'"policy": {new}'))
    assert str(secret) in (home / job.id / name).read_text()
    again = registry.start(partial(ReadingJob, job.spec, job.text, resumes=job.id))
    until(again, lambda: again.status == "failed")
    assert "would read the file" in again.note and "pages read no files by name" in again.note


def test_what_is_to_come_is_what_has_not_happened():
    def event(switch: Switch, **more) -> dict:
        return {"what": "switch", "lane": switch.lane, "position": switch.position, **more}

    first, second, other, last = STORY
    assert to_come(STORY, [], [1, 1]) == list(STORY)
    assert to_come(STORY, [event(first, planned=True)], [60, 60]) == [second, other, last]
    # At its token, and not carried out yet.
    assert to_come(STORY, [event(first, planned=True)], [160, 160]) == [second, other, last]
    # One that could not be is not tried at another token.
    assert to_come(STORY, [], [160, 161]) == [other, last]
    assert to_come(STORY, [event(Switch(30, 1, "dense"))], [30, 30]) == [other]
    assert to_come((), [event(first)], [90, 90]) == []


def test_a_folder_of_an_older_version_opens_and_one_that_cannot_be_says_what_is_wrong(home):
    seeds.run(home / "a", end="interrupted")
    about = json.loads((home / "a" / "run.json").read_text())
    assert about.pop("switches") == []
    (home / "a" / "run.json").write_text(json.dumps(about))
    assert resume.stopped(home / "a").switches == ()
    for lane, policy, wrong in ((9, "dense", "lane 9, which there is not"), (0, "nobody", "nobody")):
        switch = {"position": 50, "lane": lane, "policy": policy}
        (home / "a" / "run.json").write_text(json.dumps({**about, "switches": [switch]}))
        with pytest.raises(ValueError, match=wrong):
            about_of(home / "a")
