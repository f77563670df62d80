"""What the pages' sides share: the brand, and widgets made from the fields of a policy.

A new policy or setting needs no line here.
"""

import math
import time
from collections.abc import Collection, Mapping
from dataclasses import MISSING, Field
from html import escape
from typing import Any, NamedTuple

import streamlit as st

from analysis import resource, texts
from analysis.errors import sentence
from analysis.models import gemma, tiny
from analysis.models.dtypes import AUTO, Decision, decide
from analysis.palette import labels
from analysis.policies import POLICIES, Policy, parse
from analysis.policies.duo import rows_of
from analysis.runs.spec import Spec
from analysis.settings import Settings, quoted
from analysis.texts import BOS, SPECIAL
from app import address
from app.jobs.registry import REGISTRY
from app.libraries import LIBRARIES
from app.pages import PAGES
from app.plain import plain

BEGINS = {"auto": "as usual", "on": "on", "off": "off"}
CONTROL = {"text": "as text", "tokens": "as tokens"}
WEIGHTS = {"model": "as is", "int8": "8 bits", "int4": "4 bits"}
NUMBERS = ["auto", "float32", "bfloat16", "float16"]
LINKED = "The text of the link"
UPLOAD, PASTE = "Upload a text …", "Paste a text …"
AROUND = resource("app/components/shared/around.css")
"""The style of the page around what it draws."""
LONGEST_NAME = 4096
"""Characters of a path or of the name of a model: more than any file system takes."""
MOST_KV_HEADS = 1024
MOST_WHOLE = 2**53 - 1
"""The largest whole number that a browser has."""
NEW_LANE = "streaming:sinks=4,window=60,positions=cache"
DOUBLE = 1.0
"""Seconds between two presses that are one double click, at most, as long as the server may take for the first."""


def brand(page: str, language: str = "en") -> None:
    """The name, what this page is for, and how all pages look."""
    st.html(AROUND)
    st.html(f'<div class="sk-brand">Sinkscope</div><div class="sk-motto">{PAGES[page].motto(language)}</div>')


def heading(page: str) -> None:
    """The page's heading for who listens to it; who looks sees what the page shows."""
    st.html(f'<h1 class="sk-unseen">{escape(PAGES[page].heading)}</h1>')


def problem(e: Exception | str) -> None:
    """Say what is wrong, if anything is."""
    if said := str(e):
        st.error(plain(sentence(e) if isinstance(e, Exception) else said))


def is_new_press(trigger: str, value: dict) -> bool:
    """Whether a press comes for the first time: a press that falls into a rerun now and then arrives twice."""
    seen = st.session_state.setdefault("presses", {})
    new = seen.get(trigger) != value.get("at")
    seen[trigger] = value.get("at")
    return new


def is_double(what: str) -> bool:
    """Whether the same was pressed a moment ago: a double click is one press, and begins one run."""
    last, moment = st.session_state.get("pressed_last", ("", -math.inf))
    now = time.monotonic()
    st.session_state.pressed_last = what, now
    return last == what and now - moment < DOUBLE


def decision(dtype: str) -> Decision:
    """What a dtype stands for on this machine: for `auto` torch is asked, which may still be on its way."""
    if dtype == AUTO:
        LIBRARIES.load()
    return decide(dtype)


class Chosen(NamedTuple):
    """A model and how it is loaded; the fields of a Spec that say so."""

    model: str = "embedded"
    dtype: str = "float32"
    weights: str = "model"
    kv_heads: int | None = None
    bos: str = "auto"
    special: str = "text"

    @classmethod
    def of(cls, spec: Spec) -> "Chosen":
        """How the model of a spec is loaded, and how its text is read."""
        # Whether a text begins with BOS is a word in every Spec, though one is made of older runs' true and false too.
        return cls(spec.model, spec.dtype, spec.weights, spec.kv_heads, str(spec.bos), spec.special)

    def linked(self, asked: Mapping[str, str], known: Collection[str] = ()) -> tuple["Chosen", list[str]]:
        """The same, but for what an address asks, and what is wrong with that; `known`: models that are in use here."""
        found, problems = address.values({**MODEL, "model": address.known_model(known)}, asked)
        return self._replace(**found), problems

    def link(self) -> dict[str, str]:
        """The same as an address says it: only what is not left as it is."""
        return address.said(MODEL, self._asdict(), self._field_defaults)

    def decided(self) -> "Chosen":
        """The same, with the dtype that `auto` stands for on this machine: what a Spec says."""
        return self._replace(dtype=decision(self.dtype).dtype)


MODEL: address.Parameters = {
    "model": address.known_model(()),
    "dtype": address.one_of("dtype", NUMBERS),
    "weights": address.one_of("weights", WEIGHTS),
    "kv_heads": address.whole("kv_heads", 1, MOST_KV_HEADS),
    "bos": address.one_of("bos", BOS),
    "special": address.one_of("special", SPECIAL),
}
"""What addresses say of a model and how it is loaded."""


