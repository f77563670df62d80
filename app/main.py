"""The page frame: configuration, navigation, run.  Nothing else.

Streamlit's server imports this file for what it serves with, and runs it for every page that it shows.
"""

import sys
from pathlib import Path

# Streamlit puts this folder on the path; what it imports lies one above.
ROOT = str(Path(__file__).resolve().parent.parent)
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

import streamlit as st

if __name__ != "__main__":
    from app.border import failed
    from app.guard import GUARDS

    app = st.App(__file__, middleware=GUARDS, on_script_error=failed)
else:
    from app.components import presence
    from app.lesson import LANGUAGES, lesson
    from app.opening import opened

    st.set_page_config(
        page_title="Sinkscope", page_icon=f"{ROOT}/assets/logo.png", layout="wide", initial_sidebar_state="auto"
    )
    # The lesson alone is told in several languages; what frames it follows.
    language = st.query_params.get("lang") or st.session_state.get("lesson", {}).get("language")
    say = lesson(language if language in LANGUAGES else "en")["page"].say
    page = st.navigation(
        [
            st.Page("views/live.py", title=say("nav-read"), icon=":material/menu_book:", default=True),
            st.Page("views/chat.py", title=say("nav-chat"), icon=":material/forum:"),
            st.Page("views/heads.py", title=say("nav-heads"), icon=":material/grid_on:"),
            st.Page("views/figures.py", title=say("nav-figures"), icon=":material/image:"),
            st.Page("views/learn.py", title=say("nav-learn"), icon=":material/school:"),
        ],
        position="top",
    )
    # A page reads its address when one comes to it: later the address says what the page shows.
    st.session_state.arrived = st.session_state.get("page") != page.url_path
    if st.session_state.arrived:
        st.session_state.came_from = st.session_state.get("page")
    st.session_state.page = page.url_path
    presence.mount(say("server-gone"))
    st.session_state.offered = bool(st.session_state.get("wanted"))
    if st.session_state.offered:
        from app.panels import slots

        slots.offer(language if language in LANGUAGES else "en")
    if opened(page.url_path, page.title):
        page.run()
