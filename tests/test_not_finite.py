"""Where a model's numbers are NaN or infinite, no token is chosen: a sentence comes instead, wherever it answers."""

from functools import partial

import numpy as np
import pytest
import torch

from analysis.chat.conversation import Conversation
from analysis.chat.partner import Partner
from analysis.chat.sampling import Chooser
from analysis.engine.lane import Lane
from analysis.engine.stream import open_lanes
from analysis.experiments.ablation import knock_out_each
from analysis.experiments.recall.scoring import answers
from analysis.maps.capture import capture
from analysis.metrics import excess
from analysis.models.language_model import LanguageModel
from analysis.policies import Dense, Window
from analysis.runs.reader import load
from analysis.runs.spec import Sampling, Spec
from app.jobs.chat import ChatJob
from app.jobs.registry import Registry

from . import tokenizers
from .fuzz.jobs import model_with_words
from .test_bos import model_of, tiny
from .test_recall import random_text
from .waiting import until

pytestmark = pytest.mark.whole

BAD = pytest.mark.parametrize("bad", [np.nan, np.inf])
WAYS = [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 3, "top_p": 0.9}, {"repetition_penalty": 1.3}]
SAID = 3
"""Tokens of an answer before its numbers are spoiled."""


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A folder with a tiny model that has a tokenizer."""
    return model_with_words(tmp_path_factory.mktemp("words"))


@pytest.fixture
def spoiled(monkeypatch):
    """Let one logit of a lane be something else once it has said some tokens."""

    def spoil(bad: float, lane: int = 0):
        real, count = Lane.next, [0]

        def next(self, choose, **how):
            # A network that is loaded is checked by such a lane, too.
            mine = self.index == lane and self.context.tokenizer is not None
            count[0] += mine

            def among(logits):
                if mine and count[0] > SAID:
                    logits = logits.clone()
                    logits[7] = bad
                return choose(logits)

            return real(self, among, **how)

        monkeypatch.setattr(Lane, "next", next)

    return spoil


@BAD
@pytest.mark.parametrize("way", WAYS)
def test_no_token_is_chosen_from_logits_that_are_not_finite(bad, way):
    logits = torch.linspace(-3, 3, 40)
    logits[7], chooser = bad, Chooser(Sampling(**way))
    before = chooser.random.get_state()
    with pytest.raises(ValueError, match="numbers are not finite here"):
        chooser(torch.tensor([1, 7]), logits)
    assert torch.equal(chooser.random.get_state(), before)


@pytest.mark.parametrize("way", WAYS)
def test_a_token_that_a_model_leaves_out_is_never_chosen_and_the_others_are(way):
    logits = torch.full((40,), -torch.inf)
    logits[5] = 1.0
    assert Chooser(Sampling(**way))(torch.tensor([1]), logits) == 5


def test_settings_that_make_logits_infinite_are_named():
    chooser = Chooser(Sampling(repetition_penalty=1e-40, temperature=1.0))
    with pytest.raises(ValueError, match="choose a repetition penalty nearer to 1"):
        chooser(torch.tensor([0]), torch.tensor([20.0, 30.0, 1.0]))


@BAD
def test_a_lane_stops_and_holds_what_it_held(bad, spoiled):
    talk = Conversation(Partner(model_of(tokenizers.gemma_like())), Dense(), Sampling(max_new=9))
    spoiled(bad)
    talk.ask("to be or not")
    while (begin := talk.turns[-1].begin) is None or len(talk.tokens) < begin + SAID:
        talk.step()
    with pytest.raises(ValueError, match="numbers are not finite here"):
        talk.step()
    turn = talk.turns[-1]
    assert turn.why == "failed" and turn.stop - turn.begin == SAID and turn.stop == len(talk.tokens)


def test_the_other_lanes_of_the_page_go_on(spoiled, words):
    registry = Registry()
    spec = Spec(words, "typed", ("dense", "window:window=12"), device="cpu", sampling=Sampling(max_new=9))
    spoiled(np.nan, lane=1)
    try:
        talk = registry.start(partial(ChatJob, spec, script=None))
        talk.say("to be or not")
        until(talk, lambda: talk.status == "waiting" and talk.idle and talk.lanes[0].turns)
        dense, window = (lane.turns[-1] for lane in talk.lanes)
        assert dense.why in ("limit", "ended") and window.why == "failed" and window.stop - window.begin == SAID
        assert "Window 12 says no more. The model's numbers are not finite here" in talk.note
    finally:
        registry.close()


def test_the_command_line_says_so_and_keeps_what_was_said(spoiled, words, run, tmp_path):
    spoiled(np.nan)
    (tmp_path / "prompts.txt").write_text("to be or not")
    asked = ("chat", "--model", words, "--device", "cpu", "--policy", "dense", "--max-new", "9")
    code, said, wrong = run(*asked, "--script", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "o"))
    assert code == 2 and wrong.endswith("since it may be damaged\n") and "error: the model's numbers are not" in wrong
    kept = load(tmp_path / "o")
    # The prompt's tokens, but for the first, and the answer's.
    roles = kept.tracks[0].roles.view()
    assert kept.status == "failed" and (roles == 2).sum() == SAID and np.isfinite(kept.tracks[0].nll.view()).all()
    assert "go on: " in said


@pytest.mark.parametrize("decode", [False, True])
def test_no_answer_to_a_question_is_told(decode):
    network = tiny(400)
    ask = partial(answers, network, random_text(), Window(16), decode=decode)
    assert len(list(ask())) == 1
    network.lm_head.weight[3] = torch.nan
    with pytest.raises(ValueError, match="numbers are not finite"):
        list(ask())


WRONG = 77
"""A token behind which every number is none."""


def spoil_one(network):
    """Let one token have no numbers."""
    network.get_input_embeddings().weight[WRONG] = torch.nan
    return network


@pytest.mark.parametrize(
    ("dtype", "advice"), [(torch.float16, "read in bfloat16 or float32"), (torch.float32, "it may be damaged")]
)
def test_a_lane_reads_to_where_numbers_end_and_says_what_to_do(dtype, advice):
    tokens = np.arange(1, 40, dtype=np.int32)
    tokens[30] = WRONG
    lane = open_lanes(tiny(400).to(dtype), tokens, [Dense()])[0]
    spoil_one(lane.context.model.network)
    assert len(lane.read(20).nll) == 20
    before = lane.snapshot()
    with pytest.raises(ValueError, match=f"numbers are not finite here.*{advice}"):
        lane.read(20)
    assert lane.position == 21
    lane.restore(before)
    assert np.isfinite(lane.read(9, upto=31).nll).all()
    # One token at a time, too, and then nothing is chosen.
    lane = open_lanes(lane.context.model, tokens[:31], [Dense()])[0]
    lane.read(30)
    with pytest.raises(ValueError, match=f"numbers are not finite here.*{advice}"):
        lane.next(lambda logits: pytest.fail("asked"))


def test_no_head_is_rated_by_tokens_that_have_no_numbers():
    network = tiny(400)
    tokens = np.arange(1, 60, dtype=np.int32)
    assert len(list(knock_out_each(network, tokens, Dense(), "values", [(0, 0)]))) == 1
    tokens[30] = WRONG
    with pytest.raises(ValueError, match="numbers are not finite here"):
        list(knock_out_each(spoil_one(network), tokens, Dense(), "values", [(0, 0)]))


def test_a_stretch_without_numbers_is_not_kept(tmp_path):
    model = LanguageModel("tiny", tiny(), tokenizers.gemma_like(), [])
    assert model.adapted
    spoil_one(model.network)
    tokens = np.arange(1, 60, dtype=np.int32)
    tokens[30] = WRONG
    with pytest.raises(ValueError, match="numbers are not finite here"):
        list(capture(model, tokens, Spec("m", "t", ("dense",)), tmp_path / "s"))
    assert not (tmp_path / "s" / "stretch.json").exists()


def test_excess_of_what_is_no_number_is_unknown_and_not_that_of_the_rest():
    nll = np.linspace(1, 2, 600)
    for bad in (np.nan, np.inf):
        spoiled = nll.copy()
        spoiled[7] = bad
        for pair in ((nll, spoiled), (spoiled, nll), (spoiled, spoiled)):
            assert np.isnan(excess(*pair)).all()


def test_a_reading_without_numbers_fails_in_its_lane_and_keeps_what_was_read(words, run, tmp_path, monkeypatch):
    """The second lane's numbers end in its second chunk; the first reads on."""
    real = Lane.read

    def read(self, chunk, upto=None):
        if self.index == 0 or self.position == 1:
            return real(self, chunk, upto)
        weight = self.context.model.network.lm_head.weight
        was, weight[7] = weight[7].clone(), torch.nan
        try:
            return real(self, chunk, upto)
        finally:
            weight[7] = was

    np.save(tmp_path / "t.npy", np.arange(1, 100, dtype=np.int32))
    monkeypatch.setattr(Lane, "read", read)
    asked = ("stream", "--model", words, "--device", "cpu", "--dtype", "float16", "--chunk", "50", "--no-bos")
    asked += ("--text", str(tmp_path / "t.npy"), "--out", str(tmp_path / "o"), "--policy", "dense")
    code, said, wrong = run(*asked, "--policy", "window:window=12")
    assert code == 2 and "read in bfloat16 or float32" in wrong and "nan" not in said
    kept = load(tmp_path / "o")
    assert kept.status == "failed" and [len(track.nll.view()) for track in kept.tracks] == [98, 50]
