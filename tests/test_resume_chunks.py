"""What is read again is read in the chunks of the record, so that it is rounded as it was."""

import shutil

import numpy as np
import pytest

from analysis.engine.stream import open_lanes
from analysis.experiments.resume import source_of
from analysis.models.loading import load as load_model
from analysis.policies import parse
from analysis.runs import resume
from analysis.runs.folder import Folder
from analysis.runs.reader import load
from analysis.runs.result import StoppedResult
from analysis.runs.run import Run
from analysis.runs.spec import Spec
from analysis.texts import read as read_text

from .test_resume import LANES
from .test_resume import text as text

pytestmark = pytest.mark.whole

CHUNKS = 32, 7, 64, 5, 19
"""Tokens of the turns of a lane on a page: as many as the machine reads in a moment."""


@pytest.mark.parametrize("fidelity", [False, True])
def test_a_reading_goes_on_over_the_chunks_of_its_record(fidelity, model, text, tmp_path, monkeypatch):
    network, source, lanes = load_model(model, device="cpu"), read_text(text), ["window:window=8", *LANES]
    run = Run(Spec(model, text, tuple(lanes), chunk=128, device="cpu", fidelity=fidelity))
    folder = Folder(tmp_path / "run", run, text_sha256=source.sha256, weights_sha256=network.sha256)
    reading = open_lanes(network, np.load(text).astype(np.int32), list(map(parse, lanes)), fidelity=fidelity)
    upto = 1
    for chunk in CHUNKS:
        upto += chunk
        for lane in reading:
            while lane.position < upto:
                folder.append(lane.read(chunk, upto))
    folder.finish("interrupted")
    recorded = [(i, *span) for i, track in enumerate(run.tracks) for span in track.spans]
    again, take = [], resume.Comparison.take

    def taken(comparison, step):
        again.append((step.lane, step.start, step.stop))
        take(comparison, step)

    monkeypatch.setattr(resume.Comparison, "take", taken)
    going = resume.resumed(resume.stopped(tmp_path / "run"), network, source)
    going.folder.finish("interrupted")
    assert again == recorded and len({stop - start for _, start, stop in recorded}) >= len(CHUNKS)
    assert going.run.events[-1]["compared"] == len(lanes) * (upto - 1) and going.run.events[-1]["largest"] == 0


@pytest.mark.parametrize("bits", ["int8", "int4", "int2"])
def test_a_reading_under_a_cache_of_few_bits_goes_on_from_its_checkpoint(bits, run, model, text, tmp_path):
    of = ["stream", f"--model={model}", f"--text={text}", "--device=cpu", "--chunk=16"]
    for policy in ("streaming:sinks=4,window=28", "h2o:budget=32,recent=4,interval=4"):
        of.append(f"--policy={policy},cache={bits},exact=2,group=4,residual=6")
    code, _, said = run(*of, "--tokens=120", "--out", str(tmp_path / "a"))
    assert code == 0 and "checkpoint" not in said
    assert run("resume", str(tmp_path / "a"), "--tokens=200")[0] == 0
    assert run(*of, "--tokens=200", "--out", str(tmp_path / "b"))[0] == 0
    resumed, whole = load(tmp_path / "a"), load(tmp_path / "b")
    # What was not read again came out of the checkpoint.
    assert resumed.events[-1]["compared"] == 0
    for one, other in zip(resumed.tracks, whole.tracks, strict=True):
        np.testing.assert_array_equal(one.cache_bytes.view(), other.cache_bytes.view())
        np.testing.assert_allclose(one.nll.view(), other.nll.view(), atol=1e-4)


def test_a_text_that_is_elsewhere_is_asked_for_where_it_may_be(run, model, text, tmp_path, monkeypatch):
    """Nobody can name one to a command that goes on, and what was pasted has no path at all."""
    (begun := tmp_path / "begun").mkdir()
    shutil.copy(text, begun / "ids.npy")
    monkeypatch.chdir(begun)
    of = ("--model", model, "--device", "cpu", "--policy", "dense", "--tokens", "40")
    assert run("stream", *of, "--text", "ids.npy", "--out", str(tmp_path / "a"))[0] == 0
    monkeypatch.chdir(tmp_path)
    again = ("resume", str(tmp_path / "a"), "--tokens", "60")
    code, _, error = run(*again)
    assert code == 2 and "begin the command in the folder where the run was begun" in error and "give" not in error
    # As it says.
    shutil.copy(text, tmp_path / "ids.npy")
    assert run(*again)[0] == 0 and len(load(tmp_path / "a").tracks[0].nll) == 59


@pytest.mark.parametrize("kind", ["knockouts", "measures", "costs"])
def test_a_text_of_a_result_that_was_pasted_is_asked_for_as_well(tmp_path, kind):
    asked = StoppedResult(tmp_path, Spec("m", "the pasted text", ("dense",), 40), "", "", kind, {})
    with pytest.raises(ValueError, match=r"'the pasted text' of this run is not here: .* from the page of the run"):
        source_of(asked)
