"""Documents are true of the project: every link leads somewhere, and the front door stays short."""

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

from analysis import metrics, parse, texts, tokenize
from analysis.engine.stream import stream

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def anchors(document: Path) -> set[str]:
    """What the headings of a document are linked by."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_perplexity_of_a_quantized_cache_is_what_the_document_tells(embedded):
    """As far as it repeats on another processor: a few tenths of a per cent."""
    told = " ".join((ROOT / "docs" / "policies.md").read_text(encoding="utf-8").split())
    one, other = re.search(r"nothing exact gave ([\d.]+) with AVX-512 and ([\d.]+) with AVX2", told).groups()
    tokens = tokenize(texts.read("hamlet"), embedded.tokenizer, limit=1025)
    policy = parse("streaming:sinks=4,window=252,cache=int4,exact=0")
    found = metrics.perplexity(np.concatenate([step.nll for step in stream(embedded, tokens, [policy], chunk=512)]))
    assert 0.997 * float(one) <= found <= 1.003 * float(other)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_to_a_file_leads_to_it(document):
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", document.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_front_door_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_every_room_stands_in_the_plan():
    plan = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for house in ("analysis", "app"):
        rooms = [p for p in (ROOT / house).iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()]
        for room in rooms:
            name = f"{room.name}/" if room.is_dir() else room.name
            assert room.name == "__init__.py" or name in plan, f"{house}/{name} is not in docs/architecture.md"


def test_few_entries_stand_directly_in_the_library():
    entries = [p for p in (ROOT / "analysis").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()]
    assert len(entries) <= 20


def test_no_file_is_longer_than_a_few_screens():
    long = [
        f"{path.relative_to(ROOT)}: {count}"
        for folder in ("analysis", "app", "tests")
        for suffix in ("py", "js", "css")
        for path in (ROOT / folder).rglob(f"*.{suffix}")
        if "static" not in path.parts and (count := len(path.read_text(encoding="utf-8").splitlines())) > 400
    ]
    assert not long


def test_the_version_is_said_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation, changes = ((ROOT / name).read_text(encoding="utf-8") for name in ("CITATION.cff", "CHANGELOG.md"))
    assert f"\nversion: {project['version']}\n" in citation and f"## {project['version']}" in changes
    # What has not been released has no day on which it was.
    assert ("date-released:" in citation) != (f"## {project['version']} (unreleased)" in changes)
