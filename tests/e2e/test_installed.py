"""The wheel, installed into an empty environment: its commands and its page, far from the checkout.

Only what it depends on is shared with the tests' own environment, since torch takes long to install.
"""

import os
import subprocess
import sys
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

from .conftest import ROOT, started
from .test_live import press_main, wait_read

EVERY_MODULE = """
import importlib, sys
from pathlib import Path
import sinkscope

root = Path(sinkscope.__file__).parent
for path in sorted(root.rglob("*.py")):
    parts = path.relative_to(root.parent).with_suffix("").parts
    # Scripts that Streamlit runs, and commands.
    if "views" not in parts and parts != ("sinkscope", "app", "main") and parts[-1] != "__main__":
        importlib.import_module(".".join(parts).removesuffix(".__init__"))
own = [(name, file) for name, m in list(sys.modules.items()) if str(root) in (file := str(getattr(m, "__file__", "")))]
assert len(own) > 300, own
assert len({file for _, file in own}) == len(own), "a module has two names"
assert all(name.split(".")[0] == "sinkscope" for name, _ in own)
assert sinkscope.parse("window:window=64") == sinkscope.analysis.policies.parse("window:window=64")
print(*sinkscope.__path__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this checkout."""
    place = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", place, ROOT], check=True)
    (made,) = place.iterdir()
    return made


@pytest.fixture(scope="module")
def binaries(wheel, tmp_path_factory) -> Path:
    """The commands of an environment that has the wheel and nothing else of its own."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", home / "bin" / "python", "install", "--quiet", "--no-index"]
    subprocess.run([*pip, "--no-deps", wheel], check=True)
    (packages,) = home.glob("lib/python*/site-packages")
    assert {path.name.split("-")[0] for path in packages.iterdir()} == {"sinkscope"}
    (packages / "dependencies.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")))
    return home / "bin"


def said(folder: Path, *command: str | Path) -> str:
    """What a command says that is run in a folder, and ends well."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_name_stands_on_top_and_no_file_is_missing(wheel):
    with ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"sinkscope"}
    wanted = {f"sinkscope/{p.relative_to(ROOT)}" for p in (ROOT / "app").rglob("*.*") if "__pycache__" not in p.parts}
    assert {name for name in wanted if (ROOT / name.partition("/")[2]).is_file()} <= set(names)
    assert sum(name.startswith("sinkscope/assets/gallery/") for name in names) > 40


def test_every_module_can_be_imported_and_has_one_name(binaries, tmp_path):
    where = said(tmp_path, binaries / "python", "-W", "ignore", "-c", EVERY_MODULE)
    assert str(binaries.parent) in where


def test_commands_work_from_any_folder_and_name_themselves(binaries, tmp_path):
    command = binaries / "sinkscope"
    assert "streaming" in said(tmp_path, command, "policies")
    lanes = ("--policy", "dense", "--policy", "streaming:sinks=4,window=12")
    told = said(tmp_path, command, "stream", "--model", "tiny-gpt-oss", "--tokens", "40", *lanes, "--out", "run")
    assert "Finished. The run lies in run" in told
    shown = said(tmp_path, binaries / "python", "-c", "import sinkscope; print(sinkscope.show('run'))")
    assert shown == "hamlet, read by Tiny gpt-oss: 40 tokens, 2 lanes\n"
    said(tmp_path, binaries / "python", "-m", "sinkscope", "report", "--run", "run", "--out", "run.html")
    assert "sinkscope stream" in (tmp_path / "run.html").read_text(encoding="utf-8")


@pytest.mark.browser
def test_the_page_opens_plays_and_reads_far_from_the_checkout(page, binaries, tmp_path):
    with started([str(binaries / "sinkscope"), "app"], tmp_path, SINKSCOPE_RUNS=str(tmp_path / "runs")) as (at, _):
        page.goto(at)
        page.get_by_text("Recompute 128 / 16").first.wait_for()
        press_main(page)
        wait_read(page, 0, 33)
        page.goto(f"{at}/learn")
        page.locator("h1, h2").first.wait_for()
        page.goto(f"{at}/runs")
        page.get_by_role("button", name="Pin").first.wait_for()
        assert page.problems == [] and page.strangers == []
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}