def model_controls(key: str, now: Chosen) -> Chosen:
    """Widgets for a model and how it is loaded, as they stand now; returns what the person chose."""
    key = f"{key}-{st.session_state.revision}"
    optional = f"{gemma.NAME}, " if gemma.installed() else ""
    help = f"embedded, {tiny.NAME}, {optional}a hub id, a folder, or a GGUF file"
    model = st.text_input("Model", value=now.model, key=f"{key}-model", help=help, max_chars=LONGEST_NAME)
    model = model.strip() or "embedded"
    if optional:
        st.caption(f"Installed as well: {gemma.NAME}. {gemma.PARTICULAR}.")
    left, right = st.columns(2)
    dtype = left.selectbox(
        "Numbers",
        NUMBERS,
        index=NUMBERS.index(now.dtype),
        key=f"{key}-dtype",
        help="auto: bfloat16 where this machine multiplies it faster than float32; it is a little less exact",
    )
    if dtype == "auto":
        left.caption(plain(decision(dtype).why))
    weights = right.selectbox(
        "Weights",
        list(WEIGHTS),
        index=list(WEIGHTS).index(now.weights),
        format_func=WEIGHTS.__getitem__,
        key=f"{key}-weights",
        help="Packed weights answer two to four times as fast on a CPU, and are a little less exact",
    )
    kv_heads = whole_control(
        "KV heads",
        1,
        MOST_KV_HEADS,
        now.kv_heads,
        placeholder="as is",
        key=f"{key}-kv-heads",
        help="Average the KV heads down to so many, without the training that it would need; empty: as they are",
    )
    bos, special = reading_controls(key, now.bos, now.special)
    return Chosen(model, dtype, weights, kv_heads, bos, special)


def reading_controls(key: str, bos: str, special: str) -> tuple[str, str]:
    """Widgets for how text becomes tokens, as it does now; returns what the person chose."""
    left, right = st.columns(2)
    return left.selectbox(
        "Begin with BOS",
        list(BEGINS),
        index=list(BEGINS).index(bos),
        format_func=BEGINS.__getitem__,
        key=f"{key}-bos",
        help="BOS is the token that begins a text: the sink of many models, such as Gemma, Llama and Mistral, which "
        "read badly without it. As usual: as the tokenizer does. A text never begins with it twice; token ids are read "
        "as they are, unless it is on",
    ), right.selectbox(
        "Special tokens",
        list(CONTROL),
        index=list(CONTROL).index(special),
        format_func=CONTROL.__getitem__,
        key=f"{key}-special",
        help="What names such as <|endoftext|> or <think> are that stand in a text, or that somebody types",
    )


def text_controls(key: str, now: str) -> str:
    """Widgets for a text, as it stands now; returns the name of what the person chose."""
    names = [UPLOAD, PASTE, *texts.plays()]
    if now not in names:
        names.insert(0, now)
    name = st.selectbox(
        "Text",
        names,
        index=names.index(now),
        format_func=lambda n: texts.title(n) if n in texts.plays() else LINKED if address.HASH.fullmatch(n) else n,
        key=f"{key}-{st.session_state.revision}-text",
    )
    linked = address.HASH.fullmatch(name)
    if linked and (known := REGISTRY.text(name.removeprefix("sha256:"))) is not None:
        st.caption(plain(known.title))
        return name
    if linked:
        st.caption(f"This link is of a text that was pasted or uploaded ({name} …): paste or upload it again.")
    if name == UPLOAD or linked:
        st.file_uploader("A text file (UTF-8) or token ids (.npy)", key=f"{key}-upload", max_upload_size=8)
    if name == PASTE or linked:
        st.text_area("Text", key=f"{key}-paste", height=160, placeholder="Paste at least a few sentences")
    return name


def chosen_text(key: str, name: str) -> texts.Text:
    """The text that was chosen by `text_controls`.  Raises ValueError with what to do."""
    state = st.session_state
    upload, pasted = state.get(f"{key}-upload"), state.get(f"{key}-paste", "")
    if address.HASH.fullmatch(name):
        if upload is None and not pasted:
            if (known := REGISTRY.text(name.removeprefix("sha256:"))) is not None:
                return known
            raise ValueError("this link is of a text that was pasted or uploaded: paste or upload it again")
        text = chosen_text(key, PASTE if upload is None else UPLOAD)
        if address.named_text("", text.sha256) != name:
            raise ValueError(
                f"{text.name} is not the text of this link, whose SHA-256 begins with {name.removeprefix('sha256:')}: "
                "give that one, or choose another text"
            )
        return text
    if name == UPLOAD:
        if upload is None:
            raise ValueError("choose a file to upload first, or another text")
        # An address that names a bundled text means that one.
        bundled = upload.name in texts.plays()
        return texts.from_bytes(upload.getvalue(), f"{upload.name} (uploaded)" if bundled else upload.name)
    if name == PASTE:
        return texts.from_bytes(pasted.encode(), "the pasted text")
    if name not in texts.plays():
        # A name that came with a run, which may be of an upload: it is no path to be read.
        raise ValueError(f"the text {quoted(name)} is no longer here: upload it again, or choose a bundled one")
    return texts.play(name)


