"""What the sink of each head is worth, knocked out one after the other: a panel of the heads page."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import streamlit as st
from typing_extensions import override

from analysis.experiments.ablation import Effect, effects_as_csv, read_effects, without_sink
from analysis.metrics import BLOCK
from analysis.policies import parse
from analysis.runs.spec import Spec
from app import address, recordings
from app.controls import Chosen, chosen_text
from app.downloads import download
from app.jobs.ablation import AblationJob
from app.pages import PAGES
from app.panels import charts
from app.panels.job_panel import JobPanel, Maker, stopped_after, time_left

from .heads import Found, HeadsPanel, draw_head, resume

JOB_PANEL = JobPanel("knockouts", AblationJob, "heads", "knockouts")

KINDS = {"values": "is seen, and is empty", "weights": "is not seen"}
LAST_LAYER = 1024
SHOWN = 15
"""Heads in the ranking beside the grid."""


@dataclass(frozen=True)
class FoundEffects(Found):
    """What is known of knock-outs."""

    spec: Spec
    kind: str
    text_sha256: str
    shape: tuple[int, int]
    """Layers, and heads of a layer."""
    effects: tuple[Effect, ...]

    @property
    def ranked(self) -> list[Effect]:
        """The effects, largest first."""
        return sorted(self.effects, key=lambda e: -e.excess)

    @classmethod
    @override
    def of_job(cls, run: AblationJob) -> Self:
        read = run.spec.tokens if run.tokenized is None else len(run.tokenized.ids)
        text = f"{read:,} tokens of {run.text.title} {run.begins}"
        shape = (run.facts.layers, run.facts.heads) if run.facts is not None else (0, 0)
        about = _about(run.spec, text, run.kind)
        return cls(about, run.text_note, run.spec, run.kind, run.text.sha256, shape, run.effects)

    @classmethod
    @override
    def of_result(cls, kept: recordings.Result) -> Self:
        kind, facts = kept.settings.get("kind"), kept.facts
        if kind not in KINDS or facts is None:
            raise ValueError(f"{kept.id} does not say what was knocked out of which model: it is damaged")
        without_sink(parse(kept.spec.policies[0]), kind, 0, 0)
        effects = tuple(read_effects(kept.path / "effects.csv")) if (kept.path / "effects.csv").exists() else ()
        if not all(facts.has(e.layer, e.head) for e in effects):
            raise ValueError(f"{kept.id} has effects of heads that its model does not have: it is damaged")
        # A text may have fewer than were asked for, and a folder does not say so.
        tokens = f"up to {kept.spec.tokens:,} tokens of " if kept.spec.tokens else ""
        text, shape = f"{tokens}{kept.title} {kept.begins}", (facts.layers, facts.heads)
        about = _about(kept.spec, text, kind)
        return cls(about, kept.text_note, kept.spec, kind, kept.text_sha256, shape, effects)


def _about(spec: Spec, text: str, kind: str) -> str:
    how = {"values": "emptied", "weights": "hidden"}[kind]
    return f"{parse(spec.policies[0]).label} · {text} · sink {how} in one head at a time"


def sidebar() -> None:
    """What is taken away."""
    asked = st.session_state.heads
    st.caption("What is taken away")
    asked["kind"] = st.radio(
        "The sink of one head",
        list(KINDS),
        index=list(KINDS).index(asked["kind"]),
        format_func=KINDS.__getitem__,
        key=f"heads-kind-{st.session_state.revision}",
        help="An empty sink still takes its share of attention; where it is not seen, the others make up for it",
    )
    layer = st.number_input(
        "Layer",
        -1,
        LAST_LAYER,
        -1 if asked["layer"] is None else asked["layer"],
        key=f"heads-layer-{st.session_state.revision}",
        help="−1: all",
    )
    asked["layer"] = None if layer < 0 else layer


def start() -> None:
    """Begin with what is set; what was on screen ends."""
    JOB_PANEL.begin(_prepared, start)


def _prepared() -> Maker[AblationJob]:
    asked, old = st.session_state.heads, JOB_PANEL.job
    text = old.text if old is not None and asked["text"] == old.spec.text else chosen_text("heads", asked["text"])
    without_sink(parse(asked["policy"]), asked["kind"], 0, 0)
    tokens = asked["tokens"]["knockouts"]
    spec = Spec(text=text.name, policies=(asked["policy"],), tokens=tokens, **asked["model"].decided()._asdict())
    return partial(AblationJob, spec, text, asked["kind"], asked["layer"])


def progress(run: AblationJob) -> None:
    """How far the job is, or why it ended."""
    done, total = len(run.effects), run.total
    words = "Loading the model"
    if run.status != "loading":
        tokens = 0 if run.tokenized is None else len(run.tokenized.ids)
        now = run.snapshot.passes
        first = f": {now * tokens:,.0f} of {tokens:,} tokens read with all sinks" if now < 1 else ""
        words = f"{done} of {total} heads{first}{time_left(run.seconds_left)}"
    stopped = stopped_after(done, f"{done} of {total} heads", "What was found is kept.")
    JOB_PANEL.progress(run.share, words, stopped)


def draw() -> None:
    """The panel; again and again while heads are knocked out."""
    again = partial(resume, JOB_PANEL, "kind", "layer")
    found = draw_head(JOB_PANEL, FoundEffects, "Start", "play_arrow", start, again)
    if found is None:
        st.markdown(
            "One head after the other loses its sink, and the text is read again: what it then costs more, in nats a "
            "token, is what the sink was worth to that head. Most heads hardly miss it; a few need it badly."
        )
        return
    if (run := JOB_PANEL.job) is not None:
        progress(run)
    if found.effects:
        draw_effects(found)


def draw_effects(found: FoundEffects) -> None:
    """What each head's sink is worth, as a grid and as a ranking, and where one goes on from there."""
    ranked = found.ranked
    left, right = st.columns([3, 2])
    with left:
        st.caption("Every head: red costs more without its sink, blue less")
        alt = "Layers by heads, coloured by what the text costs more without the sink of each"
        grid = charts.effects(found.effects, *found.shape)
        st.plotly_chart(grid, key="heads-grid", config={"displayModeBar": False}, alt=alt)
    with right:
        st.caption(f"The {min(SHOWN, len(ranked))} that miss it most")
        alt = "; ".join(f"{e.layer}.{e.head}: {e.excess:+z.4f}" for e in ranked[:SHOWN])
        bars = charts.ranking(ranked[:SHOWN])
        st.plotly_chart(bars, key="heads-ranking", config={"displayModeBar": False}, alt=alt)
    worst, policy = ranked[0], parse(found.spec.policies[0])
    without_worst = without_sink(policy, found.kind, worst.layer, worst.head)
    link = {"lane": [str(policy), str(without_worst)], **Chosen.of(found.spec).link()}
    if named := address.named_text(found.spec.text, found.text_sha256):
        link["text"] = named
    with st.container(horizontal=True, vertical_alignment="center"):
        download("All heads as CSV", "heads.csv", lambda: effects_as_csv(ranked))
        st.page_link(
            PAGES["read"].path,
            label=f"Read on without the sink of {worst.layer}.{worst.head}",
            icon=f":material/{PAGES['read'].icon}:",
            query_params=link,
        )


def now() -> dict[str, Any]:
    """What is taken away, as the address says it."""
    asked = st.session_state.heads
    return {"kind": asked["kind"], "layer": asked["layer"]}


def take(found: dict[str, Any]) -> None:
    """Set what an address asks."""
    st.session_state.heads |= {"kind": "values", "layer": None} | found


PANEL = HeadsPanel(
    "What is each head's sink worth?",
    JOB_PANEL,
    # A standard error is taken over two blocks or more, and none predicts the first token.
    2 * BLOCK + 1,
    65_536,
    sidebar,
    draw,
    lambda: JOB_PANEL.busy,
    parameters={"kind": address.one_of("kind", KINDS), "layer": address.whole("layer", 0, LAST_LAYER)},
    usual={"kind": "values"},
    now=now,
    take=take,
)
