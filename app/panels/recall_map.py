"""What was recalled, on the recall page: a map for each policy or a curve, a table, and what one takes away."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import msgspec
import streamlit as st

from analysis.experiments.recall.asked import Asked
from analysis.experiments.recall.cells import TABLE, RecallCell, Row, read_table, rows_of, summary
from analysis.figures import RecallCurve
from analysis.palette import labels
from analysis.policies import parse
from analysis.runs.spec import Spec
from analysis.tables import as_csv, as_text
from app import recordings
from app.choices import choice, kept_default
from app.components import chart
from app.components import recall as component
from app.downloads import download
from app.frames.recall import frame, ordered
from app.jobs.recall import RecallJob
from app.pages import PAGES
from app.panels import charts
from app.panels.tables import draw as draw_rows
from app.parameters import MEASURED

if TYPE_CHECKING:
    from analysis.figures import Numbers

CELL = tuple[int, int, float]
"""A cell that is looked at: the lane, dense first, length and depth."""


@dataclass(frozen=True)
class Found:
    """What is known of a map, from a job or from the library."""

    id: str
    spec: Spec
    asked: Asked
    rows: tuple[Row, ...]
    now: RecallCell | None = None
    table: bool = False
    """Whether figures can be made of it."""

    @classmethod
    def of_job(cls, run: RecallJob) -> Self:
        """What a job has found so far."""
        found = run.snapshot
        told = found.done > 0 and not run.kept.problem
        return cls(run.id, run.spec, run.asked, found.rows, found.now, told)

    @classmethod
    def of_result(cls, result: recordings.Result) -> Self:
        """What the library keeps.  Raises ValueError where it is damaged."""
        asked, table = Asked.of(result.settings), (result.path / TABLE).exists()
        try:
            asked.check_file(result.path)
        except ValueError:
            if not table:
                raise
            # Its own questions lie elsewhere by now, as where it was taken in from other hands.
            return cls(result.id, result.spec, asked, tuple(read_table(result.path)), table=table)
        rows = rows_of(asked.cells(result.spec), result.path)
        return cls(result.id, result.spec, asked, tuple(rows), table=table)

    @property
    def about(self) -> str:
        """What is asked, in a few words."""
        asked, policies = self.asked, len(ordered(self.spec.policies))
        how = {"aware": "", "blind": "the question unseen"}[asked.asking]
        texts = f"{asked.repeats} for each cell" if asked.repeats > 1 else ""
        lanes = f"{policies} lane{'s' * (policies != 1)}"
        return " · ".join(filter(None, (asked.of_task.title, lanes, texts, f"seed {asked.seed}", how)))

    @property
    def placed(self) -> bool:
        """Whether there is a map: facts stand at chosen depths."""
        return self.asked.of_task.placed


def draw(found: Found, chosen: CELL | None, on_pick: Callable[[], None], below: Callable[[], None]) -> None:
    """All of it; `below`: draws what stands under the map."""
    if found.placed:
        draw_map(found, chosen, on_pick)
        below()
    elif any(row.distance is not None for row in found.rows):
        draw_curve(found)
    if found.rows:
        draw_table(found.rows)
    take_away(found)


def draw_map(found: Found, chosen: CELL | None, on_pick: Callable[[], None]) -> None:
    """The maps, side by side."""
    st.segmented_control(
        "Cells", list(MEASURED), format_func=MEASURED.__getitem__, **kept_default("recall-measured", "recalled"),
        required=True, label_visibility="collapsed",
    )  # fmt: skip
    at = found.now
    now = None if at is None else (at.spec.policies[0], at.place.length, at.place.depth)
    measured = choice("recall-measured", "recalled")
    data = frame(found.rows, found.asked, found.spec.policies, measured, chosen, now)
    component.mount(data, key="recall-map", on_pick=on_pick)


def draw_curve(found: Found) -> None:
    """How often the answer was given, over the distance to what says it."""
    numbers = RecallCurve().numbers(found.rows)
    alt = f"Share of the answers given over the tokens from the fact to the answer; {points_told(numbers)}"
    chart.mount(charts.recall(numbers), key="recall-curve", alt=alt, height=340, projected=60)


def points_told(numbers: "Numbers") -> str:
    """The points of a curve in words: columns that RecallCurve gives."""
    policies = list(dict.fromkeys(numbers["policy"].tolist()))
    names = dict(zip(policies, labels([parse(policy) for policy in policies]), strict=True))
    columns = zip(*(numbers[column].tolist() for column in ("policy", "distance", "recalled")), strict=True)
    return "; ".join(f"{names[policy]} at {distance:,.0f}: {100 * share:.0f} %" for policy, distance, share in columns)


def draw_table(rows: Sequence[Row]) -> None:
    """How much each policy recalls in all, at each length."""
    header, lines = summary(rows)
    draw_rows([dict(zip(header, line, strict=True)) for line in lines])
    st.caption(
        "Recalled: answers whose every token is the most probable one, with the 95 % interval of their rate (Wilson). "
        "NLL: nats per token of the answer. Kept: share of the fact that is still in the cache when it is given."
    )


def take_away(found: Found) -> None:
    """The table as a file, a figure, and the command that computes the same."""
    with st.container(horizontal=True, vertical_alignment="center"):
        if found.rows:
            download("All answers as CSV", "recall.csv", lambda: as_table(found.rows))
        if found.table:
            figure: dict[str, Any] = {"figure": "needle-map" if found.placed else "recall-curve", "run": found.id}
            st.page_link(
                PAGES["figures"].path, label="Make a figure of it", icon=f":material/{PAGES['figures'].icon}:",
                query_params=figure,
            )  # fmt: skip
    with st.expander("The same from a command line"):
        st.code(found.asked.command(found.spec), language="bash", wrap_lines=True)


def as_table(rows: Sequence[Row]) -> str:
    """All answers as CSV, with the columns of `recall.parquet`."""
    names = Row.__struct_fields__
    cells = [msgspec.structs.asdict(row) for row in rows]
    return as_csv(names, [[_written(of[name]) for name in names] for of in cells])


def _written(value: Any) -> str:
    """As a cell of CSV."""
    return as_text(value) if isinstance(value, str) else "" if value is None else str(value)
