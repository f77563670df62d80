"""The laws of the modules in the wheel: they are those of the checkout, but for where they import from."""

import ast
import json
import re
from pathlib import Path

import pytest

from hatch_build import put_together, renamed

pytestmark = pytest.mark.whole

ROOT = Path(__file__).parent.parent


def test_imports_come_from_the_package_and_nothing_else_changes():
    text = '"""Of `from analysis import x`, é."""\nfrom analysis import y\ndef f():\n    from app.jobs import base\n'
    wanted = text.replace("\nfrom analysis", "\nfrom sinkscope.analysis").replace("from app", "from sinkscope.app")
    assert renamed(text, "x.py") == wanted
    other = (
        "from .app import x\nfrom ..analysis.y import z\nfrom application import a\nimport apple\nx = 'app, analysis'\n"
    )
    assert renamed(other, "x.py") == other


@pytest.mark.parametrize(
    "line",
    [
        "import analysis",
        "import os, app.pages as pages",
        "from  analysis import texts",
        "x = 1; from app import a; from app import b",
        "import_module('analysis.engine.stream')",
        "import_module(f'app.jobs.{name}')",
        "words = ['python', '-m', 'analysis']",
        "say(f'To go on: python -m analysis resume {path}')",
    ],
)
def test_a_module_that_is_named_in_another_way_is_refused_with_its_line(line):
    with pytest.raises(ValueError, match=r"^app/x\.py:2: "):
        renamed(f"\n{line}\n", "app/x.py")


def test_every_module_stands_in_the_package_and_no_absolute_import_of_the_checkout_is_left(tmp_path):
    put_together(ROOT, tmp_path / "sinkscope")
    for house in ("analysis", "app"):
        modules = {p.relative_to(ROOT) for p in (ROOT / house).rglob("*.py")}
        assert modules == {
            p.relative_to(tmp_path / "sinkscope") for p in (tmp_path / "sinkscope" / house).rglob("*.py")
        }
        for path in modules:
            text = (tmp_path / "sinkscope" / path).read_text(encoding="utf-8")
            for node in ast.walk(ast.parse(text)):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
                assert not {name.split(".")[0] for name in names} & {"analysis", "app"}, f"{path}:{node.lineno}"
            assert text.replace("from sinkscope.", "from ") == (ROOT / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["compare-two-policies", "first-steps"])
def test_what_a_notebook_says_of_its_imports_is_true_of_the_package(name, tmp_path):
    put_together(ROOT, tmp_path / "sinkscope")
    cells = json.loads((ROOT / "assets" / "examples" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    words, code = (
        "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == kind)
        for kind in ("markdown", "code")
    )
    (other,) = re.findall(r"installed as a package, write `([\w.]+)` for `analysis`", words)
    modules = re.findall(r"^from analysis([\w.]*) import", code, re.M)
    assert len(modules) > 2
    for module in modules:
        place = tmp_path.joinpath(*f"{other}{module}".split("."))
        assert (place / "__init__.py").exists() or place.with_suffix(".py").exists(), module
