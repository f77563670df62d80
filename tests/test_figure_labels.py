"""Labels of axes on narrow pages: all of their words are there, and they take no room from what is drawn."""

import numpy as np
import pytest

from analysis.figures import parse
from analysis.figures.sheet import Layout, drawn

from .recordings import made_up

STREAMING, H2O = "streaming:sinks=4,window=60", "h2o:budget=128,recent=64,interval=16"


@pytest.mark.parametrize("venue", ["acl", "icml"])
@pytest.mark.parametrize(
    ("policies", "reference", "name"),
    [((STREAMING,), 0, "Sinks + window 4 + 60"), (("dense", H2O), 1, "Heavy hitters 128, every 16")],
)
def test_a_label_longer_than_its_page_is_broken_and_leaves_no_empty_band(venue, policies, reference, name):
    figure = parse(f"perplexity:reference={reference}")
    with drawn(figure, figure.numbers(made_up(300, policies=policies)), Layout(venue)) as sheet:
        (ax,) = sheet.axes
        label = ax.yaxis.label
        assert label.get_text().replace("\n", " ") == f"Perplexity, times that of {name}" and "\n" in label.get_text()
        box, all_of = label.get_window_extent(), ax.get_tightbbox()
        assert box.y0 >= 0 and box.y1 <= sheet.bbox.height
        assert all_of.y0 < 0.05 * sheet.bbox.height and all_of.y1 > 0.95 * sheet.bbox.height


@pytest.mark.parametrize("venue", ["neurips", "icml", "acl"])
@pytest.mark.parametrize(
    "of", ["map-grid:layers=0 1,heads=0 2 3", "map-grid:layers=0,heads=0 2 3", "mean-logits:layers=0 1"]
)
def test_maps_of_few_layers_leave_no_white_band_on_the_page(of, venue):
    figure = parse(of)
    down, across = (1, 2) if of.startswith("mean") else (len(figure.layers.split()), 3)
    data = {"maps": np.full((down, across, 16, 16), 0.1, np.float32), "layers": np.arange(down)}
    mean = {"maps": data["maps"][0], "layers": np.arange(across)}
    data |= mean if of.startswith("mean") else {"heads": np.arange(across)}
    with drawn(figure, data, Layout(venue)) as sheet:
        sheet.canvas.draw()
        boxes = [ax.get_tightbbox().extents for ax in sheet.axes]
        height = max(box[3] for box in boxes) - min(box[1] for box in boxes)
        assert 0.88 * sheet.bbox.height < height <= sheet.bbox.height
        picture = sheet.axes[0].get_window_extent()
        assert picture.width > 0.55 * sheet.bbox.width


def test_ranges_of_keys_have_room_on_a_narrow_page():
    ends = {"first_least": -1.0, "first_greatest": 1.0, "least": -9.0, "greatest": 2.0}
    data = {"layer": np.repeat([0, 1], 8), "channel": np.tile(np.arange(8), 2)}
    data |= {name: np.full(16, end) for name, end in ends.items()}
    with drawn(parse("key-ranges"), data, Layout("icml")) as sheet:
        assert sheet.axes[0].get_window_extent().height / sheet.dpi > 1.1
