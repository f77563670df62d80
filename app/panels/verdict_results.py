"""What a comparison has found, on the verdict page: a sentence, a picture, a table, and what one takes away."""

from dataclasses import dataclass
from html import escape
from typing import Self

import streamlit as st

from analysis.errors import sentence
from analysis.experiments.recall import TASKS
from analysis.experiments.verdict import Plan, Verdict, read_verdict, tables
from analysis.experiments.verdict.entries import FILE
from analysis.experiments.verdict.plan import READING
from analysis.figures.pareto import COSTS, Pareto, measures
from analysis.texts import checked
from app import address, parameters, recordings
from app.choices import kept_index
from app.components import chart
from app.controls import AROUND
from app.downloads import download
from app.jobs.verdict import VerdictJob
from app.pages import PAGES
from app.panels import charts
from app.panels.tables import draw as draw_rows
from app.plain import plain

QUALITIES = {"perplexity": "Perplexity ÷ dense", "kl": "KL divergence from dense, nats/token"} | {
    name: f"Recalled: {task.title}" for name, task in TASKS.items()
}
"""What may be drawn against what a cache takes."""


def quality_label(measure: str) -> str:
    """What is drawn, in words.  Raises ValueError where there is nothing of this name."""
    name, colon, settings = measure.partition(":")
    label = QUALITIES[checked("quality", name, QUALITIES)]
    return f"{label}, {settings.replace(';', ', ')}" if colon else label


def _quality(asked: str) -> str:
    quality_label(asked)
    return asked


def qualities(plan: Plan) -> list[str]:
    """What a comparison measures, as the picture's addresses name it."""
    read = [READING[0]] * plan.reads + [READING[1]] * (READING[1] in plan.tasks)
    return [*read, *(task.replace(",", ";") for task in plan.recalled)]


PICTURE: address.Parameters = {
    "quality": address.Parameter(_quality),
    "cost": address.one_of("cost", COSTS),
}
"""What addresses say of the picture."""
FIRST = {"quality": "perplexity", "cost": "tokens"}


@dataclass(frozen=True)
class Found:
    """What is known of a comparison, from a job or from the library."""

    id: str
    plan: Plan
    verdict: Verdict | None
    """None before anything is whole."""
    whole: bool
    """Whether `verdict` says what all cells do."""
    table: bool = False
    """Whether figures can be made of it."""

    @classmethod
    def of_job(cls, run: VerdictJob) -> Self:
        """What a job has found so far."""
        now = run.snapshot
        # While a model is loaded nobody knows how many cells there are.
        whole, table = 0 < now.total == now.done, now.found is not None and not run.kept.problem
        return cls(run.id, run.plan, now.found, whole, table)

    @classmethod
    def of_result(cls, result: recordings.Result) -> Self:
        """What the library keeps.  Raises ValueError where it is damaged."""
        plan, table = Plan.of(result.spec, result.settings), (result.path / FILE).exists()
        found = read_verdict(result.path) if table else None
        try:
            parameters.check_plan(plan)
            whole = all((result.path / cell.name).exists() for cell in plan.cells)
        except ValueError:
            # A command read files of its own: which cells there are is not known here.
            whole = True
        # Work that was killed may have left a cell that the tables do not know.
        return cls(result.id, plan, found, whole and not result.goes_on, table)

    @property
    def about(self) -> str:
        """What is compared, in a few words."""
        plan, asked = self.plan, self.plan.recalled
        texts = plan.texts if plan.reads else ()
        counts = {"lane": plan.policies, "budget": plan.budgets, "text": texts, "task": asked}
        return " · ".join(f"{len(of)} {word}{'s' * (len(of) != 1)}" for word, of in counts.items() if of)


def draw(found: Found) -> None:
    """All of it."""
    verdict = found.verdict
    if verdict is not None and any(e.tokens or e.recall for e in verdict.entries[1:]):
        sofar = "" if found.whole else "So far: "
        st.html(AROUND.with_name("verdict.css"))
        told = escape(sofar + tables.sentence(verdict)).replace(" %", "&nbsp;%")
        st.html(f'<p class="sk-sentence">{told}</p>')
        draw_picture(verdict)
    if verdict is not None:
        header, rows = tables.table(verdict)
        draw_rows([dict(zip(header, row, strict=True)) for row in rows])
        st.caption(f"{tables.caption(verdict)}.")
    take_away(found)


def draw_picture(verdict: Verdict) -> None:
    """What caches are worth against what they take; widgets choose which of both."""
    tasks = measures(verdict.entries[1:])
    read = [READING[0]] * any(e.relative is not None for e in verdict.entries[1:])
    read += [READING[1]] * any(e.kl is not None for e in verdict.entries[1:])
    measured = [*read, *tasks]
    with st.container(horizontal=True):
        quality = st.selectbox(
            "How good", measured, format_func=quality_label, width=320,
            **kept_index("verdict-quality", measured[0], measured),
        )  # fmt: skip
        cost = st.selectbox(
            "What it takes", list(COSTS), format_func=COSTS.__getitem__, width=220,
            **kept_index("verdict-cost", FIRST["cost"], COSTS),
        )  # fmt: skip
    try:
        numbers = Pareto(quality, cost).numbers(verdict)
    except ValueError as e:
        st.caption(plain(sentence(e)))
        return
    label = quality_label(quality)
    figure = charts.pareto(numbers, COSTS[cost], label, share=quality in tasks)
    columns = zip(numbers["title"], numbers["cost"], numbers["value"], strict=True)
    # What dense takes in tokens grows with the text.
    points = [f"{title}{'' if at != at else f' at {at:,g}'}: {value:.4g}" for title, at, value in columns]
    alt = f"{label} over {COSTS[cost].lower()}; {'; '.join(points)}"
    chart.mount(figure, key="verdict-pareto", alt=alt, height=380, projected=60)


def take_away(found: Found) -> None:
    """The tables as files, a figure, and the command that computes the same."""
    with st.container(horizontal=True, vertical_alignment="center"):
        for name, label in {"table.csv": "Table as CSV", "pairs.csv": "Pairs as CSV"}.items():
            if (verdict := found.verdict) is not None:
                download(label, name, lambda verdict=verdict, name=name: tables.written(verdict)[name])
        if found.table:
            st.page_link(
                PAGES["figures"].path, label="Make a figure of it", icon=f":material/{PAGES['figures'].icon}:",
                query_params={"figure": "pareto", "run": found.id},
            )  # fmt: skip
    with st.expander("The same from a command line"):
        st.code(found.plan.command(), language="bash", wrap_lines=True)
