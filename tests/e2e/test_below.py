"""The app below a path, as behind a proxy: recordings, live frames and files come from below that path as well."""

import re

import pytest

from .conftest import started
from .test_live import wait_read

pytestmark = pytest.mark.browser


def test_all_of_a_page_comes_from_below_the_path_of_the_app(page):
    elsewhere = []
    with started(STREAMLIT_SERVER_BASE_URL_PATH="sinkscope") as (app, _):
        own = (f"{app}/", "data:", "blob:")
        page.on("request", lambda r: elsewhere.append(r.url) if not r.url.startswith(own) else None)
        page.goto(f"{app}/")
        # The story of a fresh start is a recording.
        page.wait_for_function("window.__sinkscope?.published > 20")
        page.get_by_role("button", name="Run it live").click()
        page.locator(".sk-player").wait_for(state="detached")
        wait_read(page, 3, 100)
        page.get_by_role("button", name="Stop").click()
        page.get_by_text("Stopped.").wait_for()
        page.get_by_role("link", name="Figures").click()
        with page.expect_download() as file:
            page.get_by_role("link", name=re.compile(r"^Download .*\.pdf")).click()
        assert file.value.path().read_bytes().startswith(b"%PDF")
        assert not elsewhere and not page.problems
