"""The list of the runs page: what there is, and what one does with it.

Titles, names and texts of runs came from anybody: they are shown as they are written, and reach no file but as names
that the library itself has listed.
"""

import io
import shlex
from collections.abc import Mapping
from datetime import datetime
from html import escape
from pathlib import Path

import streamlit as st

from analysis import COMMAND, resource, texts
from analysis.errors import reason, sentence
from analysis.figures.inputs import check_folder
from analysis.figures.thumbnails import sink_grid, sparkline
from analysis.runs import archive, library, trash
from analysis.runs.library import KINDS, LONGEST, Entry
from app.address_bar import readdress
from app.choices import choice, choose, kept_value
from app.controls import is_double, problem
from app.downloads import download
from app.plain import plain

AT_ONCE = 20
"""Runs that are listed before somebody asks for more."""
MOST_UPLOADED = 64
"""Megabytes of a .zip file that a page takes in or gives out; commands know no such limit."""
MOST_COMPARED = 6
COMPARED = ("reading", "chat")
"""Kinds of runs that are laid over one another."""
OPENED_ON: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "reading": ("read", {}),
    "chat": ("chat", {}),
    **dict.fromkeys(("capture", "knockouts", "measures"), ("heads", {})),
    "training": ("learn", {"chapter": "emergence"}),
    "costs": ("learn", {"chapter": "cost"}),
    "recall": ("recall", {}),
    "verdict": ("verdict", {}),
    "grid": ("figures", {}),
}
"""The pages that show a run of a kind, and what their addresses say of it beside its name."""
WHERE = resource("app/views")


def titled(entry: Entry) -> str:
    """What a run is called on a page: that of a bundled text has its title."""
    if entry.label.title or entry.text not in texts.plays():
        return entry.title
    return entry.title.removesuffix(entry.text) + texts.title(entry.text)


def arrive() -> None:
    """Let the list begin with what the address says."""
    choose("runs-search", st.query_params.get("search", ""))
    for name in st.query_params.get_all("marked")[:AT_ONCE]:
        choose(f"runs-mark-{name}", True)


def news() -> None:
    """What went wrong last, or was done."""
    state = st.session_state
    problem(state.get("runs_problem", ""))
    if state.get("runs_note"):
        st.success(plain(state.runs_note))


def draw(found: list[Entry]) -> None:
    """The list; `found`: all runs there are."""
    state = st.session_state
    deleted()
    news()
    if freed := trash.last_freed():
        st.info(plain(sentence(freed)))
    if not found:
        empty()
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        words = st.text_input(
            "Search", **kept_value("runs-search", ""), on_change=searched, placeholder="title, text, model, policy …",
            max_chars=LONGEST, width=320,
        )  # fmt: skip
        importer()
        offered = [e.name for e in found if e.kind in COMPARED and not e.problem]
        marked = list(filter(marked_now, offered))
        readdress(("marked",), {"marked": marked} if marked else {})
        few = "Mark two or more runs to lay them over one another"
        many = f"At most {MOST_COMPARED} runs at a time"
        st.button(
            f"Compare {len(marked)}" if marked else "Compare", icon=":material/stacked_line_chart:", type="primary",
            disabled=not 2 <= len(marked) <= MOST_COMPARED, key="runs-compare", on_click=comparing, args=(offered,),
            help=many if len(marked) > MOST_COMPARED else few,
        )  # fmt: skip
    shown = [e for e in found if e.says(words)]
    if not shown:
        st.info(plain(f"No run is of {words}: search for something else, or import one that is."))
    most = state.setdefault("runs_most", AT_ONCE)
    for entry in shown[:most]:
        row(entry)
    if len(shown) > most:
        st.button(f"Show {min(AT_ONCE, len(shown) - most)} more", on_click=more, key="runs-more")
    size, count = sum(e.size for e in found), len(found)
    st.caption(
        plain(f"{count} run{'s' * (count != 1)}, {written(size)} of {trash.limit() / 1e9:g} GB in {library.home()}")
    )


def marked_now(name: str) -> bool:
    """Whether a run is marked, on screen or where a search hides it."""
    return choice(f"runs-mark-{name}", False)


