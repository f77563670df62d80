"""Tables are written so that every reader of CSV gets back what was put in."""

import csv
import io

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from analysis.figures.sheet import table
from analysis.tables import as_csv, as_markdown, from_csv

CELLS = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(',"\n\r=;'), max_size=6)
TABLES = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(CELLS, min_size=width, max_size=width), min_size=1, max_size=5)
)


@settings(deadline=None)
@given(TABLES)
@example([["a", "b"], ["\r", "c"], ["d", "e"]])
@example([["a"], ["\u2028"], ["\n"]])
def test_every_cell_comes_back_as_it_was(table):
    header, *rows = table
    assert list(csv.reader(io.StringIO(as_csv(header, rows), newline=""), strict=True)) == table
    assert from_csv(as_csv(header, rows).encode(), header, "it") == rows


def test_markdown_has_a_line_for_each_row():
    assert as_markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |\n"
    assert as_markdown(["a", "b"], [["x|y.txt", "2"]]).endswith("\n| x\\|y.txt | 2 |\n")


def test_texts_of_a_figure_are_no_formulas_to_a_spreadsheet_and_numbers_stay_as_they_are():
    texts = ["=1+1", "+x", "-x", "@SUM(A1)", "\tx", "\rx", "plain", " =x", "-1", ""]
    numbers = [-1.5, 2.0, float("nan"), -0.0, 1e-9, -3.0, 4.0, 5.0, 6.0, -7.0]
    rows = list(csv.reader(io.StringIO(table({"token": np.array(texts), "nll": np.array(numbers)}), newline="")))[1:]
    assert [row[0] for row in rows] == [f"'{t}" for t in texts[:6]] + ["plain", " =x", "'-1", ""]
    assert [row[1] for row in rows] == ["-1.5", "2.0", "", "-0.0", "1e-09", "-3.0", "4.0", "5.0", "6.0", "-7.0"]
