"""What an address says is what was set, for every parameter of every page, and what it cannot ask is one sentence."""

import re
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import texts
from analysis.experiments.measures import MEASURES
from analysis.experiments.presets import PRESETS
from analysis.figures import FIGURES
from analysis.figures.sheet import KINDS, WIDTHS
from analysis.runs.spec import Sampling
from app import address
from app.controls import MODEL, NUMBERS, WEIGHTS, Chosen
from app.lesson.chapters import PLAYS, cost, emergence, enough, first, heads, nothing, recall, row
from app.panels import atlas, figure_layout, figure_source, knockouts, measures, verdict_results, verdict_settings
from app.parameters import AT, CHAT, MEASURED, MOST_TOKENS, READ, RECALL, SAMPLING
from app.projection import NAME
from app.projection import PARAMETERS as SWITCH
from app.view import CHAT_PARAMETERS, PARAMETERS

PANELS = {"maps": atlas.PANEL, "measures": measures.PANEL, "knockouts": knockouts.PANEL}
FIGURE = {**figure_source.PARAMETERS, **figure_layout.PARAMETERS}
VERDICT = {**verdict_settings.PLAN, **verdict_results.PICTURE}
CHAPTERS = {f"chapter {name}": play.parameters for name, play in PLAYS.items() if play.parameters}
ALL = {
    "read": READ,
    "chat": CHAT,
    "model": MODEL,
    "figures": FIGURE,
    "recall": RECALL,
    "verdict": VERDICT,
    **CHAPTERS,
} | {name: panel.parameters for name, panel in PANELS.items()}
EACH = [(page, name) for page, of in ALL.items() for name in of]
HASHES = st.from_regex(r"\Asha256:[0-9a-f]{16}\Z")
TEXTS = st.sampled_from(list(texts.plays())) | HASHES


