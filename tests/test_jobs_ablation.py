"""Live knock-outs: one head after the other, until somebody has seen enough."""

import time
from functools import partial

import numpy as np
import pytest

from analysis.experiments.ablation import knock_out_each
from analysis.policies import Streaming
from analysis.runs.spec import Spec
from app.jobs import base
from app.jobs.ablation import AblationJob

from .test_jobs_reading import text
from .waiting import until

pytestmark = pytest.mark.whole


def begin(registry, model, *, tokens=200, layer=None, kind="values"):
    spec = Spec(model, "random.npy", ("streaming:sinks=4,window=12",), tokens)
    return registry.start(partial(AblationJob, spec, text(tokens), kind, layer))


@pytest.mark.parametrize("kind", ["values", "weights"])
def test_every_head_is_knocked_out_in_turn(registry, model, kind, tiny_llama):
    run = begin(registry, model, kind=kind)
    until(run, lambda: run.status == "finished")
    assert run.total == len(run.effects) == 12 and run.seconds_left == 0
    wanted = list(knock_out_each(tiny_llama, text(200).ids, Streaming(4, 12), kind))
    np.testing.assert_allclose([e[:3] for e in run.effects], [e[:3] for e in wanted], atol=1e-5)


def test_one_layer_alone(registry, model):
    run = begin(registry, model, layer=1)
    until(run, lambda: run.status == "finished")
    assert [(e.layer, e.head) for e in run.effects] == [(1, head) for head in range(4)]
    run = begin(registry, model, layer=3)
    until(run, lambda: run.status == "failed")
    assert run.note == "There is no layer 3: layers are 0 to 2."


def test_what_was_found_is_kept_when_it_is_stopped(registry, model):
    run = begin(registry, model, tokens=2000)
    until(run, lambda: len(run.effects) >= 2)
    run.request("stopped")
    until(run, lambda: run.status == "stopped")
    assert 2 <= len(run.effects) < run.total and run.seconds_left > 0


def test_it_is_heard_and_moves_within_one_head(registry, model):
    """A pass over a long text takes seconds: neither its start nor its end waits for one."""
    spec = Spec(model, "random.npy", ("h2o:budget=16,recent=5",), 20_000)
    run = registry.start(partial(AblationJob, spec, text(20_000), "values", None))
    until(run, lambda: run.share > 0)
    assert not run.effects and run.snapshot.passes < 0.5
    run.request("stopped")
    until(run, lambda: run.status == "stopped")
    assert not run.effects and run.snapshot.passes < 1


def test_it_waits_while_nobody_looks(registry, model, monkeypatch):
    run = begin(registry, model, tokens=2000)
    until(run, lambda: len(run.effects) >= 1)
    monkeypatch.setattr(base, "PAUSE_AFTER", 0.0)
    time.sleep(0.5)
    found = len(run.effects)
    time.sleep(1)
    assert len(run.effects) == found < run.total and run.status == "running"
    monkeypatch.setattr(base, "PAUSE_AFTER", 10.0)
    until(run, lambda: run.status == "finished")
