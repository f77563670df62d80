"""The app as a person starts it, and a browser to look at it with."""

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

import pytest

ROOT = Path(__file__).parents[2]
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
SECONDS = 600
"""After which a story has failed."""
PATIENCE = 90_000
"""Milliseconds that something may take on a slow machine; all of it comes much sooner."""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


IN_CHECKOUT = (sys.executable, "-m", "streamlit", "run", "app/main.py")


@contextmanager
def started(
    command: Sequence[str] = IN_CHECKOUT, folder: Path = ROOT, **variables: str
) -> Generator[tuple[str, subprocess.Popen]]:
    """The app as a person starts it, by a command in a folder, with these variables in its environment: its address,
    with the path below which it is served, and its process."""
    port = free_port()
    command = [*command, "--server.headless=true", f"--server.port={port}"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **variables}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            below = variables.get("STREAMLIT_SERVER_BASE_URL_PATH", "").strip("/")
            address = f"http://127.0.0.1:{port}/{below}".rstrip("/")
            wait_for_server(address, process, log)
            yield address, process
        finally:
            process.terminate()
            process.wait(10)


def wait_for_server(address: str, process: subprocess.Popen, log: BinaryIO, seconds: float = 60) -> None:
    """Return once the server answers; fail with what it wrote to its log where it ends before, or takes too long."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        try:
            urllib.request.urlopen(f"{address}/_stcore/health", timeout=1)
            return
        except OSError:
            time.sleep(0.25)
    status = "does not answer" if process.poll() is None else f"ended with status {process.returncode}"
    log.seek(0)
    pytest.fail(f"the app's server {status}; its log:\n{log.read().decode(errors='replace')}", pytrace=False)


@pytest.fixture(scope="session")
def app():
    """The address of the app that the tests share."""
    with started() as (address, _):
        yield address


@pytest.fixture(scope="session")
def browser(chromium):
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


def asked_below(message) -> bool:
    """Whether this is Streamlit, which on a page with a path of its own asks for its server below that path first."""
    pages = "chat|heads|recall|verdict|figures|runs|learn"
    return bool(re.search(rf"/({pages})/_stcore/(health|host-config)$", message.location.get("url", "")))


def wait_until(page, expression: str, arg=None, timeout: float = PATIENCE) -> None:
    """What `page.wait_for_function` does, in a page whose content security policy lets nobody evaluate text in it."""
    from playwright.sync_api import Error

    end = time.monotonic() + timeout / 1000
    while True:
        try:
            if page.evaluate(expression, arg):
                return
        except Error as e:
            # The page is just being loaded again.
            if "context was destroyed" not in str(e):
                raise
        assert time.monotonic() < end, f"this never came true: {expression}"
        page.wait_for_timeout(50)


def choose(page, box, option: str, typed: str = "") -> None:
    """Choose an option of a box, which shows it once this is typed.

    What stands in for a widget until its script has come is smaller than it, and a list that is open closes when the
    page moves below it.
    """
    from playwright.sync_api import expect

    expect(page.get_by_test_id("stSkeleton")).to_have_count(0)
    box.click()
    page.keyboard.type(typed)
    page.get_by_role("option", name=option).click()


def cut_labels(page) -> list[str]:
    """Texts of plots that stick out of their plot, and texts of rows that do not fit into them."""
    return page.evaluate(
        """() => [
          ...[...document.querySelectorAll(".sk-plot")].flatMap((plot) => {
            const room = plot.getBoundingClientRect();
            return [...plot.querySelectorAll("text, .sk-texts span")].filter((text) => {
              const at = text.getBoundingClientRect();
              const beside = at.left < room.left - 1 || at.right > room.right + 1;
              return at.width && (beside || at.top < room.top - 1 || at.bottom > room.bottom + 1);
            });
          }),
          ...[...document.querySelectorAll(".sk-row > *, .sk-title, .sk-toolbar > *, .sk-segments > *, .sk-below")]
            .filter((node) => node.scrollWidth > node.clientWidth + 1 && node.clientWidth),
        ].map((node) => node.textContent)"""
    )


@pytest.fixture
def page(browser):
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.wait_for_function = partial(wait_until, page)
    page.problems = []
    page.strangers = []
    page.on("pageerror", lambda e: page.problems.append(str(e)))
    page.on("console", lambda m: page.problems.append(m.text) if m.type == "error" and not asked_below(m) else None)
    page.on(
        "request", lambda r: page.strangers.append(r.url) if re.match(r"https?://(?!127\.0\.0\.1)", r.url) else None
    )
    yield page
    context.close()


def pytest_collection_modifyitems(items):
    """Stories in a browser take longer than unit tests, and the first of them starts the app."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SECONDS))