def places(parts: int, most: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.tuples(*[st.integers(0, most)] * parts)


def settings_of(name: str) -> st.SearchStrategy:
    """A figure with any settings."""
    rules = {f.name: (f.metadata, f.type, f.default) for f in FIGURES[name].settings()}
    values = {
        setting: st.sampled_from(rule["choices"])
        if rule["choices"]
        else st.just(default)
        if rule["pattern"]
        else st.floats(rule["low"], rule["high"])
        if kind is float
        else st.integers(rule["low"], rule["high"])
        for setting, (rule, kind, default) in rules.items()
    }
    return st.builds(FIGURES[name], **values)


LINES = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=address.FITS).filter(
    lambda line: not address.HASH.fullmatch(line)
)
RECIPES = st.fixed_dictionaries(
    {},
    optional={
        "task": st.just("plays"),
        "bos": st.just("no"),
        "layers": st.integers(2, 8),
        "heads": st.sampled_from([2, 4, 8]),
        "rate": st.floats(1e-5, 0.004),
        "decay": st.floats(0.02, 1),
        "steps": st.integers(1, 799),
        "seed": st.integers(1, 2**31 - 1),
    },
)
OF_CHAPTERS = {
    "sentence": LINES,
    "kind": st.sampled_from(row.KINDS),
    "logits": st.lists(st.integers(-(10**7), 10**7).map(lambda n: n / 10**4), min_size=1, max_size=row.MOST).map(tuple),
    "begin": st.sampled_from(first.BEGINNINGS),
    "other": LINES.filter(lambda line: len(line) <= first.LONGEST),
    "take": st.sampled_from(list(nothing.TAKEN)),
    "size": st.sampled_from(enough.SIZES),
    "show": st.sampled_from(cost.SHOWN),
    "cache": st.sampled_from(recall.SIZES),
    "cuts": st.lists(st.integers(1, 23), unique=True).map(sorted),
    "tokens": st.sampled_from(heads.LENGTHS),
    "bits": st.sampled_from(heads.BITS),
    "kinds": st.lists(st.sampled_from(list(emergence.ATTENTIONS)), unique=True).map(
        lambda kinds: [kind for kind in emergence.ATTENTIONS if kind in kinds]
    ),
    "recipe": RECIPES,
    "step": st.integers(0, 100_000),
}
"""The same of the chapters of the lesson."""
VALUES = {
    "text": TEXTS,
    "story": st.sampled_from([name for name, story in PRESETS.items() if story.switches]),
    "figure": st.sampled_from(list(FIGURES)).flatmap(settings_of),
    "folder": st.just(figure_source.ELSEWHERE),
    "venue": st.sampled_from(list(WIDTHS)),
    "points": st.floats(4, 40),
    "dpi": st.integers(50, 1200),
    "file": st.sampled_from(KINDS),
    "grey": st.integers(0, 1),
    "at": st.integers(1, 2**31 - 1),
    "fidelity": st.integers(0, 1),
    "pause": st.integers(1, MOST_TOKENS),
    "script": st.sampled_from(["questions", "memory"]) | HASHES,
    "kv_chunk": st.integers(1, 65536),
    "max_new": st.integers(1, 4096),
    "temperature": st.floats(0, 2),
    "top_k": st.integers(1, 1000),
    "top_p": st.floats(0.05, 1),
    "repetition_penalty": st.floats(1, 2),
    "seed": st.integers(0, 2**31),
    "model": st.just("embedded"),
    "dtype": st.sampled_from(NUMBERS),
    "weights": st.sampled_from(list(WEIGHTS)),
    "kv_heads": st.integers(1, 1024),
    "bos": st.sampled_from(list(texts.BOS)),
    "special": st.sampled_from(list(texts.SPECIAL)),
    "cells": st.sampled_from(atlas.CELLS),
    "pool": st.sampled_from(atlas.POOLS),
    "colour": st.sampled_from(atlas.COLOURS),
    "many": st.sampled_from(atlas.MANY),
    "as": st.sampled_from(list(atlas.COMPARED)),
    "head": places(2, 9999),
    "place": places(3, 65_536),
    "token": places(2, 65_536),
    "other": st.from_regex(r"\A[0-9a-f-]{1,24}\Z"),
    "samples": st.integers(1, 1000),
    "first": st.integers(1, 64),
    "measure": st.sampled_from(list(MEASURES)),
    "threshold": st.floats(0.05, 0.95),
    "kind": st.sampled_from(list(knockouts.KINDS)),
    "layer": st.integers(0, 1024),
    "task": st.sampled_from(["passkey", "needle:haystack=macbeth", "streameval:back=40,digits=3", "arc", "jsonl"]),
    "lengths": st.lists(st.integers(2, 65_536), min_size=1, max_size=24, unique=True).map(tuple),
    "depths": st.lists(st.integers(0, 1000).map(lambda n: n / 10), min_size=1, max_size=24).map(tuple),
    "repeats": st.integers(1, 100),
    "question": st.sampled_from(["aware", "blind"]),
    "measured": st.sampled_from(list(MEASURED)),
    "budgets": st.lists(st.integers(2, 65_536), min_size=1, max_size=12, unique=True).map(tuple),
    "kl": st.integers(0, 1),
    "tasks": st.lists(
        st.sampled_from(["passkey", "needle:haystack=macbeth", "streameval:back=40,digits=3", "arc"]), unique=True
    ).map(tuple),
    "texts": st.lists(st.sampled_from(list(texts.plays())), unique=True),
    "tokens": st.integers(2, 65_536),
    "quality": st.sampled_from(list(verdict_results.QUALITIES)),
    "cost": st.sampled_from(list(verdict_results.COSTS)),
}
"""Every parameter, and what it may be."""


@pytest.mark.parametrize("page", ALL)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_an_address_says_all_that_was_set_and_nothing_is_read_out_of_it_but_that(page, data):
    values = VALUES | OF_CHAPTERS if page in CHAPTERS else VALUES
    now = {name: data.draw(st.none() | values[name], label=name) for name in ALL[page]}
    said = address.said(ALL[page], now, dict.fromkeys(now))
    assert address.values(ALL[page], said) == ({n: v for n, v in now.items() if v is not None}, [])


@settings(max_examples=60, deadline=None)
@given(
    st.fixed_dictionaries({name: VALUES[name] for name in MODEL if name != "kv_heads"}), st.none() | VALUES["kv_heads"]
)
def test_an_address_says_how_a_model_is_loaded(values, kv_heads):
    chosen = Chosen(**values, kv_heads=kv_heads)
    assert Chosen().linked(chosen.link()) == (chosen, [])
    assert Chosen().link() == {}


@pytest.mark.parametrize(("page", "name"), EACH)
@settings(max_examples=25, deadline=None)
@given(
    written=st.text(max_size=60)
    | st.sampled_from(["", "\0", "NaN", "-1", "1e9", "9" * 4000, "²", "../x", "<b>", "1.2.3.4"])
)
def test_what_cannot_be_asked_is_one_short_sentence_and_left_out(page, name, written):
    found, problems = address.values(ALL[page], {name: written})
    assert len(found) + len(problems) == 1
    assert all(0 < len(problem) < 400 and "\n" not in problem for problem in problems)
    assert bool(address.wrong(problems)) == bool(problems)


