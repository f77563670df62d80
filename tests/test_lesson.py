"""The lesson's texts have one structure in both languages, and what is drawn of them is what was computed."""

import inspect
import re
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest

from analysis import metrics, texts
from analysis.cli.gallery import TITLES
from analysis.errors import error_message, sentence
from analysis.experiments.measures import samples_of
from analysis.experiments.presets import FOUR
from analysis.lab.measurement import Measurement
from analysis.lab.recipe import Recipe
from analysis.lab.training import Training
from analysis.maps.attention_row import split
from analysis.maps.passage import Passage
from analysis.models import fetch
from analysis.models.language_model import LanguageModel
from analysis.runs.run import Track
from analysis.texts import sources
from app import address
from app.jobs.base import Job
from app.jobs.reading import ReadingJob
from app.jobs.registry import Full, Holder
from app.jobs.training import TrainingJob
from app.lesson import FOLDER, LANGUAGES, lesson, translated
from app.lesson.answers import recorded
from app.lesson.chapters import PLAYS, chunks, emergence, stage
from app.lesson.chapters.enough import SIZE, policies
from app.lesson.chapters.first import ranges
from app.lesson.chapters.heads import known
from app.lesson.chapters.reading import curves, rolling
from app.lesson.chapters.row import weigh
from app.lesson.chapters.sentence import _words
from app.pages import PAGES

from .tokenizers import byte_level

