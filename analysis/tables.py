"""Tables that leave the house: CSV, written by pandas, and Markdown.  What stands in a cell is chosen by the caller."""

from collections.abc import Iterable, Sequence


def as_csv(header: Sequence[str] | None, rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells as CSV, one line each, under a header; None: rows alone, to be appended to a file."""
    # Slow to import, and seldom needed.
    import pandas as pd

    table = pd.DataFrame(list(rows), columns=None if header is None else list(header), dtype=object)
    return table.to_csv(index=False, header=header is not None, lineterminator="\n")


def as_markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The same as a Markdown table, whose columns are right-aligned but for the first."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)
