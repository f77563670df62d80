"""A handful of addresses of each page: the same ones each time, and others for each change of the code."""

from pathlib import Path

import pytest

from app.libraries import LIBRARIES

from . import addresses, fresh

pytestmark = pytest.mark.whole


@pytest.mark.parametrize(
    "page",
    ["read", "chat", "heads", "recall", "verdict", "figures", "runs", pytest.param("learn", marks=pytest.mark.real)],
)
def test_any_address_opens_its_page(page):
    for seed in (1, fresh()):
        (row,) = addresses.rows(seed, 4, (page,))
        assert row.tries == 4 and not row.failures, f"seed {seed}: {row.failures}"


@pytest.mark.real
@pytest.mark.parametrize("name", addresses.NAMES[1:3], ids=["picture", "link"])
def test_what_a_lesson_is_asked_wrongly_is_told_as_text(name):
    LIBRARIES.load()
    assert addresses.opened("learn", {"logits": [name]}, addresses.the_watch()) is True


def test_the_fuzzer_sees_what_it_looks_for():
    watch = addresses.Watch()
    with watch.watching() as seen, pytest.raises(FileNotFoundError):
        Path(f"/{addresses.MARK}").read_bytes()
    assert seen
    assert sum(bool(addresses.live(f"It is {name} here")) for name in addresses.NAMES) >= 8
