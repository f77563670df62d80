"""The first start of all, with nothing in the cache, and the end of a server."""

import pytest

from .conftest import started
from .test_live import press_main, wait_read

pytestmark = pytest.mark.browser


def test_a_first_start_is_seen_to_go_on_and_an_end_is_told(page, tmp_path):
    with started(SINKSCOPE_CACHE=str(tmp_path)) as (address, process):
        page.goto(address)
        # The page is there before anything heavy is, and what is waited for is said.
        page.get_by_text("Recompute 128 / 16").first.wait_for()
        press_main(page)
        # The libraries may be there by then, and are not said to be loaded.
        page.locator(".sk-note", has_text="Unpacking the embedded model, once").wait_for()
        page.locator(".sk-note", has_text="Loading SmolLM2-135M").wait_for()
        wait_read(page, 0, 33)
        assert page.problems == [] and page.strangers == []
        assert not page.get_by_role("alert").filter(has_text="server").is_visible()
        process.kill()
        page.get_by_role("alert").filter(has_text="The server has gone").wait_for(timeout=10_000)
