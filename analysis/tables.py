"""Tables that leave the house: CSV, written by pandas, and Markdown.  What stands in a cell is chosen by the caller."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

TAKEN = re.compile(
    # A formula.
    r"[=+\-@\t\r].*"
    # A number, an amount, a fraction, a date or a time; a whole number that is written as all write it stays as it is.
    r"|(?!(?:0|[1-9]\d{0,14})\Z)(?=.*\d)[\d\W_]+(?:e[+-]?\d+|[ap]m?)?\s*"
    r"|(?=.*\d)[\d\W_]*(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*[\d\W_]*"
    # A truth value, an error, or nothing at all.
    r"|\s*(?:true|false|#\w+[!?/]a?|n/?a|<na>|nan|null|none)\s*",
    re.IGNORECASE | re.DOTALL,
)
"""Texts that spreadsheets, or readers of tables, take for something else."""


def as_text(text: str) -> str:
    """A text as a cell of CSV: where it looks like a number, say, an apostrophe before it says that it is a text.

    So does one before such a text with apostrophes of its own: whoever takes one away reads what was written.
    """
    return f"'{text}" if TAKEN.fullmatch(text.lstrip("'")) else text


def ungrouped(number: str) -> str:
    """A number as a cell of CSV: without the commas between its thousands, which other countries take for a point."""
    return re.sub(r"(?<=\d),(?=\d{3})", "", number)


def as_csv(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells as CSV, one line each, under a header."""
    whole = [header, *rows]
    if not any("\r" in cell for row in whole for cell in row):
        return _written(whole, csv.QUOTE_MINIMAL)
    # Where lines end with a newline alone, a carriage return is not quoted, and readers take it for an end.
    return "".join(
        _written([row], csv.QUOTE_ALL if any("\r" in cell for cell in row) else csv.QUOTE_MINIMAL) for row in whole
    )


def from_csv(data: bytes, header: Sequence[str], where: str) -> list[list[str]]:
    """Rows of a CSV table under this header; `where`: what it is called in a sentence.

    Raises ValueError where it is damaged, cut short, or has other columns.
    """
    try:
        names, *rows = csv.reader(io.StringIO(data.decode(), newline=""), strict=True)
    except (csv.Error, ValueError) as e:
        raise ValueError(f"{where} is no table: it is damaged") from e
    if names != list(header) or any(len(row) != len(names) for row in rows):
        known = f"{', '.join(header[:8])}{', …' * (len(header) > 8)}"
        raise ValueError(f"{where} has other columns than {known}: it is damaged, or of something else")
    if not data.endswith(b"\n"):
        # The last number would be another one.
        raise ValueError(f"{where} is cut short in its last line: copy it anew")
    return rows


def _written(rows: Sequence[Sequence[str]], quoting: Any) -> str:
    # Slow to import, and seldom needed.
    import pandas as pd

    table = pd.DataFrame([list(row) for row in rows], dtype=object)
    return table.to_csv(index=False, header=False, lineterminator="\n", quoting=quoting)


def as_markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The same as a Markdown table, whose columns are right-aligned but for the first."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n" for cells in lines)
