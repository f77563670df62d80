"""What the atlas is sent decodes to the maps that were asked for."""

import numpy as np
import pytest

from analysis.atlas import Region
from analysis.policies import Dense, Streaming
from app.atlasframes import MANY, AtlasSender, Look, levels, whole
from app.frames import coded

from .families import words
from .test_atlas import captured
from .test_frames import decoded


class Opened:
    """A captured stretch as the page has it."""

    def __init__(self, atlas, name):
        self.atlas, self.id, self.spec = atlas, name, atlas.stretch.spec
        self.pieces = [f"w{i}" for i in range(atlas.stretch.tokens + 1)]


@pytest.fixture
def pair(tiny_llama, tmp_path):
    return [
        Opened(captured(tiny_llama, words(90), policy, tmp_path / name)[0], name)
        for policy, name in ((Dense(), "a"), (Streaming(4, 12), "b"))
    ]


def test_a_frame_has_the_region_that_is_looked_at(pair):
    region = Region((16, 48), (8, 40))
    head, arrays = decoded(AtlasSender().frame(pair[0], None, Look(1, 2, region=region)))
    np.testing.assert_array_equal(arrays["map"], coded(pair[0].atlas.draw(1, 2, region)))
    assert head["look"] == {"rows": [16, 48], "columns": [8, 40], "scale": 1} and head["texts"]["20"] == "w20"
    assert head["total"] == 89 and head["headings"] == ["Dense"]
    coarse, _ = decoded(AtlasSender().frame(pair[0], None, Look(1, 2, region=Region((0, 80), (0, 80), 4))))
    assert coarse["texts"] == {}


def test_two_stretches_stand_beside_each_other_or_are_taken_from_each_other(pair):
    region = Region((16, 48), (8, 40))
    head, arrays = decoded(AtlasSender().frame(*pair, Look(1, 2, region=region)))
    np.testing.assert_array_equal(arrays["other"], coded(pair[1].atlas.draw(1, 2, region)))
    assert head["headings"][1].startswith("Sinks + window 4 + 12")
    head, arrays = decoded(AtlasSender().frame(*pair, Look(1, 2, kind="difference", region=region)))
    wanted = pair[0].atlas.draw(1, 2, region) - pair[1].atlas.draw(1, 2, region)
    got = head["low"] + (head["high"] - head["low"]) * (arrays["map"].astype(float) - 1) / 65534
    met = arrays["map"] > 0
    np.testing.assert_array_equal(met, ~np.isnan(wanted))
    np.testing.assert_allclose(got[met], wanted[met], atol=1e-3)
    assert head["low"] == -head["high"]


@pytest.mark.parametrize("many", MANY[1:])
def test_small_maps_come_in_the_end(pair, many):
    sender, look = AtlasSender(), Look(1, 2, many=many)
    for _ in range(50):
        head, arrays = decoded(sender.frame(pair[0], None, look))
        if sender.complete:
            break
    which = [(1, h) for h in range(4)] if many == "heads" else [(layer, 2) for layer in range(3)]
    assert [(m["layer"], m["head"]) for m in head["many"]] == which and all(m["ready"] for m in head["many"])
    for i, at in enumerate(which):
        np.testing.assert_array_equal(arrays[f"many{i}"], coded(pair[0].atlas.draw(*at, whole(89, 104))))


def test_the_row_and_the_column_of_a_token(pair):
    head, arrays = decoded(AtlasSender().frame(pair[0], None, Look(1, 2, cross=(60, 7))))
    np.testing.assert_allclose(arrays["from"], pair[0].atlas.row(1, 2, 60))
    np.testing.assert_allclose(arrays["to"], pair[0].atlas.column(1, 2, 7))
    assert head["cross"]["row_text"] == "'w60' (60)"


def test_logits_lie_between_two_numbers():
    drawn = np.array([[-3.0, np.nan], [5.0, 1.0]], np.float32)
    assert levels(drawn, "logits", -3, 5).tolist() == [[1, 0], [65535, 32768]]
