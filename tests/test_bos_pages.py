"""BOS on the pages: every run reads as its spec says and tells what it read, and addresses carry the setting."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from analysis import texts
from analysis.runs.spec import Sampling, Spec
from app.frames.chat import ChatSender, ChatView
from app.frames.reading import ReadingSender, View
from app.jobs.ablation import AblationJob
from app.jobs.capture import CaptureJob
from app.jobs.chat import ChatJob
from app.jobs.measures import MeasuresJob
from app.jobs.reading import ReadingJob
from app.libraries import LIBRARIES

from .recordings import decoded
from .test_bos import gemma, written
from .waiting import until

pytestmark = pytest.mark.whole

__all__ = ["gemma"]
MAIN = str(Path(__file__).parents[1] / "app" / "main.py")
BEGINS = {"auto": "with <bos>", "on": "with <bos>", "off": "without BOS"}
CONTENT = "to be or not to be that is the question <eos> " * 4


@pytest.mark.parametrize("bos", BEGINS)
def test_all_that_reads_a_text_begins_as_its_spec_says(registry, gemma, bos):
    text, spec = written(CONTENT), Spec(gemma, "a.txt", ("dense",), 40, device="cpu", bos=bos)
    kinds = [
        partial(ReadingJob, spec, text),
        partial(AblationJob, spec, text, "values", 0),
        partial(CaptureJob, spec, text, ""),
        partial(MeasuresJob, spec, text, 3, 4),
    ]
    runs = []
    for kind in kinds:
        runs.append(run := registry.start(kind))
        until(run, lambda run=run: not run.live, 120)
        assert run.status == "finished", run.note
        assert run.begins == BEGINS[bos] and "<eos> in the text is read as text" in run.text_note
    live, _, captured, measured = runs
    tokenizer = live.model.tokenizer
    ids = texts.tokenize(text, tokenizer, bos=bos, limit=40)
    assert np.array_equal(live.lanes[0].context.tokens, ids)
    assert live.run.begins == texts.begins(tokenizer, ids) and live.run.as_text == ("<eos>",)
    # The last one asks too, so there is one more behind it.
    assert np.array_equal(captured.atlas.stretch.token_ids[:-1], ids)
    assert captured.atlas.stretch.about["begins"] == live.run.begins
    assert ((measured.tokenized.ids[:, 0] == tokenizer.bos_token_id) == (bos != "off")).all()
    head, _ = decoded(ReadingSender().frame(live, View()))
    assert f"begins {BEGINS[bos]}" in head["progress"] and "read as text" in head["note"]
    assert (head["tokens"][0] == "<bos>") == (bos != "off")


def test_a_conversation_tells_its_beginning_and_what_was_read_as_text(registry, gemma):
    sampling = Sampling(max_new=2)
    spec = Spec(gemma, "typed", ("dense",), device="cpu", sampling=sampling)
    talk = registry.start(partial(ChatJob, spec))
    until(talk, lambda: talk.status == "waiting", 120)
    assert talk.begins == "with <bos>"
    talk.say("what is <end_of_turn> there")
    until(talk, lambda: talk.status == "waiting" and talk.lanes[0].turns and talk.lanes[0].turns[-1].why, 120)
    assert "<end_of_turn> in what was said is read as text" in talk.note
    head, _ = decoded(ChatSender().frame(talk, ChatView()))
    assert "begins with <bos>" in head["about"] and head["lanes"][0]["first_tokens"][0] == "<bos>"


@pytest.fixture
def loaded():
    """What pages wait for at a first start is there."""
    LIBRARIES.load()


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize("page", ["read", "chat", "heads"])
def test_an_address_says_how_text_is_read(page):
    at = AppTest.from_file(MAIN, default_timeout=300)
    if page != "read":
        at.switch_page(f"views/{page}.py")
    at.query_params["bos"], at.query_params["special"] = "off", "tokens"
    at.run()
    assert not at.exception
    chosen = {s.label: s.value for s in at.sidebar.selectbox}
    assert (chosen["Begin with BOS"], chosen["Special tokens"]) == ("off", "tokens")
    at = AppTest.from_file(MAIN, default_timeout=300)
    if page != "read":
        at.switch_page(f"views/{page}.py")
    at.query_params["bos"] = "maybe"
    at.run()
    state = at.session_state
    wrong = at.error[0].value if page == "heads" else state[f"{page}_problem"]
    assert not at.exception and "bos must be one of auto, on, off, not 'maybe'" in wrong
    assert {s.label: s.value for s in at.sidebar.selectbox}["Begin with BOS"] == "auto"


@pytest.mark.real
@pytest.mark.usefixtures("loaded")
def test_the_lesson_reads_as_its_address_says():
    at = AppTest.from_file(MAIN, default_timeout=300)
    at.switch_page("views/learn.py")
    at.query_params["bos"] = "on"
    # Of a text that begins so nothing is recorded: its logits come with the answer.
    for _ in range(100):
        if at.run().slider:
            break
    assert not at.exception and at.sidebar.selectbox(key="lesson-bos-en").value == "on"
    sliders = [s.label for s in at.slider]
    at.sidebar.selectbox(key="lesson-bos-en").set_value("auto").run()
    assert not at.exception and at.query_params["bos"] in ("auto", ["auto"])
    # BOS was a token of the row like any other.
    assert len(at.slider) == len(sliders) and at.slider[0].label != sliders[0] and sliders[0].startswith("<|im_start|>")
