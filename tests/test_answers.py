"""Chapters begin with recorded answers: they are what the model answers now, of what was asked and of nothing else."""

import subprocess
import sys
import threading
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.element_tree import Element

from analysis import metrics
from analysis.experiments.growth import SIZES
from app.lesson.answers import RECORDED, Answers, Question, record, recorded
from app.lesson.chapters import PLAYS, cost, first, stage
from app.lesson.chapters.stage import SENTENCE
from app.libraries import LIBRARIES

pytestmark = pytest.mark.whole

ROOT = Path(__file__).parents[1]
MOST = 1_000_000
"""Bytes of all recorded answers together."""
QUESTIONS = {f"{name}-{i}": q for name, play in PLAYS.items() for i, q in enumerate(play.recorded)}
FIRST = 513
"""Tokens whose costs are counted again."""
TIMED = {"cost"}
"""What is recorded of these are seconds, which only a quiet machine gives."""
IN_THE_GALLERY = {"drop", "enough", "emergence"}
COLD = """
import sys
from streamlit.testing.v1 import AppTest
from app.libraries import LIBRARIES
from app.lesson import LANGUAGES, lesson
from app.lesson.answers import recorded
from app.lesson.chapters import PLAYS
LIBRARIES.begin = lambda: None
for language in LANGUAGES:
    begun = lesson(language)["page"].words["recorded"].partition("{what}")[0]
    for name in PLAYS:
        at = AppTest.from_file("app/main.py", default_timeout=60)
        at.switch_page("views/learn.py")
        at.query_params["lang"], at.query_params["chapter"] = language, name
        at.run()
        assert not at.exception and not at.error, (name, at.exception, at.error)
        if PLAYS[name].recorded and recorded(PLAYS[name].recorded[0]) is None:
            assert name == "cost", name
            continue
        assert len(at.main.caption), name
        last = at.main.caption[-1].value
        assert last.startswith(begun) and "float32" in last and "{" not in last, (name, last)
        assert not {"torch", "transformers"} & set(sys.modules), name
"""


def double(model: int, number: int) -> dict[str, np.ndarray]:
    """A question to a model that is a number."""
    if number < 0:
        raise ValueError(f"{number} is below 0: ask another")
    return {"double": np.array(model * number)}


def test_every_chapter_has_a_recorded_result():
    assert {name for name, play in PLAYS.items() if play.recorded} | IN_THE_GALLERY == set(PLAYS)
    there = {question.chapter for question in QUESTIONS.values() if recorded(question) is not None}
    assert there >= set(PLAYS) - IN_THE_GALLERY - TIMED
    assert {path.stem for path in RECORDED.iterdir()} == there
    assert sum(path.stat().st_size for path in RECORDED.iterdir()) <= MOST