@pytest.mark.parametrize(("name", "of"), [("grey", FIGURE), ("kl", VERDICT), ("fidelity", READ), (NAME, SWITCH)])
def test_whether_something_is_so_is_read_however_it_is_written(name, of):
    for written, meant in dict.fromkeys(("1", "on", "true", "YES", "True"), 1).items():
        assert address.values(of, {name: written}) == ({name: meant}, [])
    for written, meant in dict.fromkeys(("0", "off", "False", "no"), 0).items():
        assert address.values(of, {name: written}) == ({name: meant}, [])
    for written in ("", "2", "ja", "1 "):
        found, (wrong,) = address.values(of, {name: written})
        assert not found and f"{name} must be one of 1, on, true, yes, 0, off, false, no, not" in wrong


def test_all_settings_of_how_answers_are_sampled_have_their_parameter():
    assert set(SAMPLING) == set(Sampling.__dataclass_fields__)
    assert set(MODEL) == set(Chosen._fields)


def test_a_model_that_is_not_in_use_is_left_out_and_all_else_of_a_link_stays():
    chosen, problems = Chosen().linked({"model": "nobody/nothing", "dtype": "bfloat16", "weights": "int5"})
    assert chosen == Chosen(dtype="bfloat16") and len(problems) == 2
    assert "an address fetches none" in problems[0]
    assert Chosen().linked({"model": "nobody/nothing"}, {"nobody/nothing"})[0].model == "nobody/nothing"


def test_a_text_of_ones_own_travels_as_its_hash():
    text = texts.from_bytes(b"Words of my own.", "mine.txt")
    named = address.named_text(text.name, text.sha256)
    assert named == f"sha256:{text.sha256[:16]}" == address.given_text(named)
    assert address.named_text(named) == named and address.named_text("hamlet", text.sha256) == "hamlet"
    assert address.named_text("mine.txt") == ""
    for hostile in ("sha256:", "sha256:../../etc", "SHA256:0123456789abcdef", "mine.txt", "sha256:0123456789abcdef0"):
        with pytest.raises(ValueError, match="there is no bundled text"):
            address.given_text(hostile)


def test_what_is_too_long_for_an_address_travels_as_its_hash():
    parameter = address.typed("sentence", 1000)
    for line in ("x" * (address.FITS + 1), "sha256:0123456789abcdef"):
        assert (
            parameter.write(line) == address.hashed(line) == address.named_text("", sha256(line.encode()).hexdigest())
        )
    assert parameter.write("x" * address.FITS) == "x" * address.FITS
    for wrong in ("two\nlines", "x" * 1001, "\0"):
        with pytest.raises(ValueError, match="sentence must be one line of at most 1,000 characters"):
            parameter.read(wrong)


@pytest.mark.parametrize(
    ("written", "wrong"),
    [
        ("width=32", "width is not chosen in this chapter"),
        ("vocabulary=64", "vocabulary is given twice"),
        ("heads=3", "cannot be shared by 3 heads"),
        ("steps=many", "steps must be a whole number"),
        ("steps", "has no setting 'steps'"),
        ("attention=relu", "attention is not chosen in this chapter"),
    ],
)
def test_a_recipe_that_cannot_be_chosen_in_the_lesson_is_refused(written, wrong):
    with pytest.raises(ValueError, match=wrong):
        emergence.read_recipe(written)


def test_the_documents_name_every_parameter():
    written = (Path(__file__).parents[1] / "docs" / "pages.md").read_text(encoding="utf-8")
    names = {name for of in ALL.values() for name in of}
    assert not [name for name in sorted(names) if not re.search(rf"`{name}[`=]", written)]
    for page, taken in (("Read", (*READ, *PARAMETERS)), ("Chat", (*AT, *CHAT, *CHAT_PARAMETERS))):
        (row,) = re.findall(rf"^\| {page} \| .*", written, re.MULTILINE)
        assert not [name for name in ("run", "lane", *taken) if not re.search(rf"`{name}[`=]", row)]
    # What is on or off is written as it is read.
    assert all(f"`{said}`" in written for said in ("projected=1", "grey=1", "fidelity=on"))
