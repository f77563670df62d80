"""Where did it go? A cell of the map, its answers, and which heads look at the fact when the question has been read."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from html import escape

import streamlit as st

from analysis.experiments.recall.cells import RecallCell, Row
from analysis.experiments.recall.whereabouts import Look, Whereabouts
from analysis.palette import labels
from analysis.policies import parse
from app import address
from app.controls import Chosen
from app.downloads import download
from app.frames.recall import ordered
from app.jobs.whereabouts import WhereaboutsJob
from app.pages import PAGES
from app.panels import charts
from app.panels.job_panel import JobPanel, Maker
from app.panels.recall_map import CELL, Found
from app.panels.tables import draw as draw_rows
from app.parameters import READ
from app.plain import plain
from app.view import HEAD, MARK

JOB_PANEL = JobPanel("whereabouts", WhereaboutsJob)
SHOWN = 8
"""Heads that are listed."""
AROUND, END = 40, 60
"""Tokens that are shown around the fact, and at the end of the text."""


def cell_of(found: Found, chosen: CELL) -> RecallCell | None:
    """The first text of a cell that is looked at; None where there is no such cell."""
    lane, length, depth = chosen
    policies = ordered(found.spec.policies)
    if not found.placed or lane not in range(len(policies)):
        return None
    if length not in found.asked.lengths or depth not in found.asked.depths:
        return None
    one = replace(found.asked, lengths=(length,), depths=(depth,), repeats=1)
    return one.cells(replace(found.spec, policies=(policies[lane],)))[0]


def start(cell: RecallCell) -> None:
    """Look into a cell; what was looked into before is no longer on screen."""
    JOB_PANEL.begin(partial(_prepared, cell), partial(start, cell))


def _prepared(cell: RecallCell) -> Maker[WhereaboutsJob]:
    return partial(WhereaboutsJob, cell)


def draw(found: Found, chosen: CELL | None) -> None:
    """The panel; nothing where no cell is looked at."""
    if chosen is None or (cell := cell_of(found, chosen)) is None:
        return
    policy, place = cell.spec.policies[0], cell.place
    rows = [r for r in found.rows if (r.policy, r.length, r.depth) == (policy, place.length, place.depth)]
    label = parse(policy).label
    st.markdown(f"#### Where did it go? {plain(f'{label}, {place.length:,} tokens, depth {place.depth:g} %')}")
    draw_answers(rows)
    job = JOB_PANEL.watch()
    if job is None or job.cell != cell:
        st.button("Where did it go?", icon=":material/search:", on_click=start, args=(cell,))
        return
    JOB_PANEL.progress(job.read / job.total, f"{job.read:,} of about {job.total:,} tokens read")
    if job.found is not None:
        draw_found(job.found)
        take_away(job, label)


def draw_answers(rows: Sequence[Row]) -> None:
    """What was asked at that place, and what was said."""
    if rows:
        table = [
            {
                "Text": row.repeat + 1,
                "Key": row.answer,
                "Said": row.said,
                "Recalled": "yes" if row.hit else "no",
                "NLL": f"{row.nll:.3f}",
                "Kept": "–" if row.kept is None else f"{100 * row.kept:.0f} %",
            }
            for row in rows
        ]
        draw_rows(table)


def draw_found(found: Whereabouts) -> None:
    """The fact in its text, and the heads."""
    look = found.looks[-1]
    st.html(excerpt(found, look))
    st.markdown(plain(sentence(found)))
    names = labels([parse(of.policy) for of in found.looks])
    for place, name, of in zip(st.columns(len(names)), names, found.looks, strict=True):
        with place:
            st.caption(plain(f"{name}: attention on the fact from the question's last token, in every head"))
            alt = f"{name}: at most {of.mass.max():.2f}, {of.holding} of {of.mass.size} heads can reach all of the fact"
            grid = charts.cells(of.mass, "", top=1)
            bare = {"displayModeBar": False}
            st.plotly_chart(grid, key=f"whereabouts-{of.policy}", config=bare, alt=alt)
    st.caption("Heads, layer.head, that look most at it, and how much of it each can still reach")
    rows = []
    for layer, head in dict.fromkeys((*found.looks[0].ranked(SHOWN), *look.ranked(SHOWN // 2))):
        masses = {name: f"{of.mass[layer, head]:.3f}" for name, of in zip(names, found.looks, strict=True)}
        rows.append({"Head": f"{layer}.{head}", **masses, "Reached": f"{100 * look.reached[layer, head]:.0f} %"})
    draw_rows(rows)


def sentence(found: Whereabouts) -> str:
    """What was found, in words."""
    dense, look = found.looks[0], found.looks[-1]
    layer, head = dense.ranked(1)[0]
    tokens, heads = found.needle[1] - found.needle[0], look.mass.size
    said = f"Under dense, head {layer}.{head} gives {100 * dense.mass[layer, head]:.0f} % of its attention to the fact"
    if look is dense and look.holding == heads:
        return f"{said}, whose {tokens} tokens every head can reach."
    if look is dense:
        seen = f"{look.holding} of {heads} heads can reach all of its {tokens} tokens"
        return f"{said}, and {seen}: some layers see a window of their own."
    if look.holding == heads:
        where = "every head can still reach all of it"
    elif look.holding:
        where = f"{look.holding} of {heads} heads can still reach all of its {tokens} tokens"
    elif look.reached.any():
        most = look.reached.max()
        where = f"no head can still reach all of its {tokens} tokens, and none more than {100 * most:.0f} % of them"
    elif dense.holding == heads:
        where = f"all of its {tokens} tokens are evicted in every head: nothing is left to look at"
    else:
        # A layer with a window of its own may not see what its cache holds.
        where = f"no head can reach any of its {tokens} tokens: nothing is left to look at"
    name = parse(look.policy).label
    return f"{said}. Under {name}, {where}; {layer}.{head} gives it {100 * look.mass[layer, head]:.1f} %."


def excerpt(found: Whereabouts, look: Look) -> str:
    """The text around the fact and its end as HTML: what no head can reach is dim, the fact is marked."""
    (begin, end), count = found.needle, found.asked.stop
    shown = sorted({*range(max(0, begin - AROUND), min(count, end + AROUND)), *range(max(0, count - END), count)})
    parts, before = [], -1
    for i in shown:
        if i != before + 1:
            parts.append(f"<i> … {i - before - 1:,} tokens … </i>")
        before = i
        kind = "needle" if begin <= i < end else "asked" if i >= found.asked.question else ""
        lost = i < len(look.shares) and look.shares[i] == 0
        names = " ".join(filter(None, (kind and f"sk-{kind}", "sk-lost" if lost else "")))
        parts.append(f'<span class="{names}">{escape(found.pieces[i])}</span>' if names else escape(found.pieces[i]))
    if before < count - 1:
        parts.append(f"<i> … {count - 1 - before:,} tokens … </i>")
    return f'<div class="sk-excerpt">{"".join(parts)}</div>'


def take_away(job: WhereaboutsJob, label: str) -> None:
    """The text, and the board that reads it: up to the answer, with the fact marked, and with the head that dense
    looks at it with."""
    assert job.text is not None and job.found is not None, "the text is made before anything is found"
    lanes = list(dict.fromkeys(("dense", job.spec.policies[0])))
    link: dict[str, str | list[str]] = {"lane": lanes, **Chosen.of(job.spec).link()}
    link["text"] = address.named_text("", job.text.sha256)
    link |= {"mark": MARK.write(job.found.needle), "pause": READ["pause"].write(job.found.asked.answer)}
    link["head"] = HEAD.write(job.found.looks[0].ranked(1)[0])
    with st.container(horizontal=True, vertical_alignment="center"):
        st.page_link(
            PAGES["read"].path, label=plain(f"Read this text under dense and {label}" if len(lanes) > 1 else "Read it"),
            icon=f":material/{PAGES['read'].icon}:", query_params=link,
        )  # fmt: skip
        text = job.text
        download("This text", text.name, lambda: text.content or "", "text/plain")
