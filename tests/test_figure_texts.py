"""Words on figures: every one is on the page, covers no other, is shaped, and never more than a text."""

import json
import re
import sys
import threading
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from xml.etree import ElementTree

import bidi
import matplotlib.pyplot as plt
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import font_manager

from analysis.figures import FIGURES, fonts, parse
from analysis.figures.citations import bibtex, caption
from analysis.figures.export import provenance
from analysis.figures.fonts import MONO, absent, families, visible
from analysis.figures.inputs import FigureInput, open_input
from analysis.figures.line_styles import OWN, line_styles
from analysis.figures.paragraph import directed, lines
from analysis.figures.report import report
from analysis.figures.sheet import WIDTHS, Layout, drawn, missing, rendered, saved
from analysis.policies import POLICIES
from analysis.policies import parse as parse_policy
from analysis.runs.folder import save
from analysis.runs.run import Track
from analysis.runs.summary import label_of, summarize

from . import nasty
from .recordings import made_up
from .verdicts import VERDICT

pytestmark = pytest.mark.whole

VENUES = {width: venue for venue, width in WIDTHS.items()}
"""One for each width."""
TEXT = "{http://www.w3.org/2000/svg}text"


@pytest.mark.parametrize("name", FIGURES)
def test_no_word_is_cut_or_covers_another_at_any_venue_and_svgs_are_xml(name):
    data, figure = nasty.numbers(name), parse(name)
    for venue in VENUES.values():
        with drawn(figure, data, Layout(venue, 8, 72)) as sheet:
            wrong = nasty.misplaced(sheet)
            wanted = venue == "acl" or name == "strip"
            svg = saved(sheet, figure.title, "svg", {"a": nasty.TEXT}) if wanted else b""
        assert not wrong, f"{venue}: {'; '.join(wrong[:5])}"
        if svg:
            check(svg, data)


def check(svg, data):
    """An SVG file is XML, has every word, and says what it is about."""
    root = ElementTree.fromstring(svg)
    described = next(root.iter("{http://purl.org/dc/elements/1.1/}description")).text
    assert json.loads(described) == {"a": nasty.TEXT}
    assert len({node.get("id") for node in root.iter() if node.get("id")}) == sum("id" in n.attrib for n in root.iter())
    if "text" in data:
        words = [node for node in root.iter(TEXT) if node.get("textLength")]
        whole = "".join(node.text for node in words)
        assert len(whole) == len(visible("".join(data["text"])))
        # Spaces stand where they stood, formulas are text, and text is read in its own direction.
        assert whole.startswith("  two spaces, $$ and $x^2$ and")
        assert "\\x0c\\x1b[31mred\\x1b[0m\\u202eevil" in whole.replace("\n", "")
        assert all(node.get("{http://www.w3.org/XML/1998/namespace}space") == "preserve" for node in words)
        rightwards = [n.text for n in words if "direction: rtl" not in n.get("style")]
        assert not any(bidi.get_base_level(text) for text in rightwards) and len(rightwards) < len(words)


def test_every_character_of_unicode_becomes_xml_on_one_line():
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    shown = visible(everything)
    escaped = shown.replace("&", "&amp;").replace("<", "&lt;")
    assert ElementTree.fromstring(f"<a>{escaped}</a>").text == shown
    assert not set(shown) & set("\n\r\t\x0b\x0c\x85\u2028\u2029\u202e")
    assert visible("a\x1b b") == "a\\x1b b" and visible("Ünï 中") == "Ünï 中"


LETTERS = st.text("abc שלום مرحبا 123 45,6.7-(){}[]<>!?/%", max_size=24)


@settings(max_examples=150, deadline=None)
@given(LETTERS)
def test_runs_stand_in_the_order_of_the_bidirectional_algorithm(text):
    base = bidi.get_base_level(text) if text else 0
    seen = ""
    facing = str.maketrans(")]}>", "([{<")
    for run, places, backwards in directed(text, base):
        seen += run[::-1] if backwards else run
        assert sorted(places) == list(range(min(places), max(places) + 1))
    # Spaces at the end of a line have no direction that anyone sees, and the shaper turns brackets round.
    shown = bidi.get_display(text, base_dir="LR"[base])
    assert seen.strip().translate(facing) == shown.strip().translate(facing)


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 10**6), st.floats(60, 400))
def test_tokens_share_the_width_of_their_runs_and_lines_are_no_longer_than_they_may_be(seed, width):
    looks = nasty.cut(nasty.TEXT, seed)
    set_out = lines(looks, width, tuple(families(visible(nasty.TEXT), MONO)), 6)
    assert sum(len(run.text) for line in set_out for run in line) == len(visible("".join(looks)))
    for line in set_out:
        for run in line:
            edges = sorted((left, right) for _, left, right in run.parts)
            assert edges[0][0] == pytest.approx(run.left) and edges[-1][1] == pytest.approx(run.left + run.width)
            for (_, right), (left, _) in pairwise(edges):
                assert right == pytest.approx(left, abs=0.01)
        for one, other in pairwise(line):
            assert one.left + one.width == pytest.approx(other.left)
        assert line[-1].left + line[-1].width <= width + 0.5


