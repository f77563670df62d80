"""What was measured: each figure is a row, printed as it comes and kept; in the end those beside a peer are a table.

All rows can be written as JSON, with the machine that they were measured on (machine.py).
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from analysis import files

from .machine import Machine, commit, machine
from .sizes import TOY


@dataclass(frozen=True)
class Row:
    """One figure; one that stands beside a peer's is a ratio, above 1 where ours is the better."""

    name: str
    value: float
    unit: str = ""
    mark: str = ""
    """What was asked, as words."""
    good: bool | None = None
    """Whether it is so; None where nothing was asked, or sizes say nothing."""
    part: str = ""
    section: str = ""
    peer: str = ""
    """What it is compared with; then `value` is the ratio, of medians or the median of paired turns."""
    theirs: float | None = None
    ours: float | None = None
    """In `unit`, as is the peer's."""
    asked: float | None = None
    """The least ratio that was asked."""


@dataclass(frozen=True)
class Measured:
    """What one run of the benchmarks has measured, and where."""

    machine: Machine
    began: str
    """ISO 8601 in UTC."""
    commit: str
    toy: bool
    """Whether sizes were such that numbers say nothing."""
    rows: tuple[Row, ...]


class Report:
    """The rows of this process, and where the next one belongs."""

    def __init__(self) -> None:
        self.began = datetime.now(UTC).isoformat(timespec="seconds")
        self.rows: list[Row] = []
        self.part = self.section = ""

    def add(self, row: Row) -> Row:
        """Keep a row of the part and section that are measured now; a toy is not judged."""
        row = replace(row, part=self.part, section=self.section, good=None if TOY else row.good)
        self.rows.append(row)
        return row

    def measured(self) -> Measured:
        """All rows, with the machine."""
        return Measured(machine(), self.began, commit(), TOY, tuple(self.rows))


REPORT = Report()


def line(name: str, value: float, mark: str, *, unit: str = "", good: bool | None = None, digits: int = 3) -> None:
    """A figure, and what it should be."""
    good = None if good is None else bool(good)
    row = REPORT.add(Row(name.strip(), float(value), unit, mark, good))
    print(f"  {name:<66} {value:>10.{digits}f} {unit:<10} {mark}{_verdict(row)}", flush=True)


def compared(
    name: str, peer: str, *, theirs: float, ours: float, unit: str, asked: float | None = None, ratio: float = 0.0
) -> None:
    """Ours beside a peer's, both in `unit` and better where larger; `ratio`: where it is not that of the two, but the
    median of paired turns; `asked`: the least that it should be."""
    ratio = float(ratio or ours / theirs)
    mark = "" if asked is None else f"≥ {asked:g}"
    good = None if asked is None else ratio >= asked
    row = REPORT.add(Row(name, ratio, unit, mark, good, peer=peer, theirs=float(theirs), ours=float(ours), asked=asked))
    print(f"  {f'{name} / {peer}':<66} {ratio:>10.2f} {'×':<10} {mark}{_verdict(row)}", flush=True)


def _verdict(row: Row) -> str:
    return "" if row.good is None else "  ok" if row.good else "  MISSED"


def said(name: str, words: str) -> None:
    """A line that has no mark."""
    print(f"  {name:<66} {words}", flush=True)


def head(text: str) -> None:
    """What the lines that follow are of."""
    REPORT.section = text
    print(f"\n{text}", flush=True)


def part(name: str) -> None:
    """Which part of the benchmarks is measured from here on."""
    REPORT.part, REPORT.section = name, ""


def table(rows: list[Row]) -> list[str]:
    """Rows that stand beside a peer's, as lines of text: peer, ours, ratio and mark."""
    found = [row for row in rows if row.peer]
    lines = [f"{'':<38} {'peer':<34} {'unit':<9} {'peer':>9} {'ours':>9} {'ratio':>8}  asked"] if found else []
    section = ""
    for row in found:
        if row.section != section:
            section = row.section
            lines.append(section)
        numbers = f"{row.theirs:>9,.1f} {row.ours:>9,.1f} {row.value:>6.2f} ×"
        lines.append(f"  {row.name:<36} {row.peer:<34} {row.unit:<9} {numbers}  {row.mark}{_verdict(row)}".rstrip())
    return lines


def finish(file: Path | None) -> None:
    """Print the table, and write all rows where a file is named.  Raises ValueError where it cannot be written."""
    if lines := table(REPORT.rows):
        print("\n" + "\n".join(lines), flush=True)
    if file is not None:
        files.write(file, msgspec.json.format(msgspec.json.encode(REPORT.measured())).decode() + "\n")


def read(file: Path) -> Measured:
    """What `finish` has written.  Raises ValueError with what is wrong with a file."""
    return files.record(file, Measured, "what python -m tests.bench --json writes")
