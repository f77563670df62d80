"""The page frame: configuration, navigation, run.  Nothing else.

Streamlit's server imports this file for what it serves with, and runs it for every page that it shows.
"""

import sys
from pathlib import Path

# In a checkout Streamlit puts this folder on the path, and what it imports lies one above.  An installed package is
# found without, and may have no second name there.
ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / "__init__.py").exists() and str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import streamlit as st

if __name__ != "__main__":
    from streamlit import config

    from analysis.engine import allocator
    from app import prepared
    from app.border import failed
    from app.guard import GUARDS
    from app.routes import below

    # Before there are threads, so that those which read have the same pool of memory.
    allocator.keep_freed()
    routes = below(config.get_option("server.baseUrlPath"))
    app = st.App(__file__, routes=routes, middleware=GUARDS, on_script_error=failed)
    prepared.begin()
else:
    from streamlit.runtime.scriptrunner import get_script_run_ctx

    from analysis import APP, resource
    from app import address_bar
    from app.components import presence
    from app.lesson import LANGUAGES, lesson
    from app.opening import opened
    from app.pages import PAGES

    st.set_page_config(
        page_title="Sinkscope", page_icon=resource("assets/logo.png"), layout="wide", initial_sidebar_state="auto"
    )
    # Only the lesson is told in several languages; the frame around it follows.
    asked = st.query_params.get("lang") or st.session_state.get("lesson", {}).get("language")
    language = asked if asked in LANGUAGES else "en"
    chosen = st.navigation(
        [
            st.Page(p.path, title=p.title(language), icon=f":material/{p.icon}:", default=i == 0)
            for i, p in enumerate(PAGES.values())
        ],
        position="top",
    )
    page = PAGES[chosen.url_path or next(iter(PAGES))]
    # A page reads its address when a person comes to it, by back and forward too: later the address says what the page
    # shows.  Whoever goes back finds what the address says, and whoever comes by the navigation what was left there.
    context = get_script_run_ctx()
    st.session_state.returned = context is not None and context.is_history_navigation
    st.session_state.arrived = st.session_state.returned or st.session_state.get("page") != page.name
    address_bar.hear(arrived=st.session_state.arrived)
    if st.session_state.get("page") != page.name:
        st.session_state.came_from = st.session_state.get("page")
        # What was pressed on the page that was left begins nothing on this one.
        st.session_state.pop("pressed", None)
    st.session_state.page = page.name
    say = lesson(language)["page"].say
    presence.mount(say("server-gone", app=APP))
    st.session_state.offered = bool(st.session_state.get("wanted"))
    if st.session_state.offered:
        from app.panels import slots

        slots.offer(language)
    if opened(page, language):
        chosen.run()
    else:
        # A person still comes to it, and it reads its address then.
        st.session_state.page = st.session_state.came_from
