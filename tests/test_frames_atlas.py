"""What the atlas is sent decodes to the maps that were asked for."""

import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from analysis.figures.inputs import FigureInput
from analysis.maps.region import Region
from analysis.policies import Dense, Streaming, Window, parse
from analysis.runs.codec import levels_of
from app.frames.atlas import MANY, AtlasSender, AtlasView, called, levels, span

from .families import words
from .recordings import decoded
from .test_atlas import captured


class Opened:
    """A captured stretch as the page has it."""

    def __init__(self, atlas, name):
        self.atlas = self.opened = atlas
        self.id, self.spec, self.begins = name, atlas.stretch.spec, ""
        self.pieces = [f"w{i}" for i in range(atlas.stretch.tokens + 1)]


@pytest.fixture
def pair(tiny_llama, tmp_path):
    return [
        Opened(captured(tiny_llama, words(90), policy, tmp_path / name)[0], name)
        for policy, name in ((Dense(), "a"), (Streaming(4, 12), "b"))
    ]


def test_a_frame_has_the_region_that_is_looked_at(pair):
    region = Region((16, 48), (8, 40))
    head, arrays = decoded(AtlasSender().frame(pair[0], None, AtlasView(1, 2, region=region)))
    np.testing.assert_array_equal(arrays["map"], levels_of(pair[0].atlas.draw(1, 2, region)))
    assert head["region"] == {"rows": [16, 48], "columns": [8, 40], "scale": 1} and head["texts"]["20"] == "w20"
    assert head["total"] == 89 and head["headings"] == ["Dense"]
    coarse, _ = decoded(AtlasSender().frame(pair[0], None, AtlasView(1, 2, region=Region((0, 80), (0, 80), 4))))
    assert coarse["texts"] == {}


def test_a_stretch_that_was_switched_is_called_by_all_policies_that_it_was_read_under(tiny_llama, tmp_path):
    """On the page and under a figure: half of its rows are not those of the first policy."""
    atlas, _ = captured(tiny_llama, words(90), Window(12), tmp_path / "s", switches=[(40, Streaming(4, 12))])
    run, name = Opened(atlas, "s"), "Window 12 → Sinks + window 4 + 12"
    head, _ = decoded(AtlasSender().frame(run, None, AtlasView(1, 2)))
    assert head["headings"] == [head["lanes"][0]["label"]] == [name]
    assert called([run]) == [f"{name}, words, 89 tokens"]
    of = FigureInput(tmp_path / "s", atlas, atlas.stretch.about)
    assert [parse(policy) for policy in of.policies()] == [Window(12), Streaming(4, 12)]


def test_two_stretches_stand_beside_each_other_or_are_taken_from_each_other(pair):
    region = Region((16, 48), (8, 40))
    head, arrays = decoded(AtlasSender().frame(*pair, AtlasView(1, 2, region=region)))
    np.testing.assert_array_equal(arrays["other"], levels_of(pair[1].atlas.draw(1, 2, region)))
    assert head["headings"][1].startswith("Sinks + window 4 + 12")
    head, arrays = decoded(AtlasSender().frame(*pair, AtlasView(1, 2, kind="difference", region=region)))
    wanted = pair[0].atlas.draw(1, 2, region) - pair[1].atlas.draw(1, 2, region)
    got = head["low"] + (head["high"] - head["low"]) * (arrays["map"].astype(float) - 1) / 65534
    met = arrays["map"] > 0
    np.testing.assert_array_equal(met, ~np.isnan(wanted))
    np.testing.assert_allclose(got[met], wanted[met], atol=1e-3)
    assert head["low"] == -head["high"]


def test_first_tokens_stand_beside_the_map(pair):
    region = Region((0, 80), (32, 80), 8)
    head, arrays = decoded(AtlasSender().frame(*pair, AtlasView(1, 2, region=region)))
    for run, name in zip(pair, ("first", "other_first"), strict=True):
        np.testing.assert_array_equal(arrays[name], levels_of(run.atlas.first(1, 2, (0, 80), 8)))
    assert head["firsts"] == ["w0", "w1", "w2", "w3"] and arrays["first"].shape == (10, 4)


@pytest.mark.parametrize("kind", ["difference", "logits"])
def test_no_number_lies_beyond_the_colours(kind, pair):
    """Neither in the whole map nor where one looks closer, nor in small maps; a difference has zero in the middle."""
    sender = AtlasSender()
    for region in (None, Region((60, 70), (60, 70)), Region((0, 32), (0, 32))):
        look = AtlasView(1, 2, kind=kind, many="heads", region=region)
        head, arrays = decoded(sender.frame(*pair, look))
        mine, other = (
            run.atlas.draw(1, 2, region or Region.square(0, 89, 512), kind="weights" if kind == "difference" else kind)
            for run in pair
        )
        drawn = mine - other if kind == "difference" else mine
        assert head["low"] <= np.nanmin(drawn) + 1e-6 and head["high"] >= np.nanmax(drawn) - 1e-6
        if kind == "difference":
            assert head["low"] == -head["high"] and arrays["map"][-1, -1] == pytest.approx(
                32768 + 32767 * drawn[-1, -1] / head["high"], abs=1.5
            )
            small = pair[0].atlas.draw(1, 3, Region.square(0, 89, 104)) - pair[1].atlas.draw(
                1, 3, Region.square(0, 89, 104)
            )
            np.testing.assert_array_equal(arrays["many3"], levels(small, kind, *span(small, kind)))
            assert span(small, kind)[0] == -span(small, kind)[1]


