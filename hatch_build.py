"""The build of the wheel: the package `sinkscope`, with `analysis`, `app` and what they read of `assets` inside.

In a checkout `analysis` and `app` stand on top.  Names as common as these belong to nobody in an environment that many
share, so the wheel has them inside a package, and every `from analysis…` or `from app…` becomes `from
sinkscope.analysis…`.  Any other way of naming one of their modules would work in a checkout and fail when it is
installed: then there is no wheel, but a sentence with file and line.
"""

import ast
import re
import shutil
import tempfile
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "sinkscope"
HOUSES = ("analysis", "app")
DOCUMENTS = ("screenshots", "figures", "examples")
"""Folders of assets that only documents show."""
KEPT_BESIDE = shutil.ignore_patterns("__pycache__", "summary.json")
"""What Python and the library of runs keep beside files."""
INIT = '''"""Sinkscope, installed: what a notebook needs most comes from here, and the library is `analysis`."""

from .analysis import __dir__, __getattr__
'''
MAIN = '''"""`python -m sinkscope`: the command `sinkscope`."""

from .analysis.__main__ import main

if __name__ == "__main__":
    main()
'''
NAMED = re.compile(r"analysis|(analysis|app)\.[\w.]*|.*-m (analysis|app)\b.*", re.DOTALL)
"""A string that names a module, or a command of a checkout."""


class Wheel(BuildHookInterface):
    """Puts the package together in a temporary folder, from which hatchling packs it."""

    def initialize(self, version: str, build_data: dict) -> None:
        """Called by hatchling before it packs.  Raises ValueError where the installed package could not work."""
        if version == "editable":
            raise ValueError("an editable install has no package sinkscope: in a checkout, run python -m analysis")
        self.folder = tempfile.TemporaryDirectory(prefix="sinkscope-wheel-")
        package = Path(self.folder.name) / PACKAGE
        put_together(Path(self.root), package)
        build_data["force_include"][str(package)] = PACKAGE

    def finalize(self, version: str, build_data: dict, artifact_path: str) -> None:
        """Called by hatchling when the wheel is there."""
        self.folder.cleanup()


def put_together(root: Path, package: Path) -> None:
    """Write the package of a checkout.  Raises ValueError where a module is named in a way that cannot be renamed."""
    for house in HOUSES:
        shutil.copytree(root / house, package / house, ignore=KEPT_BESIDE)
        for path in (package / house).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            path.write_text(renamed(text, str(path.relative_to(package))), encoding="utf-8")
    shutil.copytree(root / "assets", package / "assets", ignore=KEPT_BESIDE)
    for folder in DOCUMENTS:
        shutil.rmtree(package / "assets" / folder)
    (package / "__init__.py").write_text(INIT, encoding="utf-8")
    (package / "__main__.py").write_text(MAIN, encoding="utf-8")


def renamed(text: str, name: str) -> str:
    """A module as it stands in the package: what it imports from `analysis` and `app` comes from `sinkscope`.

    Raises ValueError, with the line in the file `name`, where it names a module of them in any other way.
    """
    lines = text.encode().splitlines(keepends=True)
    nodes = list(ast.walk(ast.parse(text)))
    documentation = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        where = f"{name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.ImportFrom) and not node.level and _top(node.module) in HOUSES:
            line, at = lines[node.lineno - 1], node.col_offset
            if not line.startswith(f"from {node.module} ".encode(), at):
                raise ValueError(f"{where}: write `from {node.module} import …` at the start of a line")
            lines[node.lineno - 1] = line[:at] + line[at:].replace(b"from ", f"from {PACKAGE}.".encode(), 1)
        elif isinstance(node, ast.Import) and any(_top(alias.name) in HOUSES for alias in node.names):
            raise ValueError(f"{where}: write `from … import …` instead of this import, which cannot be renamed")
        elif isinstance(node, ast.Constant) and id(node) not in documentation and NAMED.fullmatch(str(node.value)):
            raise ValueError(f"{where}: {node.value!r} names a module by a string: take it from a `__name__`")
    return b"".join(lines).decode()


def _top(module: str | None) -> str:
    return (module or "").partition(".")[0]
