"""Laws of the tiny model with learned sinks: what comes with Sinkscope is trained, and its sinks take what first tokens
take elsewhere."""

import errno
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from safetensors import SafetensorError

from analysis import texts
from analysis.engine.stream import open_lanes
from analysis.experiments.presets import PRESETS
from analysis.lab import own_sink
from analysis.maps.recent import head_map
from analysis.models import kinds, tiny
from analysis.models.loading import load
from analysis.policies import parse

pytestmark = pytest.mark.whole

TOKENS = 700


@pytest.fixture(scope="module")
def shipped():
    return load(tiny.NAME, device="cpu")


@pytest.fixture(scope="module")
def read(shipped):
    """The lanes of its story, and what they learned of a text that it was not trained on."""
    ids = texts.tokenize(texts.play(own_sink.HELD_OUT), shipped.tokenizer, limit=TOKENS)
    lanes = open_lanes(shipped, ids, [parse(p) for p in PRESETS["own"].policies], history=64)
    return lanes, [lane.read(TOKENS) for lane in lanes]


def test_it_is_there_for_everybody_and_is_what_its_recipe_makes(shipped):
    assert tiny.NAME in kinds.installed() and PRESETS["own"].model == tiny.NAME
    assert (shipped.family, shipped.name, shipped.trained_length) == ("gpt_oss", tiny.CALLED, own_sink.LENGTH)
    mine, made = shipped.network, own_sink.network()
    assert {n: p.shape for n, p in mine.named_parameters()} == {n: p.shape for n, p in made.named_parameters()}
    assert sum(f.stat().st_size for f in tiny.FOLDER.iterdir()) < 1.5e6
    assert texts.opening(shipped.tokenizer) == []
    words = texts.play(own_sink.HELD_OUT).content[:500]
    assert shipped.tokenizer.decode(shipped.tokenizer(words)["input_ids"]) == words


def test_its_sinks_take_what_first_tokens_take_elsewhere(read):
    (streaming, window), (kept, evicted) = read
    extra = np.array([np.nanmean(head_map(streaming, layer, head, 64).learned) for layer, head in np.ndindex(2, 4)])
    first = kept.sink_mass[..., -64:].mean(-1).ravel()
    assert extra.max() > 0.3 and extra.mean() > 2 * first.mean()
    # So it loses nothing with the first tokens, and has learned something to lose.
    assert window.sinks == 0 and abs(float(evicted.nll.mean() - kept.nll.mean())) < 0.01
    assert np.exp(kept.nll.mean()) < own_sink.VOCABULARY / 10


def test_the_documents_say_how_well_it_reads_and_what(shipped):
    ids = texts.tokenize(texts.play(own_sink.HELD_OUT), shipped.tokenizer, limit=2000)
    (lane,) = open_lanes(shipped, ids, [parse("window:window=64")])
    perplexity = np.exp(lane.read(len(ids)).nll.mean(dtype=np.float64))
    said = " ".join((Path(__file__).parents[1] / "docs" / "models.md").read_text(encoding="utf-8").split())
    assert f"whose first 2,000 tokens it reads at a perplexity of {perplexity:.1f} in a window of 64" in said


def test_a_training_makes_a_model_that_loads(tmp_path, run, monkeypatch):
    # Of one play, which has words enough for the whole vocabulary.
    monkeypatch.setattr(own_sink, "plays", lambda: ("macbeth", own_sink.HELD_OUT))
    ended, said, _ = run("tiny", "--out", str(tmp_path / "m"), "--steps", "2")
    assert ended == 0 and "Finished" in said
    model = load(str(tmp_path / "m"), device="cpu")
    assert model.vocabulary == own_sink.VOCABULARY
    assert all(sink.abs().min() > 0 for sink in own_sink.sinks_of(model.network))
    ended, _, err = run("tiny", "--out", str(tmp_path / "m"))
    assert ended == 2 and "holds something already" in err


def test_training_learns_and_is_the_same_again():
    ids = np.tile(np.arange(1, 60), 40)
    losses = []
    for _ in range(2):
        model = own_sink.network(64)
        losses.append(list(own_sink.train(model, ids, 6)))
        assert all(sink.abs().min() > 0 for sink in own_sink.sinks_of(model))
    assert losses[0] == losses[1] and losses[0][-1] < losses[0][0]


def test_a_model_that_the_disk_does_not_take_is_said_and_before_it_is_trained_where_that_is_known(
    tmp_path, run, monkeypatch
):
    monkeypatch.setattr(own_sink, "plays", lambda: ("macbeth", own_sink.HELD_OUT))
    for e in (OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left on device")):
        with monkeypatch.context() as patch:
            patch.setattr("transformers.PreTrainedModel.save_pretrained", Mock(side_effect=e))
            ended, _, said = run("tiny", "--out", str(tmp_path / "m"), "--steps", "1")
        assert ended == 2 and "m cannot be written (" in said and "No space left" in said and said.count("\n") == 1
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10**6))
    monkeypatch.setattr(own_sink, "train", Mock(side_effect=AssertionError))
    ended, _, said = run("tiny", "--out", str(tmp_path / "m"), "--steps", "1")
    assert ended == 2 and "this model needs" in said


def test_an_interrupted_training_says_that_it_keeps_nothing(run, tmp_path, monkeypatch):
    def train(*_):
        yield 1
        raise KeyboardInterrupt

    monkeypatch.setattr(own_sink, "plays", lambda: ("macbeth", own_sink.HELD_OUT))
    monkeypatch.setattr(own_sink, "train", train)
    code, said, _ = run("tiny", "--out", str(tmp_path / "m"))
    assert code == 130 and "Interrupted: this training keeps nothing before its end" in said
    assert not list(tmp_path.iterdir())