def test_stretches_are_told_apart(pair, tiny_llama, tmp_path):
    longer = Opened(captured(tiny_llama, words(), Dense(), tmp_path / "c")[0], "c")
    assert called([pair[0], longer]) == [f"Dense, words, {n} tokens" for n in (89, longer.atlas.stretch.tokens)]
    assert called([pair[0], pair[0]]) == ["Dense, words, 89 tokens", "Dense, words, 89 tokens (2)"]
    again = Opened(pair[0].atlas, "d")
    again.begins = "with BOS"
    assert called([pair[0], again])[1] == "Dense, words, 89 tokens, with BOS"


def test_a_stretch_opens_on_a_head_whose_sink_shows():
    stretch, look = SimpleNamespace(layers=2, heads=3, mass=np.array([[0.1, 0.99, 0.3], [0.7, 0.0, 1.0]])), AtlasView()
    look.open(stretch)
    assert (look.layer, look.head) == (1, 0)
    # What one looks at stays where its sink shows too, and else gives way.
    stretch.mass[1, 0], stretch.mass[0, 2] = 0.9, 0.75
    look.open(stretch)
    assert (look.layer, look.head) == (1, 0)
    stretch.mass[1, 0] = 0.4
    look.open(stretch)
    assert (look.layer, look.head) == (0, 2)
    look.layer = 1
    # A head that a person chose stays, where the next stretch has it.
    look.head, look.picked, stretch.tokens = 2, True, 40
    assert look.open(stretch) == [] and (look.layer, look.head) == (1, 2)
    stretch.heads, stretch.mass, look.cross = 2, stretch.mass[:, :2], (40, 3)
    assert look.open(stretch) == [
        "the stretch has 40 tokens, and not 40",
        "its heads are 0.0 to 1.1, and not 1.2",
    ]
    assert (look.layer, look.head, look.cross) == (0, 1, None)


@pytest.mark.parametrize("many", MANY[1:])
def test_small_maps_come_in_the_end(pair, many):
    sender, look = AtlasSender(), AtlasView(1, 2, many=many)
    for _ in range(50):
        head, arrays = decoded(sender.frame(pair[0], None, look))
        if sender.complete:
            break
    which = [(1, h) for h in range(4)] if many == "heads" else [(layer, 2) for layer in range(3)]
    assert [(m["layer"], m["head"]) for m in head["many"]] == which and all(m["ready"] for m in head["many"])
    for i, at in enumerate(which):
        np.testing.assert_array_equal(arrays[f"many{i}"], levels_of(pair[0].atlas.draw(*at, Region.square(0, 89, 104))))


def test_maps_that_are_kept_keep_no_model_in_memory(pair):
    sender = AtlasSender()
    for kind in ("weights", "logits", "difference"):
        sender.frame(*pair, AtlasView(1, 2, kind=kind, many="heads"))
    # What the page of a capture that was freed no longer holds is freed too, though a tab still has its maps.
    kept = weakref.ref(pair[0].atlas)
    pair.clear()
    gc.collect()
    assert kept() is None


def test_the_row_and_the_column_of_a_token(pair):
    head, arrays = decoded(AtlasSender().frame(pair[0], None, AtlasView(1, 2, cross=(60, 7))))
    np.testing.assert_allclose(arrays["from"], pair[0].atlas.row(1, 2, 60))
    np.testing.assert_allclose(arrays["to"], pair[0].atlas.draw(1, 2, Region((0, 89), (7, 8)))[:, 0])
    assert head["cross"]["row_text"] == "'w60' (60)" and not head["cross"]["of"]
    for kind in ("weights", "difference"):
        both, of_first = decoded(AtlasSender().frame(*pair, AtlasView(1, 2, kind=kind, cross=(60, 7))))
        # Beside two stretches it says of which one they are.
        assert both["cross"]["of"] == called(pair)[0]
        np.testing.assert_array_equal(of_first["from"], arrays["from"])


def test_bars_of_several_tokens_say_of_how_many(pair, monkeypatch):
    alone, each = decoded(AtlasSender().frame(pair[0], None, AtlasView(1, 2, cross=(60, 7))))
    monkeypatch.setattr("app.frames.atlas.BARS", 20)
    head, arrays = decoded(AtlasSender().frame(pair[0], None, AtlasView(1, 2, cross=(60, 7))))
    assert (alone["cross"]["tokens"], head["cross"]["tokens"]) == (1, 5)
    for name in ("from", "to"):
        largest = [np.fmax.reduce(each[name][begin : begin + 5]) for begin in range(0, 89, 5)]
        np.testing.assert_allclose(arrays[name], largest)


def test_logits_lie_between_two_numbers():
    drawn = np.array([[-3.0, np.nan], [5.0, 1.0]], np.float32)
    assert levels(drawn, "logits", -3, 5).tolist() == [[1, 0], [65535, 32768]]