PLACEHOLDER = re.compile(r"\{[a-z]+\}")
DAY = re.compile(r"20\d\d-\d\d-\d\d")
JOBS = sorted(path.stem for path in (FOLDER.parent.parent / "app" / "jobs").glob("[a-z]*.py"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_chapters_are_those_that_are_played(language):
    chapters = lesson(language)
    assert list(chapters) == ["page", *PLAYS]
    assert [c.number for c in chapters.values()] == list(range(11))
    for chapter in list(chapters.values())[1:]:
        assert chapter.text and chapter.question and chapter.answer and chapter.words


def test_both_languages_say_the_same_words():
    english, chinese = (lesson(language) for language in LANGUAGES)
    for name, chapter in english.items():
        other = chinese[name]
        assert list(chapter.words) == list(other.words), name
        for word, said in chapter.words.items():
            assert sorted(PLACEHOLDER.findall(said)) == sorted(PLACEHOLDER.findall(other.words[word])), (name, word)
        assert chapter.text.count("\n\n") == other.text.count("\n\n"), name
        if name != "page":
            assert re.search("[\u4e00-\u9fff]", other.title + other.text)
        # The same papers and numbers of chapters.
        assert re.findall(r"20\d\d", chapter.text + chapter.answer) == re.findall(r"20\d\d", other.text + other.answer)


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_word_names_a_command_that_is_another_where_this_is_installed(language):
    said = [word for chapter in lesson(language).values() for word in chapter.words.values()]
    assert not [word for word in said if re.search(r"\bmake (app|setup|gemma)\b|python -m", word)]


def test_every_word_is_said():
    """Nothing stands in the files that no screen shows."""
    root = FOLDER.parent.parent
    source = "".join(
        p.read_text() for p in [*(root / "app").rglob("*.py"), root / "analysis" / "lab" / "transformer.py"]
    )
    for name, chapter in lesson("en").items():
        for word in chapter.words:
            stem = word.rsplit("-", 1)[0]
            assert re.search(rf"[\"']{re.escape(word)}[\"']", source) or f"{stem}-{{" in source, (name, word)


def test_weights_are_those_of_softmax_and_its_neighbour():
    logits = np.array([2.0, -1.0, 0.5])
    weights, nowhere = weigh(logits, "softmax")
    np.testing.assert_allclose(weights, np.exp(logits) / np.exp(logits).sum())
    assert nowhere == 0
    # What is taken from every logit cancels.
    for lower in (50, 740, 990):
        np.testing.assert_allclose(weigh(logits - lower, "softmax")[0], weights)
    weights, nowhere = weigh(logits, "off-by-one")
    np.testing.assert_allclose(weights, np.exp(logits) / (1 + np.exp(logits).sum()))
    assert weights.sum() + nowhere == pytest.approx(1)
    assert weigh(logits - 50, "off-by-one")[1] == pytest.approx(1)


def test_head_that_the_chunks_begin_with_is_one_of_the_model(tiny_llama):
    from app.lesson.chapters.chunks import HALF
    from app.lesson.chapters.sentence import head_near

    passage = Passage(LanguageModel("tiny", tiny_llama, None, []), np.arange(9))
    given = passage.sink_weights[..., -1]
    layer, head = head_near(given, HALF)
    assert given.shape == (3, 4) and abs(given[layer, head] - HALF) == np.abs(given - HALF).min()
    assert len(passage.row(layer, head).logits) == 9


def test_lanes_are_those_of_the_gallery_until_all_of_them_have_read_something(monkeypatch):
    def run(*read: int, events=(), done: bool = True, halted=()) -> SimpleNamespace:
        tracks = [SimpleNamespace(nll=range(n)) for n in read]
        happened = SimpleNamespace(events=[{"what": what} for what in ("running", *events)])
        return SimpleNamespace(
            snapshot=SimpleNamespace(tracks=tracks), requests_done=done, run=happened, halted=dict.fromkeys(halted)
        )

    monkeypatch.setattr(stage, "bos", lambda: "auto")
    for story, asked in (("four", FOUR), ("enough", policies(SIZE))):
        for begun in (None, run(), run(9, 0)):
            tracks, about = stage.tracks(begun, story, asked)
            assert tracks is stage.story(story).tracks and len(tracks) == len(asked)
            assert (about.model, about.dtype) == ("SmolLM2-135M", "float32") and DAY.fullmatch(about.date)
            assert about.what == f"text=hamlet, tokens={len(tracks[0].nll) + 1}, chunk=128, bos=auto"
        assert stage.tracks(going := run(9, 1), story, asked) == (going.snapshot.tracks, None)
        # A lane that can read nothing does not hide what the others read.
        assert stage.tracks(going := run(9, 0, halted=[1]), story, asked) == (going.snapshot.tracks, None)
        # Of other lanes, or of a text that begins in another way, nothing is recorded.
        assert stage.tracks(None, story, asked[1:]) == ((), None)
        # Nor of a lane that somebody has switched, or is about to.
        for switched in (run(9, 0, events=["switch"]), run(0, 0, done=False)):
            assert stage.tracks(switched, story, asked) == (switched.snapshot.tracks, None)
    monkeypatch.setattr(stage, "bos", lambda: "on")
    assert stage.tracks(None, "four", FOUR) == ((), None)


def test_every_chapter_begins_with_what_was_recorded():
    assert {name for name, play in PLAYS.items() if not play.recorded} == {"drop", "enough", "emergence"} <= set(TITLES)
    said = (Path(__file__).parents[1] / "docs" / "pages.md").read_text(encoding="utf-8")
    assert "Every chapter begins with a recorded result" in said


def test_trainings_of_the_gallery_are_what_the_last_chapter_begins_with():
    from app.lesson.chapters.emergence import START, recorded

    assert tuple(recorded()) == tuple(Recipe(attention=kind) for kind in START)
    for recipe, (moments, about) in recorded().items():
        assert about.what == f"task={recipe.task}, steps={recipe.steps}, seed={recipe.seed}"
        assert (about.model, about.dtype) == ("layers=1, heads=1, width=64", "float32") and DAY.fullmatch(about.date)
        assert moments[0].step == 0 and moments[-1].step == recipe.steps
        assert all(m.map.shape == (recipe.length, recipe.length) for m in moments)
        np.testing.assert_allclose(moments[-1].map[:, 0].mean(), moments[-1].sink, atol=0.2)


@pytest.mark.parametrize("most", [1.0, 49.5])
def test_weights_that_sum_to_anything_stay_inside_their_axes(most):
    from app.lesson.chapters.emergence import grown

    weight = np.array([[most]], np.float32)
    moments = [Measurement(10, 1.0, 1.0, weight, weight, (0, 0), np.zeros((2, 2), np.float16))]
    shown = grown([Recipe(attention="relu")], [moments], ["ReLU"], None, lesson("en")["emergence"])
    assert shown.layout.yaxis.range[1] == pytest.approx(1.02 * most)


def test_trainings_of_one_attention_are_told_apart_and_none_leaves_its_axis(monkeypatch):
    drawn = []
    monkeypatch.setattr(emergence.chart, "mount", lambda figure, **of: drawn.append((figure, of["alt"])))
    weight = np.array([[0.5]], np.float32)
    moments = [Measurement(10, 1.0, 1.0, weight, weight, (0, 0), np.zeros((2, 2), np.float16))]
    recipes = [Recipe(), Recipe(seed=1, steps=1600), Recipe(attention="relu")]
    emergence.draw_curves(recipes, [moments] * 3, None, lesson("en")["emergence"])
    curves, heard = drawn[0]
    lines = [(line.name, line.mode, line.marker.symbol) for line in curves.data if line.showlegend]
    names = ["Softmax, steps 800, seed 0", "Softmax, steps 1600, seed 1", "ReLU"]
    assert [name for name, *_ in lines] == names and len({*lines}) == 3 and lines[0][1:] != lines[1][1:]
    assert all(name in heard for name in names) and tuple(curves.layout.xaxis.range) == (0, 1600)


def test_the_scale_of_a_map_says_that_weights_that_sum_to_anything_go_on_beyond_its_end():
    from app.lesson.chapters.emergence import maps, recorded

    for recipe, (moments, _) in recorded().items():
        drawn = maps(moments[-1:], [recipe.attention], lesson("en")["emergence"])
        assert drawn.data[0].colorbar.ticktext[-1] == ("≥ 1" if recipe.attention == "relu" else "1")


def test_the_chapter_of_costs_asks_of_dense_alone_why_the_whole_grows_less_than_attention():
    """With caches of constant size both grow with the text."""
    for language in LANGUAGES:
        assert lesson(language)["page"].say("policy-dense").casefold() in lesson(language)["cost"].question.casefold()


@pytest.mark.parametrize("language", LANGUAGES)
def test_relative_curves_say_over_how_many_tokens(language):
    assert f" {metrics.ROLL} " in lesson(language)["enough"].text


@pytest.mark.parametrize(("language", "idle"), [("en", "there is nothing to copy"), ("zh", "没有东西可复制")])
def test_the_weight_above_a_map_is_said_to_be_of_what_copies_nothing(language, idle):
    """The map that stands below it is of one sequence, and has rows that copy too."""
    (before, _), *_ = emergence.recorded().values()
    assert abs(before[-1].sink - before[-1].map[1:, 0].mean(dtype=float)) > 0.1
    assert idle in lesson(language)["emergence"].text


@pytest.mark.parametrize(("language", "may"), [("en", "it may have most of"), ("zh", "可能占了整行的大部分权重")])
def test_the_piece_with_the_sink_is_not_said_to_have_more_than_it_has(language, may):
    kept = recorded(PLAYS["chunks"].recorded[0])
    rows = [chunks.row_of(kept.answer, layer, head) for layer, head in np.ndindex(kept.answer["sinks"].shape)]
    shares = [np.exp(split(row, [3])[0].lse - split(row, [])[0].lse) for row in rows]
    assert np.mean(np.array(shares) > 0.9) < 0.2 < np.mean(np.array(shares) > 0.5)
    assert may in lesson(language)["chunks"].answer


@pytest.mark.parametrize(("language", "better"), [("en", "better than the window alone"), ("zh", "比单用窗口好得多")])
def test_how_well_sinks_read_is_said_against_the_window(language, better):
    """Beside dense they lose a quarter of the perplexity here, and two thirds in the smallest cache."""
    dense, window, streaming = recorded(PLAYS["recall"].recorded[0]).answer["perplexity"]
    assert window > 5 * streaming and streaming > 1.2 * dense
    assert better in lesson(language)["recall"].question


@pytest.mark.parametrize("language", LANGUAGES)
def test_pages_have_the_names_of_the_navigation_in_the_lesson(language):
    emphasised = [found for c in lesson(language).values() for found in re.findall(r"\*([^*\n]+)\*", c.answer)]
    assert PAGES["recall"].title(language) in emphasised


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_says_on_which_side_its_play_stands(language):
    """It stands beside a text where there is room, and below it on a phone."""
    sides = re.compile(r"右边|左边|上面的数字|下面的图|at the right|at the left")
    assert not [c.name for c in lesson(language).values() if sides.search(c.text)]


def test_stretches_of_layers_are_told_shortly():
    assert ranges([2, 3, 4, 8]) == "2–4, 8" and ranges([5]) == "5" and ranges([]) == ""


def test_well_known_models_have_whole_sizes():
    """Bytes of a token in 16 bits, of those whose papers or cards say them."""
    found = {m["model"]: 2 * 2 * int(m["layers"]) * int(m["kv_heads"]) * int(m["size"]) for m in known()}
    assert found["Llama 2 7B"] == 524_288 and found["Llama 3 8B"] == found["Mistral 7B"] == 131_072
    assert all(int(m["heads"]) % int(m["kv_heads"]) == 0 and m["source"] for m in known())


def problems(monkeypatch):
    """What can go wrong in a lesson, as the library says it."""

    def raised(make):
        with pytest.raises(ValueError, match=r"\w") as e:
            make()
        return e.value

    def full(*_):
        raise OSError(28, "No space left on device")

    held = [Holder("a", "reading of hamlet", 3, False), Holder("b", "training of relu, softmax", 300, True)]
    yield Full(held), "阅读 hamlet（有人在看）、训练 relu、softmax（已有 5 min 没人看）"
    yield Full(held[:1]), "请停止其中一个"
    yield raised(lambda: Recipe(heads=3)), "3 个头无法平分 64 的宽度"
    yield raised(lambda: Recipe(task="plays")), "剧本至少需要"
    yield raised(lambda: TrainingJob([Recipe()] * 4, None)), "而不是 4 种"
    training = Training(Recipe(width=16, length=16))
    training.model.head.weight.data.fill_(np.nan)
    yield raised(training.measure), "训练在第 0 步发散：请用更小的学习率"
    yield raised(lambda: samples_of(np.arange(5), 1, 9)), "文本只有 5 个词元，而每个样本要 9 个"
    yield raised(lambda: samples_of(np.arange(9), 6, 5)), "文本只有 5 个不同的 5 词元样本，而需要 6 个"
    with monkeypatch.context() as patch:
        patch.setattr(fetch, "kept", full)
        yield raised(lambda: fetch.embedded(print)), "请让那里能写入 600 MB"
    monkeypatch.setattr(sources, "plays", dict)
    yield raised(lambda: sources.read("hamlet")), "内置文本没有安装，请运行 make setup。"
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(fetch, "SETUP", "sinkscope setup")
    yield raised(lambda: fetch.embedded(print)), "内置模型没有安装：请运行 sinkscope setup。"
    yield error_message(MemoryError(), "job x"), "内存不足"
    yield (
        error_message(TypeError("odd"), "job x"),
        "Sinkscope 内部出错（TypeError）：请重新开始；若再次出现，请把日志中 job x",
    )
    yield error_message(OSError(28, "No space left on device", "/tmp/x"), "job x"), "/tmp/x：磁盘已满"


def test_what_goes_wrong_is_said_in_chinese_too(monkeypatch):
    for e, wanted in problems(monkeypatch):
        said = sentence(e)
        assert translated(said, "en") == said
        assert wanted in translated(said, "zh") and "原文" not in translated(said, "zh"), said
    assert translated("A {strange} thing: do this.", "zh") == "出错了，原文如下：A {strange} thing: do this."
    assert translated("", "zh") == ""


def test_whatever_holds_a_slot_is_named_in_chinese():
    there = [thing for name in JOBS for thing in vars(import_module(f"app.jobs.{name}")).values()]
    nouns = {kind.noun for kind in there if inspect.isclass(kind) and issubclass(kind, Job)} - {Job.noun}
    assert nouns >= {"reading", "recall", "verdict", "conversation"}
    for noun in nouns:
        held = Holder("a", f"{noun} {'with' if noun == 'conversation' else 'of'} hamlet", 3, False)
        assert noun not in translated(str(held), "zh")


LINKS = {
    "row": ({"head": "20"}, {"logits": "1,nan"}, {"logits": "1," * 11}, {"sentence": "a\nb"}, {"kind": "x"}),
    "chunks": ({"cuts": "0"}, {"head": "a", "cuts": "99"}),
    "emergence": (
        *({"recipe": recipe} for recipe in ("steps=0", "heads=9", "rate=x", "seed=0.5", "heads=3", "bos=2")),
        *({"recipe": recipe} for recipe in ("steps=1,steps=2", "length=64", "width=32", "odd=1")),
        {"kinds": "softmax,x", "step": "-1"},
    ),
}


@pytest.mark.parametrize(("name", "asked"), [(name, asked) for name, links in LINKS.items() for asked in links])
def test_what_a_link_has_wrong_is_said_in_chinese_too(name, asked):
    found, problems = address.values(PLAYS[name].parameters, asked)
    assert not found and len(problems) == len(asked)
    said = translated(address.wrong(problems), "zh")
    assert said.startswith("本页网址中有无法照办的要求：") and "。。" not in said, said
    assert said.count("；") == len(problems) - 1 and not re.search(r"\b(must|are|is|which|write|such)\b", said), said


def test_tokens_that_are_part_of_a_character_are_not_taken_for_spaces():
    tokenizer = byte_level()
    ids = tokenizer("a  é你", add_special_tokens=False)["input_ids"]
    shown = [word.strip("\u200b") for word in _words(SimpleNamespace(tokenizer=tokenizer), ids)]
    assert shown == ["a", "␣", "␣", "…", "é", "…", "…", "你"]


@pytest.mark.parametrize(("character", "sign"), [("\t", "⇥"), ("\n", "⏎"), ("\u3000", "U+3000"), ("\u200b", "U+200B")])
def test_no_token_has_a_label_that_nobody_sees(character, sign):
    tokenizer = byte_level()
    ids = tokenizer(f"a{character}b", add_special_tokens=False)["input_ids"]
    assert sign in _words(SimpleNamespace(tokenizer=tokenizer), ids)


@pytest.mark.parametrize("name", ["drop", "enough"])
def test_what_a_visit_reads_does_not_stay_among_the_runs(monkeypatch, name):
    from app.lesson.chapters import enough

    begun = []
    monkeypatch.setattr(stage, "bos", lambda: "auto")
    monkeypatch.setattr(stage, "begin", lambda prepare: begun.append(prepare()))
    monkeypatch.setattr(enough, "choice", lambda key, usual: usual)
    monkeypatch.setattr(texts, "read", lambda name: texts.Text(name, name, "To be", None, ""))
    PLAYS[name].start()
    assert begun[0].func is ReadingJob and begun[0].keywords == {"keep": False}


def track_of(nll) -> Track:
    """A lane that has read so far, as a page sees it."""
    of = Track()
    for column, values in ((of.nll, nll), (of.sums, np.cumsum(nll)), (of.cache_tokens, np.arange(len(nll)) + 1)):
        column.append(np.array(values))
    return of.snapshot()


@pytest.mark.parametrize(("name", "begun"), [("drop", FOUR), ("enough", policies(SIZE))])
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_lane_that_stands_still_is_named_and_stops_no_other(monkeypatch, name, begun, language):
    read = [40, *range(600, 600 + 30 * (len(begun) - 1), 30)]
    tracks = [track_of([1.0 + lane] * n) for lane, n in enumerate(read)]
    run = SimpleNamespace(
        id="job", spec=SimpleNamespace(policies=begun), snapshot=SimpleNamespace(tracks=tracks), live=True,
        run=SimpleNamespace(tracks=tracks, events=[]), halted={0: MemoryError()},
    )  # fmt: skip
    said, shown, caught = [], [], MagicMock()
    monkeypatch.setattr(stage, "st", SimpleNamespace(session_state=SimpleNamespace(lesson={"language": language})))
    for what, instead in {"playing": run, "watch": run, "transport": None, "source": None, "one_of": SIZE}.items():
        monkeypatch.setattr(stage, what, lambda *_, of=instead: of)
    monkeypatch.setattr(stage, "problem", said.append)
    module = import_module(f"app.lesson.chapters.{name}")
    monkeypatch.setattr(module, "st", caught)
    monkeypatch.setattr(module, "numbers", shown.extend)
    monkeypatch.setattr(module.chart, "mount", lambda *_, **__: None)
    module.draw(lesson(language)[name], lesson(language)["page"])
    (named,) = said
    assert shown[0][0] in named and " 40 " in named and ("Out of memory" if language == "en" else "内存不足") in named
    if name == "drop":
        # Of the others as far as they have read, of the first one none there.
        assert [number for _, number, _ in shown] == ["–", f"{np.exp(2):.1f}", f"{np.exp(3):.1f}", f"{np.exp(4):.1f}"]
        assert [re.findall(r"\d+", kept) for *_, kept in shown] == [["40"], *[["600"]] * 3]
        assert " 600" in caught.caption.call_args.args[0]


def test_a_curve_that_has_just_begun_is_drawn():
    for read, mode in ((metrics.FIRST - 1, "lines"), (metrics.FIRST, "markers"), (metrics.FIRST + 1, "lines")):
        line = rolling([track_of([1.0] * read)], 0)
        figure = curves([("Dense", *line)], [("#000000", "solid")], "", "", 60)
        assert len(figure.data[0].x) == read - metrics.FIRST + 1 and figure.data[0].mode == mode