def empty() -> None:
    """How one gets a run."""
    st.markdown("There is no run here yet. Every run is kept as it goes:")
    st.page_link(WHERE / "read.py", label="Read a text under several policies", icon=":material/menu_book:")
    st.page_link(WHERE / "chat.py", label="Talk to a model that forgets", icon=":material/forum:")
    st.markdown(f"From a command line, `{COMMAND} stream` makes one, and here is one from somebody else:")
    importer()


def row(entry: Entry) -> None:
    """One run."""
    key, title = entry.name, titled(entry)
    with st.container(border=True, horizontal=True, vertical_alignment="center", key=f"runs-row-{key}"):
        if entry.kind in COMPARED and not entry.problem:
            st.checkbox(
                f"Compare {plain(title)}", **kept_value(f"runs-mark-{key}", False), label_visibility="collapsed"
            )
        st.html(words_of(entry, title), width="stretch")
        with st.container(horizontal=True, width="content", vertical_alignment="center"):
            if entry.kind in OPENED_ON and not entry.problem:
                page, more = OPENED_ON[entry.kind]
                link = {**more, "run": entry.name}
                st.page_link(WHERE / f"{page}.py", label="Open", icon=":material/play_circle:", query_params=link)
            pinned = entry.label.pinned
            st.button(
                "Unpin" if pinned else "Pin", icon=":material/keep_off:" if pinned else ":material/keep:",
                key=f"runs-pin-{key}", on_click=act, args=(library.pin, key, not pinned), type="tertiary",
                help="Let the size limit free it again" if pinned else "Keep it, whatever the size limit asks",
            )  # fmt: skip
            with st.popover("More", key=f"runs-menu-{key}", type="tertiary"):
                menu(entry)


def menu(entry: Entry) -> None:
    """What one does more seldom."""
    key = entry.name
    st.text_input(
        "Title", value=entry.label.title, key=f"runs-title-{key}-{st.session_state.revision}", max_chars=LONGEST,
        placeholder=titled(entry), on_change=renamed, args=(key,),
    )  # fmt: skip
    if entry.packs <= MOST_UPLOADED * 1e6 and not entry.problem:
        download("Export as .zip", f"{key}.zip", lambda: packed(key), "application/zip")
    elif not entry.problem:
        st.caption("It is too large for a page: export it by a command.")
        st.code(command("runs export", key), language="bash", wrap_lines=True)
    st.button(
        "Delete", icon=":material/delete:", key=f"runs-delete-{key}", on_click=delete, args=(key, titled(entry)),
        disabled=entry.live, help="It is still being written: stop it first" if entry.live else None,
    )  # fmt: skip
    if entry.goes_on:
        st.caption("To go on by a command")
        st.code(command("resume", key), language="bash", wrap_lines=True)
    st.caption("Its folder, for commands and figures")
    st.code(str(entry.path), language=None, wrap_lines=True)


def command(what: str, name: str) -> str:
    """A command for a run, whose name may be anything, quoted for a shell."""
    return shlex.join([*COMMAND.split(), *what.split(), *["--"] * name.startswith("-"), name])


def words_of(entry: Entry, title: str) -> str:
    """Pictures and facts of a run as HTML; whatever is written in it is text."""
    pictures = sparkline(entry.preview) + sink_grid(entry.preview) if entry.preview else ""
    facts = [
        # Without a title of its own it is called by what it is, and by its text.
        KINDS.get(entry.kind, "Damaged") if entry.label.title or not entry.kind or entry.kind == "reading" else "",
        "pinned" if entry.label.pinned else "",
        f"{datetime.fromisoformat(entry.started).astimezone():%Y-%m-%d %H:%M}" if entry.started else "",
        entry.status if entry.status != "finished" else "",
        Path(entry.model).name,
        entry.arithmetic if entry.arithmetic != "float32" else "",
        Path(entry.text).name if entry.label.title and entry.kind != "training" else "",
        written(entry.size),
    ]
    lines = [f"<h2>{escape(title)}</h2>"]
    lines += [f'<p class="sk-run-bad">{escape(entry.problem)}</p>'] if entry.problem else []
    lines.append(f"<p>{escape(' · '.join(filter(None, facts)))}</p>")
    lanes = entry.preview.lanes if entry.preview else ()
    if lanes:
        tokens = max(lane.tokens for lane in lanes)
        # Perplexities of other stretches of the text are not compared in silence.
        alike = all(lane.tokens == tokens for lane in lanes)
        each = [
            f'<span class="sk-run-lane">{escape(name)} <b>{lane.perplexity:,.1f}</b>'
            f"{'' if alike else f' of {lane.tokens:,}'}</span>"
            for name, lane in zip(entry.lanes, lanes, strict=True)
            if lane.perplexity is not None
        ]
        told = f", perplexity: {' · '.join(each)}" if each else ""
        lines.append(f"<p>{'' if alike else 'Up to '}{tokens:,} tokens{told}</p>")
    elif entry.lanes:
        lines.append(f"<p>{escape(' · '.join(entry.lanes))}</p>")
    shown = f'<div class="sk-run-pictures">{pictures}</div>' if pictures else ""
    return f'<div class="sk-run">{shown}<div class="sk-run-words">{"".join(lines)}</div></div>'


