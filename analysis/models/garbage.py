"""How often Python looks for objects that only refer to one another."""

import gc
from collections.abc import Generator
from contextlib import contextmanager

SELDOM = 50_000
"""New objects after which they are looked for; by itself Python does so after 700."""


@contextmanager
def seldom() -> Generator[None]:
    """Look for them seldom in here.  What imports large libraries makes hundreds of thousands of objects that stay, and
    to look them through again and again takes a sixth of its time."""
    usual = gc.get_threshold()
    gc.set_threshold(SELDOM, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)