def test_chapters_are_there_before_torch_is():
    done = subprocess.run([sys.executable, "-c", COLD], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("name", [name for name, q in QUESTIONS.items() if q.chapter != "cost"])
def test_a_recorded_answer_is_what_the_model_answers_now(embedded, name):
    question = QUESTIONS[name]
    found, now = recorded(question), question.ask(embedded, *question.settings)
    assert found.about.model == embedded.name and found.about.what == str(question)
    assert found.answer.keys() == now.keys()
    for array, values in now.items():
        if values.dtype.kind in "fc":
            np.testing.assert_allclose(found.answer[array], values, rtol=1e-3, atol=1e-3, err_msg=array)
        else:
            np.testing.assert_array_equal(found.answer[array], values, err_msg=array)


def test_recorded_costs_are_of_what_is_read_now_and_grow_as_the_theory_says(embedded):
    question = QUESTIONS["cost-0"]
    costs = cost.costs_of(recorded(question).answer)
    text, _, bos = question.settings
    now = cost.costs_of(question.ask(embedded, text, FIRST, bos))
    for lane, again in zip(costs.lanes, now.lanes, strict=True):
        # Seconds are those of the machine.
        same = [(c.tokens, c.cache_bytes) for c in again.costs]
        assert lane.policy == again.policy and len(same) > 0
        assert [(c.tokens, c.cache_bytes) for c in lane.costs[: len(same)]] == same
        tokens, _, attention, _ = cost.counted(lane.policy.name, lane.costs)
        assert cost.growth(tokens, attention).exponent == pytest.approx(cost.THEORY[lane.policy.name][1], abs=0.15)
    assert [c.tokens for c in costs.windows] == list(SIZES)
    assert [c.cache_bytes for c in now.windows] == [c.cache_bytes for c in costs.windows[: len(now.windows)]]


def test_another_word_comes_before_the_rest_of_a_sentence_with_and_without_spaces(embedded):
    word = first.tokens(embedded, "Yesterday")
    for sentence in ("The cat sat", "猫坐在垫子上", "Unbelievable!"):
        _, *rest = first.tokens(embedded, sentence)
        begun = dict(zip(first.BEGINNINGS, first.ask(embedded, sentence, "Yesterday")["masses"], strict=True))
        np.testing.assert_allclose(begun["word"], first.read(embedded, [*word, *rest]).sink_mass, atol=1e-5)


def opened(chapter: str, **choices: str) -> AppTest:
    """The lesson at a chapter, as a browser gets it first."""
    at = AppTest.from_file(str(ROOT / "app" / "main.py"), default_timeout=300)
    at.switch_page("views/learn.py")
    for name, choice in {"chapter": chapter, **choices}.items():
        at.query_params[name] = choice
    return at.run()


def kinds(at: AppTest) -> list[str]:
    """What stands on the page, from above; boxes around it, of which what waits has an empty one, are not seen."""
    return [element.type for element in at.main if isinstance(element, Element)]


def test_windows_have_the_share_of_attention_of_the_tokens_that_stand_beside_it(monkeypatch):
    monkeypatch.setattr(LIBRARIES, "there", 0)
    monkeypatch.setattr(LIBRARIES, "begin", lambda: None)
    at = opened("cost")
    assert not at.exception
    shares = {
        int(tokens): f"{100 * attention / seconds:.0f} %"
        for tokens, seconds, attention, _ in recorded(cost.KEPT).answer["windows"]
    }
    *_, row = at.table[0].value.to_numpy().tolist()
    assert (row[1], row[-1]) == ("1,024", shares[1024])
    said = next(c.value for c in at.caption if c.value.startswith("In a window of 512 tokens"))
    assert f"attention takes {shares[512]} of a pass" in said and f"takes {shares[1024]} at 1,024 tokens" in said


def test_powers_of_windows_are_not_said_to_be_near_what_they_are_not(monkeypatch):
    """On a GPU a pass over a small window takes as long as one over a larger one."""
    kept = recorded(cost.KEPT)
    flat = {**kept.answer, "windows": kept.answer["windows"] * [1, 0, 0, 1] + [0, 0.02, 0.01, 0]}
    monkeypatch.setattr(cost.answers, "recorded", lambda question: replace(kept, answer=flat))
    monkeypatch.setattr(LIBRARIES, "there", 0)
    monkeypatch.setattr(LIBRARIES, "begin", lambda: None)
    said = next(c.value for c in opened("cost").caption if c.value.startswith("In a window of 512 tokens"))
    assert "the power 0.00" in said and "alone grows with 0.00" in said and "near" not in said


@pytest.mark.parametrize("show", ["memory", "window"])
def test_who_cannot_see_costs_hears_what_is_drawn(monkeypatch, show):
    alts = []
    monkeypatch.setattr(cost.chart, "mount", lambda figure, **of: alts.append(of["alt"]))
    monkeypatch.setattr(LIBRARIES, "there", 0)
    monkeypatch.setattr(LIBRARIES, "begin", lambda: None)
    assert not opened("cost", show=show).exception
    tokens, seconds, attention, _ = recorded(cost.KEPT).answer["windows"][0]
    heard = {
        "memory": "Bytes of the cache against tokens. Dense 4,096: 188.7 MB; Window 4,096: 2.9 MB; ",
        "window": "Seconds of one pass against the window. "
        f"{tokens:.0f}: whole model {seconds:.2g} s, attention {attention:.2g} s; 128: ",
    }
    assert len(alts) == 1 and alts[0].startswith(heard[show])


@pytest.mark.parametrize(("count", "even"), [(2, "0.50"), (5, "0.32"), (6, "")])
def test_a_sentence_too_short_to_tell_sinks_from_equal_weights_is_named(monkeypatch, count, even):
    answer = {"count": np.array(count), "masses": np.full((4, 3, 2), 0.5, np.float32)}
    monkeypatch.setattr(stage, "answers", lambda page, *questions: ([answer], None))
    at = opened("first")
    assert not at.exception
    said = [c.value for c in at.caption if c.value.startswith("Of so few tokens")]
    assert said == [] if not even else f"would give the first one {even}" in said[0]


@pytest.mark.parametrize("chapter", ["row", "first", "chunks"])
def test_what_somebody_writes_never_gets_the_recorded_answer(chapter, monkeypatch):
    monkeypatch.setattr(LIBRARIES, "there", 0)
    monkeypatch.setattr(LIBRARIES, "begin", lambda: None)
    at = opened(chapter)
    assert at.main.caption[-1].value.startswith("Recorded, not live")
    drawn = len(kinds(at))
    at.main.text_input[0].set_value("Something else stands here now").run()
    assert not at.exception and at.main.caption[-1].value == "Loading the model …"
    assert len(kinds(at)) < drawn
    # And has it again who writes what was asked.
    at.main.text_input[0].set_value(SENTENCE).run()
    assert at.main.caption[-1].value.startswith("Recorded, not live") and len(kinds(at)) == drawn


@pytest.mark.real
def test_what_is_live_takes_the_place_of_what_was_recorded_and_nothing_moves(monkeypatch):
    chapters = {name: play for name, play in PLAYS.items() if play.recorded and play.start is None}
    with monkeypatch.context() as patch:
        patch.setattr(LIBRARIES, "there", 0)
        patch.setattr(LIBRARIES, "begin", lambda: None)
        pages = {name: opened(name) for name in chapters}
    LIBRARIES.load()
    for name, at in pages.items():
        before, said = kinds(at), at.main.caption[-1].value
        assert said.startswith(f"Recorded, not live: SmolLM2-135M, float32, {chapters[name].recorded[0]}, 20")
        at.run()
        wait([stage.ANSWERS.ask(question) for question in chapters[name].recorded])
        at.run()
        assert not at.exception and at.main.caption[-1].value.startswith("Live"), name
        assert kinds(at) == before, name


def test_an_answer_is_of_its_question_alone():
    row = PLAYS["row"].recorded[0]
    assert row.settings == (SENTENCE, "auto") and recorded(row) is not None
    for other in ((f"{SENTENCE}.", "auto"), (SENTENCE, "on")):
        assert recorded(Question(row.ask, other)) is None
    assert recorded(Question(double, (1,))) is None


def test_what_was_recorded_is_read_again(tmp_path, monkeypatch):
    from app.lesson import answers

    model = type("Model", (int,), {"name": "seven"})(7)
    path = record([Question(double, (n,)) for n in (2, 3)], model, "int", "2026-01-02", tmp_path)
    monkeypatch.setattr(answers, "RECORDED", tmp_path)
    found = recorded(Question(double, (3,)))
    assert path.name == "test_answers.npz" and found.answer["double"] == 21
    assert (found.about.model, found.about.dtype, found.about.date) == ("seven", "int", "2026-01-02")
    assert found.about.what == "number=3" and recorded(Question(double, (4,))) is None


@pytest.mark.parametrize("held", [b"", b"PK\x03\x04 and no more"])
def test_a_damaged_recording_is_none(tmp_path, monkeypatch, held):
    from app.lesson import answers

    (tmp_path / "test_answers.npz").write_bytes(held)
    monkeypatch.setattr(answers, "RECORDED", tmp_path)
    assert recorded(Question(double, (1,))) is None


def test_live_answers_come_in_turn_and_are_kept_for_all_who_ask():
    come, asked = threading.Event(), []

    def model() -> int:
        asked.append(1)
        assert come.wait(60)
        return 5

    answers = Answers(model, most=2)
    first, second = Question(double, (1,)), Question(double, (2,))
    waiting = [answers.ask(first), answers.ask(second)]
    assert answers.ask(Question(double, (1,))) is waiting[0] and not any(w.done() for w in waiting)
    come.set()
    assert [int(answers.take(q)["double"]) for q in (first, second)] == [5, 10] and len(asked) == 2
    # The oldest is asked again where there were too many.
    answers.take(Question(double, (3,)))
    assert int(answers.take(first)["double"]) == 5 and len(asked) == 4


def test_what_fails_is_a_sentence_and_asked_again():
    answers, wrong = Answers(lambda: 1), Question(double, (-1,))
    failed = answers.ask(wrong)
    for _ in range(2):
        with pytest.raises(ValueError, match="below 0: ask another"):
            answers.take(wrong)
    assert answers.ask(wrong) is not failed

    def broken() -> int:
        raise TypeError("odd")

    with pytest.raises(ValueError, match=r"failed inside Sinkscope \(TypeError\)"):
        Answers(broken).take(Question(double, (1,)))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_lanes_at_different_places_of_a_text_are_compared_where_all_of_them_have_been(monkeypatch, language):
    tracks = [track.snapshot() for track in stage.story("four").tracks]
    places = (2900, 2500, 1200, 2700)
    for track, read in zip(tracks, places, strict=True):
        track.truncate(read + 1)
    assert tuple(len(track.nll) for track in tracks) == places
    monkeypatch.setattr(LIBRARIES, "there", 0)
    monkeypatch.setattr(LIBRARIES, "begin", lambda: None)
    monkeypatch.setattr(stage, "tracks", lambda *_: (tracks, None))
    at = opened("drop", lang=language)
    assert not at.exception
    wanted = [metrics.perplexity(track.nll.view()[1200 - metrics.ROLL : 1200]) for track in tracks]
    assert [metric.value for metric in at.metric] == [f"{value:.1f}" for value in wanted]
    assert any("1,200" in caption.value for caption in at.caption)
    tracks[3].truncate(metrics.FIRST)
    assert {metric.value for metric in at.run().metric} == {"–"}
