"""Heads: maps of a captured stretch of text, measures of every head, and what the sink of each head is worth."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import streamlit as st

from analysis.policies import parse
from analysis.settings import quoted
from app import address
from app.address_bar import is_linked, readdress
from app.choices import kept_default
from app.controls import MODEL, Chosen, brand, heading, model_controls, policy_controls, text_controls
from app.frames.atlas import AtlasSender
from app.jobs.registry import REGISTRY
from app.panels import atlas, knockouts, measures
from app.panels.asked import unfollowed
from app.panels.heads import HeadsPanel
from app.panels.job_panel import LOST, redraw
from app.plain import plain
from app.projection import project

PANELS = {"maps": atlas.PANEL, "measures": measures.PANEL, "knockouts": knockouts.PANEL}


PARAMETERS = {
    "panel": address.one_of("panel", PANELS),
    "text": address.Parameter(address.given_text),
    "policy": address.Parameter(lambda asked: str(address.policy(asked))),
}
"""What the address says of all panels, beside the model."""
ADDRESS = ("run", "tokens", *PARAMETERS, *MODEL, *{name for panel in PANELS.values() for name in panel.parameters})
"""What the address of this page says."""
USUAL = {"panel": "maps", "text": "hamlet", "policy": "dense"}


def open_page() -> None:
    """What a tab begins with: what its address names, or a stretch of Hamlet."""
    state, asked = st.session_state, st.query_params
    if "heads" in state and not is_linked(ADDRESS):
        # Here already, or back from another page: all is as it was left.
        return
    found, left_out = address.values(PARAMETERS, asked)
    found = USUAL | found
    shown = {n: known for n, p in PANELS.items() if (known := p.job_panel.find(asked.get("run"))) is not None}
    name = next(iter(shown), found["panel"])
    panel, known = PANELS[name], shown.get(name)
    more, wrong = address.values({**panel.parameters, "tokens": tokens_of(panel)}, asked)
    if not panel.takes_policy and found["policy"] != USUAL["policy"]:
        wrong.append(f"policy is {quoted(found['policy'])}, and this panel reads under dense alone")
        found["policy"] = USUAL["policy"]
    chosen, unloaded = Chosen().linked(asked, REGISTRY.models())
    tokens = state["heads"]["tokens"] if "heads" in state else {n: p.tokens for n, p in PANELS.items()}
    tokens[name] = more.pop("tokens", panel.tokens)
    lost, said = LOST if known is None and asked.get("run") else "", ""
    if known is not None:
        chosen, found["text"], unloaded = Chosen.of(known.spec), known.spec.text, []
        found["policy"] = known.spec.policies[0]
        tokens[name] = max(32, min(known.spec.tokens or tokens[name], panel.most_tokens))
        has = settings_of(panel, known)
        more |= has
        # What is no part of a result is looked at as where there is none.
        left_out, wrong = address.values({n: of for n, of in panel.parameters.items() if n not in has}, asked)[1], []
        said = unfollowed_by(name, panel, known, has)
    problems = [said, address.wrong([*left_out, *wrong, *unloaded]), lost]
    first = "heads" not in state
    state.heads = state.get("heads", {}) | {
        "model": chosen,
        "text": found["text"],
        "policy": found["policy"],
        "tokens": tokens,
        "folder": "",
    }
    state.revision = state.get("revision", 0) + 1
    state.heads_panel = name
    state.setdefault("atlas_sender", AtlasSender())
    state.setdefault("captures", [])
    for n, other in PANELS.items():
        if first or n == name:
            # What was set and found on the others stays there.
            other.take(more if n == name else {})
    panel.job_panel.put(known.id if known is not None else "")
    problems.append(panel.opened())
    panel.job_panel.say(" ".join(filter(None, problems)) or panel.job_panel.problem)


def settings_of(panel: HeadsPanel, known: Any) -> dict[str, Any]:
    """What a panel can choose of what was asked besides the Spec of a result, as it was; None where it was not."""
    names = [name for name in known.settings if name in panel.parameters]
    written = {name: str(known.settings[name]) for name in names if known.settings[name] is not None}
    return dict.fromkeys(names) | address.values(panel.parameters, written)[0]


def unfollowed_by(name: str, panel: HeadsPanel, known: Any, settings: Mapping[str, Any]) -> str:
    """What to say of what the address asks otherwise than a result has it, whose panel has these settings."""
    has = {**settings, "panel": name, "policy": known.spec.policies[0], "tokens": known.spec.tokens}
    if named := address.named_text(known.spec.text, known.text_sha256):
        has["text"] = named
    of = {**PARAMETERS, "tokens": tokens_of(panel), **panel.parameters}
    return unfollowed({name: of[name] for name in has}, has, Chosen.of(known.spec))


def tokens_of(panel: HeadsPanel) -> address.Parameter:
    """How many tokens a panel may read."""
    return address.whole("tokens", 32, panel.most_tokens)


def to_address(name: str, panel: HeadsPanel) -> None:
    """Let the address say what is shown, so that a reload and a second tab show it too."""
    asked, known = st.session_state.heads, panel.job_panel.job or panel.job_panel.kept
    now = {"panel": name, "text": asked["text"], "policy": asked["policy"], "tokens": asked["tokens"][name]}
    chosen, sha256 = asked["model"], ""
    if known is not None:
        now |= {"text": known.spec.text, "policy": known.spec.policies[0], "tokens": known.spec.tokens}
        chosen, sha256 = Chosen.of(known.spec), known.text_sha256
    now["text"] = address.named_text(now["text"], sha256) or USUAL["text"]
    if not panel.takes_policy:
        now["policy"] = USUAL["policy"]
    of = {**PARAMETERS, "tokens": tokens_of(panel), **panel.parameters}
    usual = {"tokens": panel.tokens, **USUAL, **dict.fromkeys(panel.parameters), **panel.usual}
    # What is set for the next one is no part of what is shown.
    now |= panel.now() | (settings_of(panel, known) if known is not None else {})
    said = chosen.link() | address.said(of, now, usual)
    readdress(ADDRESS, said | ({"run": known.id} if known is not None else {}))


def sidebar(name: str, panel: HeadsPanel) -> None:
    """What is read, under which policy, and the widgets of the panel."""
    state, asked = st.session_state, st.session_state.heads
    with st.sidebar:
        brand("heads")
        st.caption("Model and text")
        asked["model"] = model_controls("heads", asked["model"])
        asked["text"] = text_controls("heads", asked["text"])
        tokens = asked["tokens"]
        tokens[name] = st.number_input(
            "Tokens", 32, panel.most_tokens, tokens[name], 64, key=f"heads-tokens-{name}-{state.revision}"
        )
        if panel.takes_policy:
            st.caption("What is kept")
            policy = parse(asked["policy"])
            with st.popover(f":material/edit: {plain(policy.label)}", width="stretch"):
                asked["policy"] = str(policy_controls(f"heads-{state.revision}", policy))
        panel.sidebar()


def draw(name: str) -> None:
    """A panel, and what the address says of it."""
    PANELS[name].draw()
    to_address(name, PANELS[name])


open_page()
project()
heading("heads")
name = st.segmented_control(
    "Panel",
    list(PANELS),
    format_func=lambda n: PANELS[n].title,
    **kept_default("heads_panel", "maps"),
    label_visibility="collapsed",
    required=True,
)
# It begins with a choice, and one is required.
assert name is not None
panel = PANELS[name]
sidebar(name, panel)
redraw(partial(draw, name), lambda: 0.5 if panel.busy() else None)