def test_letters_of_a_word_are_joined_across_tokens_and_run_to_the_left():
    names = MONO
    ((one,),) = lines(["مر", "حبا"], 200, names, 10)
    assert one.text == "مرحبا" and one.backwards
    (first, *_), (second, *_) = ((part[1:]) for part in sorted(one.parts))
    assert first > second
    # A joined pair takes the room of its one glyph, of which each token has half.
    ((lam_alef,),) = lines(["ل", "ا"], 200, names, 10)
    assert lam_alef.width == pytest.approx(6.02, abs=0.1)
    assert [round(right - left, 2) for _, left, right in lam_alef.parts] == [pytest.approx(3.01, abs=0.1)] * 2


@pytest.fixture
def with_font(tmp_path):
    """A font that has 中 and क and nothing else, as long as the test lasts."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    for step, point in enumerate([(0, 0), (0, 700), (900, 700), (900, 0)]):
        pen.lineTo(point) if step else pen.moveTo(point)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "box"])
    builder.setupCharacterMap({ord("中"): "box", ord("क"): "box"})
    builder.setupGlyf({".notdef": pen.glyph(), "box": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "box": (1000, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Two Letters", "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, usWeightClass=400)
    builder.setupPost()
    builder.save(tmp_path / "two.ttf")
    known = list(font_manager.fontManager.ttflist)

    def forget():
        for cached in vars(fonts).values():
            if hasattr(cached, "cache_clear"):
                cached.cache_clear()

    font_manager.fontManager.addfont(tmp_path / "two.ttf")
    forget()
    yield "Two Letters"
    font_manager.fontManager.ttflist = known
    forget()


def test_fonts_are_chosen_by_what_they_have_and_what_none_has_is_said(with_font):
    assert families("abc שלום العربية") == ["DejaVu Sans"]
    # Private use: no font has these.
    said = absent(["abc", "\U000f1234\U000f1235"])
    assert "No font on this machine has signs (\U000f1234 \U000f1235), so boxes stand in their place" in said
    assert absent(["abc שלום العربية 😀\u200d\ufe0f\n\x1b"]) == ""
    installed = fonts.installed_fonts()
    if not any(ord("中") in codes for name, codes in installed.items() if name != with_font):
        assert with_font in families("中") and with_font in families("a中b", MONO) and absent(["中"]) == ""
        data = {"text": np.array(["中", "क"]), "nll": np.array([1.0, 2.0])}
        assert missing(data) == ""
        with drawn(parse("strip"), data, Layout("acl", 8, 72)) as sheet:
            (run,) = sheet.axes[0].texts
        assert with_font in run.get_fontfamily()


def test_figures_that_are_drawn_at_once_do_not_mix_their_settings():
    asked = [
        (parse("memory"), Layout("icml", 6, 80)),
        (parse("emergence"), Layout("slides", 20, 50)),
        (parse("mean-logits"), Layout("acl", 9.5, 120)),
        (parse("budget"), Layout("neurips", 12, 60)),
    ]
    data = {figure.name: nasty.numbers(figure.name) for figure, _ in asked}
    alone = [rendered(figure, data[figure.name], "svg", layout, {}) for figure, layout in asked]
    made: dict[int, bytes] = {}

    def draw(number: int) -> None:
        figure, layout = asked[number]
        made[number] = rendered(figure, data[figure.name], "svg", layout, {})

    threads = [threading.Thread(target=draw, args=(n,)) for n in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [made[n] == alone[n] for n in range(len(asked))] == [True] * len(asked)


def test_settings_of_whoever_calls_change_no_figure_and_are_left_alone():
    import matplotlib

    figure, data, layout = parse("massive"), nasty.numbers("massive"), Layout("acl", 8, 72)
    before = rendered(figure, data, "svg", layout, {})
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "svg.fonttype": "path", "lines.linewidth": 9}):
        assert rendered(figure, data, "svg", layout, {}) == before
        assert matplotlib.rcParams["font.size"] == 30 and matplotlib.rcParams["axes.grid"]


def test_lines_are_told_apart_without_colour():
    every = [parse_policy(name) for name in POLICIES]
    for policies in (every, every * 3, [parse_policy(p) for p in nasty.POLICIES], [every[0]] * 9):
        looks = [(look["linestyle"], look["marker"]) for look in line_styles(policies)]
        assert len(set(looks)) == len(looks)
    # The best known have dashes of their own, in whichever company.
    dashes = [line_styles([parse_policy(name)])[0]["linestyle"] for name in OWN]
    assert len(set(map(str, dashes))) == len(OWN) and {"dense", "window", "recompute", "streaming"} <= set(OWN)
    for pair in combinations([parse_policy(name) for name in OWN], 2):
        assert [look["linestyle"] for look in line_styles(pair)] == [dashes[list(OWN).index(p.name)] for p in pair]


@pytest.mark.parametrize("name", ["perplexity", "pareto", "key-ranges"])
def test_lines_on_slides_are_thicker_as_their_text_is_larger(name):
    data, thick = nasty.numbers(name), []
    for venue in ("neurips", "slides"):
        with drawn(parse(name), data, Layout(venue)) as sheet:
            ax = sheet.axes[0]
            lines = [*ax.lines, *ax.get_legend().get_lines()]
            thick.append([ax.spines["left"].get_linewidth(), ax.xaxis.label.get_fontsize()])
            thick[-1] += [size for line in lines for size in (line.get_linewidth(), line.get_markersize())]
            thick[-1] += [width for part in ax.collections for width in np.ravel(part.get_linewidth())]
    np.testing.assert_allclose(thick[1], 14 / 8 * np.array(thick[0]))


def test_the_reference_of_relative_perplexity_is_called_by_its_name():
    data = nasty.numbers("perplexity")
    with drawn(parse("perplexity:reference=5"), data, Layout("slides", 8, 72)) as sheet:
        (ax,) = sheet.axes
    assert ax.get_ylabel() == "Perplexity, times that of Recompute 64 / 16"
    # Two lanes of the same policy are told apart.
    names = [text.get_text().replace("\n", " ") for text in ax.get_legend().get_texts()]
    assert "Window 64 (lane 1)" in names and "Window 64 (lane 6)" in names and len(set(names)) == len(names)


@pytest.mark.parametrize("cells", ["recalled", "nll"])
def test_names_above_maps_of_recall_leave_room_for_the_maps(cells):
    policies = np.repeat(["dense", "streaming:sinks=4,window=124", "window:window=128"], 4)
    spots = {"length": np.tile([128, 256], 6), "depth": np.tile([5.0, 5.0, 95.0, 95.0], 3)}
    data = {"policy": policies, **spots, "recalled": np.ones(12), "nll": np.linspace(0, 3.4, 12)}
    for venue in VENUES.values():
        with drawn(parse(f"needle-map:cells={cells}"), data, Layout(venue, 8, 100)) as sheet:
            assert not any("…" in ax.get_ylabel() for ax in sheet.axes), venue


def test_a_figure_that_does_not_fit_a_page_is_refused():
    data = {"text": np.array(["unforgettable "] * 150), "nll": np.ones(150)}
    for layout in (Layout("slides", 40, 72), Layout("acl", 16, 72)):
        with pytest.raises(ValueError, match=r"inches high, and a page of \w+ has [79.5]+: choose fewer points, or"):
            rendered(parse("strip"), data, "png", layout, {})
    with pytest.raises(ValueError, match="leaves no room for the drawing on a page of acl: choose fewer points"):
        rendered(parse("head-map"), nasty.numbers("head-map"), "png", Layout("acl", 40, 72), {})


@pytest.mark.parametrize("name", ["strip", "attention-strip"])
def test_lines_stay_on_the_page_whatever_stands_above_or_below_their_letters(name):
    data = {column: values[:40] for column, values in nasty.numbers(name).items()}
    # Marks pile up above the first letters and hang below the last ones.
    data["text"] = np.array(["A" + "\u0302" * 9, *["many words "] * (len(data["text"]) - 2), "g" + "\u0323" * 9])
    for layout in (Layout("ieee", 12.4, 50), Layout("acl", 11.1, 150), Layout("slides", 10.3, 72)):
        with drawn(parse(name), data, layout) as sheet:
            assert not [wrong for wrong in nasty.misplaced(sheet) if "leaves the page" in wrong]


def test_a_caption_names_what_is_seen_and_every_policy_with_a_paper_has_its_entry():
    spec = {"model": "embedded", "text": "hamlet", "tokens": 4096, "dtype": "float32"}
    said = caption(parse("sink-grid:lane=1"), spec, ["dense", "streaming:sinks=4,window=60"], 4096)
    assert said.startswith("Sink mass of layers and heads. Mean attention that each head gave")
    assert "(lane 1). SmolLM2-135M-Instruct on hamlet (4,096 tokens, float32)." in said
    assert said.endswith("Policies: Dense, Sinks + window 4 + 60. Made with Sinkscope.")
    # Tokens and channels of activations are in tables, and in no picture.
    assert "channel" not in caption(parse("massive"), spec, [], None)
    entries = bibtex(parse("sink-grid"), spec, list(POLICIES))
    keys = re.findall(r"@misc\{(\w+),", entries)
    assert {"xiao2023streamingllm", "gu2024attentionsink", "allal2025smollm2"} <= set(keys)
    assert len(set(keys)) == len(keys)
    numbers = re.findall(r"eprint = \{(\d{4}\.\d{5})\}", entries)
    # What is not at arXiv says in what it was published, and when.
    elsewhere = re.findall(r"year = \{(\d{4})\},\n  howpublished = \{[^}]+, \1\}", entries)
    assert len(numbers) + len(elsewhere) == len(keys) and entries.count("{") == entries.count("}")
    assert elsewhere == ["2024"] and "zhang2024cam" in keys
    # What a policy says of itself is what is cited.
    for policy in POLICIES.values():
        if named := re.search(r"arXiv:(\d{4}\.\d{5})", sys.modules[policy.__module__].__doc__ or ""):
            assert named[1] in numbers
    # A model in a folder and trainings have less to say, and no paper.
    assert bibtex(parse("memory"), {"model": ["softmax"]}, ["dense"]) == ""
    said = caption(parse("memory"), {"model": ["softmax"]}, [], None)
    assert said.endswith("values over the tokens read. Made with Sinkscope.")


@pytest.mark.parametrize(
    ("loading", "said"),
    [
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"weights": "int4"}, "int4 weights, bfloat16 products, float32 elsewhere"),
        ({"kv_heads": 1}, "KV heads averaged to 1, without training, float32"),
        ({}, "float32"),
    ],
)
def test_a_caption_says_what_was_done_to_the_model(loading, said):
    spec = {"model": "embedded", "text": "passkey", "dtype": "float32", "weights": "model", "kv_heads": None} | loading
    named = "SmolLM2-135M-Instruct on passkey"
    assert f" {named} (4,096 tokens, {said}). " in caption(parse("memory"), spec, ["dense"], 4096)
    # Of questions, how many tokens were read is not known.
    asked = f" {named} ({said}). " if loading else f" {named}. "
    assert asked in caption(parse("needle-map"), spec, ["dense"], None)


def test_a_caption_says_how_many_tokens_were_read_and_not_how_many_were_asked_for(tmp_path):
    run = made_up(300, ends={1: 120})
    run.spec = replace(run.spec, tokens=5000)
    save(run, tmp_path / "run", text_sha256="", weights_sha256="")
    source = open_input(tmp_path / "run", "run")
    for name, read in (("memory", 300), ("sink-grid:lane=1", 120)):
        assert f"on a play ({read} tokens, float32)." in provenance(parse(name), source, Path("a"), Layout())["caption"]


def test_a_caption_of_a_verdict_names_what_was_read_whatever_its_first_cell_is_of(tmp_path):
    """Cells are found by their names, and the first may have been asked for a pass key."""
    cell = {"model": "tiny", "text": "passkey", "policies": ["dense"], "dtype": "float32"}
    for texts, said in ((VERDICT.texts, "tiny on Hamlet, Macbeth (202 tokens, float32)."), ([], "tiny.")):
        entries = [msgspec.structs.replace(e, tokens=200 if texts else 0) for e in VERDICT.entries]
        source = FigureInput(tmp_path, msgspec.structs.replace(VERDICT, texts=texts, entries=entries), {"spec": cell})
        about = provenance(parse("pareto"), source, tmp_path / "a.pdf", Layout())
        assert f" {said} Policies: " in about["caption"] and about["text"] == (", ".join(texts) or None)


def test_a_figure_of_one_lane_names_the_policies_of_that_lane(tmp_path):
    save(made_up(300, switches={1: (200, "window:window=64")}), tmp_path / "run", text_sha256="", weights_sha256="")
    source, lanes = open_input(tmp_path / "run", "run"), ("Dense", "Window 128, Window 64")
    for name, said in (("sink-grid", lanes[0]), ("sink-grid:lane=1", lanes[1]), ("strip:lane=1", lanes[1])):
        about = provenance(parse(name), source, tmp_path / "a.pdf", Layout())
        assert re.search("Polic(y|ies): (.*)\\. Made", about["caption"])[2] == said
    assert provenance(parse("sink-depth"), source, tmp_path / "a.pdf", Layout())["caption"].count("Window") == 2
    assert parse("strip:begin=250").resolved(source.data).tokens == 50


def test_a_figure_knows_nothing_of_policies_under_which_nothing_was_read(tmp_path):
    """As where a lane that stands still is switched twice, and one at the end of its text."""
    run = made_up(300, switches={1: (200, "window:window=64")})
    run.events.insert(0, {"what": "switch", "lane": 1, "position": 200, "seconds": 0.0, "policy": "tova:budget=64"})
    run.event("switch", lane=0, position=300, policy="tova:budget=64")
    save(run, tmp_path / "run", text_sha256="", weights_sha256="")
    source = open_input(tmp_path / "run", "run")
    data = parse("perplexity:mode=rolling").numbers(source.data)
    marks = zip(*(data[name].tolist() for name in ("lane", "token", "mark")), strict=True)
    assert [mark for mark in marks if mark[2] not in ("", "full")] == [(1, 200, "window:window=64")]
    assert "TOVA" not in provenance(parse("memory"), source, tmp_path / "a.pdf", Layout())["caption"]


def test_a_lane_that_was_switched_is_called_by_all_policies_that_it_read_with(tmp_path):
    """Its perplexity, its memory and its sink mass are not those of the policy that it began with."""
    switched = made_up(300, switches={1: (200, "window:window=64")})
    save(switched, tmp_path / "grid" / "run", text_sha256="", weights_sha256="")
    name, others = "Window 128 → Window 64", ["Recompute 128 / 16", "Sinks + window 4 + 124"]
    assert [lane.label for lane in summarize(switched)] == ["Dense", name, *others]
    assert f"<td>{name}</td>" in (said := report(tmp_path / "grid" / "run", tmp_path / "a.html", lane=1).read_text())
    assert f"The whole text, as {name} read it" in said
    source = open_input(tmp_path / "grid" / "run", "run").data
    for figure in (parse("memory"), parse("sink-depth")):
        ax = figure.draw(figure.numbers(source), ax=plt.figure().subplots())
        assert name in ax.get_legend_handles_labels()[1]
        plt.close(ax.figure)
    with pytest.raises(ValueError, match="lane 1 of run was switched to another policy"):
        parse("budget").numbers(tmp_path / "grid")
    switched.tracks[1].policies += [(n, "dense") for n in (250, 260, 270)]
    assert label_of(switched, 1) == "Window 128 → … → Dense"


def test_lanes_that_have_read_something_are_drawn_beside_one_that_has_not():
    source = made_up(300)
    whole = parse("sink-depth").numbers(source)
    source.tracks[0] = Track()
    for figure in (parse("memory"), parse("sink-depth")):
        ax = figure.draw(figure.numbers(source), ax=plt.figure().subplots())
        assert ax.get_legend_handles_labels()[1] == [label_of(source, lane) for lane in (1, 2, 3)]
        plt.close(ax.figure)
    left = parse("sink-depth").numbers(source)
    assert all(np.array_equal(left[name], of[whole["lane"] > 0]) for name, of in whole.items())
    with pytest.raises(ValueError, match=r"^lane 0 has read nothing yet"):
        parse("sink-grid").numbers(source)
    source.tracks = [Track() for _ in source.tracks]
    with pytest.raises(ValueError, match=r"^the run has read nothing yet"):
        parse("sink-depth").numbers(source)
