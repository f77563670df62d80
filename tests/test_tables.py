"""Tables are written so that every reader of CSV gets back what was put in."""

import csv
import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from analysis.figures.sheet import table
from analysis.tables import TAKEN, as_csv, as_markdown, as_text, from_csv

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


def test_a_table_that_was_cut_anywhere_is_not_read_with_another_last_number():
    whole = as_csv(["what", "bytes"], [["a", "12"], ["b", "12288"]]).encode()
    for stop in range(len(whole)):
        if whole[:stop].endswith(b"\n") and stop:
            continue
        with pytest.raises(ValueError, match=r"it (is no table|is cut short|has other columns)"):
            from_csv(whole[:stop], ["what", "bytes"], "it")
    with pytest.raises(ValueError, match="it is cut short in its last line: copy it anew"):
        from_csv(whole[:-2], ["what", "bytes"], "it")


def test_markdown_has_a_line_for_each_row():
    assert as_markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |\n"
    assert as_markdown(["a", "b"], [["x|y.txt", "2"]]).endswith("\n| x\\|y.txt | 2 |\n")


FOREIGN = [
    "=1+1", "+x", "-", "-1", "@SUM(A1)", "\tx", "\rx", "1e5", "1E-5", " 1e5", "007", " 7", "7 ", "1.50", ".5", "1,5",
    "3/4", "1-2", "1:30", "5 pm", "(5)", "$5", "5%", "1234567890123456", "Mar 5", "5 Sept", "SEPT2", "TRUE", "false",
    "#N/A", "#REF!", "NA", "None", "null", "nan", "'=1+1", "''007",
]  # fmt: skip
PLAIN = [
    "", "'", "'s", "plain", " =x", "0", "7", "1024", "Mar", "May be 5", "e5", "1st", "a-b", "4 + 252 tokens", ",", '"',
    "\n", "Not", "中文", "N",
]  # fmt: skip


def read_back(cell):
    """What stood in a cell: an apostrophe before what would be something else is none of it."""
    return cell[1:] if cell.startswith("'") and TAKEN.fullmatch(cell.lstrip("'")) else cell


def column(texts):
    rows = csv.reader(io.StringIO(table({"text": np.array(texts)}), newline=""), strict=True)
    return [cell for (cell,) in rows][1:] if len(texts) else []


def test_texts_of_a_figure_are_nothing_else_to_a_spreadsheet_and_numbers_stay_as_they_are():
    assert [as_text(text) for text in FOREIGN] == [f"'{text}" for text in FOREIGN]
    assert [as_text(text) for text in PLAIN] == PLAIN
    numbers = np.array([-1.5, 2.0, float("nan"), -0.0, 1e-9, -3.0])
    of = {"token": np.array(FOREIGN[:6]), "nll": numbers}
    rows = list(csv.reader(io.StringIO(table(of), newline="")))[1:]
    written = "-1.5", "2.0", "", "-0.0", "1e-09", "-3.0"
    assert rows == [[f"'{text}", number] for text, number in zip(FOREIGN[:6], written, strict=True)]


@settings(deadline=None)
@given(st.lists(st.text("'=-+01e5./ axN\n", max_size=5) | st.sampled_from(FOREIGN + PLAIN), min_size=1, max_size=5))
def test_what_stood_in_a_cell_is_known_from_it(texts):
    # Of an empty line a reader of CSV makes nothing.
    assert [read_back(as_text(text)) for text in texts] == texts
    filled = [text or "x" for text in texts]
    assert list(map(read_back, column(filled))) == filled


def test_pandas_reads_tokens_as_they_are_and_a_number_that_is_none_as_nan():
    texts = [*FOREIGN, "'s", "plain", "7", ",", '"', "\n"]
    numbers = np.arange(len(texts), dtype=np.float32)
    numbers[3] = np.nan
    found = pd.read_csv(io.StringIO(table({"token": np.array(texts), "nll": numbers})))
    assert list(map(read_back, found["token"])) == texts
    np.testing.assert_array_equal(found["nll"].to_numpy(), numbers)


def test_cells_of_a_map_without_a_number_are_empty():
    of = {"map": np.array([[1, np.nan], [0.5, 0.25]], np.float32), "begin": np.array(3), "scale": np.array(2)}
    assert table(of) == "query,key,map\n3,3,1.0\n3,5,\n5,3,0.5\n5,5,0.25\n"