def written(size: float) -> str:
    """A number of bytes."""
    return (
        f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.0f} kB"
    )


def importer() -> None:
    """Where a .zip file is taken in."""
    with st.popover("Import", icon=":material/upload:", key="runs-import"):
        key = f"runs-upload-{st.session_state.revision}"
        st.file_uploader(
            "A run as .zip", type="zip", key=key, max_upload_size=MOST_UPLOADED, on_change=uploaded, args=(key,),
            help="Its names and sizes are checked before it is unpacked",
        )  # fmt: skip


def uploaded(key: str) -> None:
    """Take in the file that was chosen."""
    state = st.session_state
    if (file := state.get(key)) is None:
        return
    said(problem="", note="")
    state.revision += 1
    try:
        name = archive.take_in(file, check_folder)
        said(note=f"{titled(library.entry(name))} is in the library now. {trash.free(keep=name)}".strip())
    except Exception as e:
        # Whatever a file of others brings about is said here.
        said(problem=sentence(reason(e, "the import", "choose another file")))


def packed(name: str) -> bytes:
    """A run as the bytes of a .zip file."""
    file = io.BytesIO()
    archive.export(name, file)
    return file.getvalue()


def act(what, *arguments) -> None:
    """Do something to the library, and say what kept it from being done."""
    said(problem="", note="")
    try:
        what(*arguments)
    except ValueError as e:
        said(problem=sentence(e))


def said(**words: str) -> None:
    """Keep a problem or a note to be shown."""
    st.session_state.update({f"runs_{name}": text for name, text in words.items()})


def renamed(name: str) -> None:
    """A title was written."""
    title = st.session_state[f"runs-title-{name}-{st.session_state.revision}"]
    act(library.rename, name, title)


def delete(name: str, title: str) -> None:
    """Delete a run, and offer to bring it back."""
    if is_double(f"delete-{name}"):
        return

    def work() -> None:
        """Delete it, and keep what the button Undo needs; what goes wrong is said by `act`."""
        st.session_state.runs_deleted = trash.delete(name), title

    act(work)


def deleted() -> None:
    """What was deleted last, and a button that brings it back."""
    state = st.session_state
    if state.get("runs_deleted"):
        when, title = state.runs_deleted
        with st.container(border=True, horizontal=True, vertical_alignment="center", key="runs-undo-row"):
            st.markdown(f"Deleted: {plain(title)}", width="content")
            st.button("Undo", icon=":material/undo:", on_click=undo, args=(when,), key="runs-undo", shortcut="U")


def undo(when: str) -> None:
    """Bring a deleted run back."""
    st.session_state.runs_deleted = None
    act(trash.undo, when)


def searched() -> None:
    """Let the address say what is searched for."""
    words = st.session_state["runs-search"].strip()
    readdress(("search",), {"search": words} if words else {})


def more() -> None:
    """List more runs."""
    st.session_state.runs_most += AT_ONCE


def comparing(names: list[str]) -> None:
    """Lay over one another what is marked of these runs; the address says which."""
    readdress(("marked", "compare"), {"compare": list(filter(marked_now, names))})
