"""Labels of axes on narrow pages: all of their words are there, and they take no room from what is drawn."""

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