def lane_controls(
    key: str, lanes: list[str], most: int, trained_length: int | None, switched: Mapping[int, str] | None = None
) -> None:
    """Widgets for a list of policies as a person writes them; the list is changed in place.  `switched`: what to say of
    lanes that go on under another policy."""
    state = st.session_state
    st.caption("Lanes")
    policies, before, gone = [parse(p) for p in lanes], list(lanes), None
    for i, (policy, label) in enumerate(zip(policies, labels(policies), strict=True)):
        with st.popover(f":material/edit: {plain(label)}", width="stretch"):
            chosen = policy_controls(f"{key}-{state.revision}-{i}", policy)
            for note in chosen.cautions(None, trained_length):
                st.caption(plain(note))
            if str(chosen) != str(policy):
                lanes[i] = str(chosen)
            if st.button("Remove", key=f"{key}-remove-{state.revision}-{i}", disabled=len(lanes) == 1):
                gone = i
        if switched and i in switched:
            st.caption(f":material/swap_horiz: {plain(switched[i])}")
    if st.button("Add a lane", key=f"{key}-add", width="stretch", disabled=len(lanes) >= most):
        lanes.append(NEW_LANE)
    if gone is not None:
        lanes.pop(gone)
    state.revision += len(lanes) != len(before)
    if lanes != before:
        st.rerun()


def policy_controls(key: str, policy: Policy) -> Policy:
    """Widgets for a policy and its settings, as they stand at first; returns what the person chose."""
    names = list(POLICIES)
    name = st.selectbox(
        "Policy",
        names,
        index=names.index(policy.name),
        format_func=lambda n: POLICIES[n].title,
        key=f"{key}-policy",
    )
    chosen = POLICIES[name]
    st.caption(" ".join((chosen.__doc__ or "").split("\n\n")[0].split()))
    values: dict[str, Any] = {f.name: setting_control(f"{key}-{name}", f, policy, chosen) for f in chosen.settings()}
    with st.expander("What if", expanded=bool(policy.changes)):
        values |= {f.name: setting_control(key, f, policy, chosen) for f in chosen.interventions()}
    try:
        return address.policy(str(chosen(**values)))
    except ValueError as e:
        # Two settings that do not go together; what was set before stays until they do.
        st.warning(plain(sentence(e)))
        return policy


def setting_control(key: str, f: Field, before: Settings | None, chosen: type[Settings]) -> float | str:
    """A widget for one setting of what is chosen, beginning as it stands in what was before, where that has it too."""
    rule, widget, label = f.metadata, f"{key}-{f.name}", f.name.capitalize()
    # Every setting has a default.
    assert f.default is not MISSING
    now = getattr(before, f.name) if getattr(before, "name", None) == chosen.name or rule["intervention"] else f.default
    if rule["choices"]:
        options = list(rule["choices"])
        return st.selectbox(label, options, index=options.index(now), help=rule["help"], key=widget)
    if rule["file"]:
        return file_control(widget, label, now, rule["help"])
    if rule["pattern"]:
        return st.text_input(label, value=now, help=rule["help"], key=widget).strip()
    if f.type is float:
        return st.slider(label, float(rule["low"]), float(rule["high"]), float(now), 0.5, help=rule["help"], key=widget)
    return st.number_input(label, rule["low"], rule["high"], now, 1, help=rule["help"], key=widget)


def whole_control(label: str, low: int, high: int, now: int | None, place: Any = st, **how: Any) -> Any:
    """A box for whole numbers up to `high`, or up to what a run of a command has, where that is more; None where it is
    empty, which only one without a number may be."""
    now = None if now is None else min(now, MOST_WHOLE)
    return place.number_input(label, low, max(high, now or low), now, **how)


def file_control(key: str, label: str, now: str, help: str) -> str:
    """A widget for a setting that may be a file: on a page it is uploaded, and its numbers become the setting."""
    written = st.text_input(label, value=now, help=help, key=key).strip()
    upload = st.file_uploader(f"{label} from a file", key=f"{key}-upload", max_upload_size=1)
    if upload is None:
        return written
    try:
        # What is called .txt is read as text, never as token ids.
        return rows_of(texts.from_bytes(upload.getvalue(), f"{upload.name}.txt").content or "")
    except ValueError as e:
        st.warning(plain(sentence(e)))
        return written
