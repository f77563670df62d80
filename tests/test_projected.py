"""A projected page is read from the back row: no type on it is as small as at a desk."""

import re
from pathlib import Path

from app import components

STYLES = Path(components.__file__).parent
PROJECTED = (STYLES / "shared" / "projected.css").read_text(encoding="utf-8")
LARGE = 15.0
"""Pixels of the smallest type that a projected page has."""
GROWS = ("sk-sentence", "sk-user", "sk-assistant", "sk-recall-grid", "sk-text", "sk-big")
"""What is looked at: it grows, however large it is at a desk."""


def rules(style: str) -> list[tuple[str, str]]:
    """Selectors and declarations of a style."""
    return re.findall(r"([^{}]+)\{([^{}]*)\}", re.sub(r"/\*.*?\*/", "", style, flags=re.DOTALL))


def sized(style: str) -> dict[str, float]:
    """Pixels of type, by the class that a selector ends with."""
    found: dict[str, float] = {}
    for selectors, says in rules(style):
        if (size := re.search(r"font(?:-size)?:(?: max\(|[^;(]*?)(\d*\.?\d+)(px|rem)", says)) is None:
            continue
        for part in re.split(r",(?![^(]*\))", selectors):
            inside = [name or cut for name, cut in re.findall(r"\.(sk-[\w-]+)|\[(data-cut)\]", part)]
            named = inside if "is(" in part else inside[-1:]
            found |= dict.fromkeys(named, float(size[1]) * (16 if size[2] == "rem" else 1))
    return found


def test_all_small_type_grows_on_a_projected_page():
    there, large = {}, sized(PROJECTED)
    for path in STYLES.rglob("*.css"):
        if path.name not in ("projected.css", "alone.css"):
            there |= sized(path.read_text(encoding="utf-8"))
    # The frame around a page is not looked at.
    small = {name for name, size in there.items() if size < LARGE and name not in ("sk-link", "sk-away")}
    assert len(small) > 15 and not {name: there[name] for name in small if large.get(name, 0) < LARGE}
    assert not [name for name in GROWS if large[name] <= there[name]]


def test_no_canvas_and_no_plot_writes_in_a_type_of_one_size():
    fixed = re.compile(r"""["'`]\d+px [a-z]|bare\(theme, \d""")
    assert [path.name for path in STYLES.rglob("*.js") if fixed.search(path.read_text(encoding="utf-8"))] == []
