"""What the house promises: a new one of anything is one new file, and lines in one registry.

Each is really added, to a copy of the project, and then seen to work on the command line.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import MptConfig, MptForCausalLM

from analysis.engine.check import adapt
from analysis.families import ADAPTERS

ROOT = Path(__file__).parent.parent
POLICY = '''"""Even positions: a rule that nobody wants."""

from dataclasses import dataclass
from typing import ClassVar

from .ranked import LayerState, Ranked


@dataclass(frozen=True)
class Even(Ranked):
    """Keeps the tokens at even positions of the text before those at odd ones."""

    name: ClassVar[str] = "even"
    title: ClassVar[str] = "Even positions"

    def score(self, state: LayerState):
        return (state.positions % 2 == 0).float()
'''
FIGURE = '''"""The NLL of every token, one dot each."""

from dataclasses import dataclass
from typing import ClassVar

from .base import Figure


@dataclass(frozen=True)
class Dots(Figure):
    """One dot for the NLL of each token of the first lane."""

    name: ClassVar[str] = "dots"
    title: ClassVar[str] = "Dots"
    needs: ClassVar[str] = "run"

    def numbers(self, source):
        return {"nll": source.tracks[0].nll.view()}

    def draw(self, data, *, ax=None):
        ax.plot(data["nll"], ".")
        return ax
'''
COMMANDS = """
import json, sys
from analysis.cli import main as cli
for line in sys.stdin:
    sys.argv = ["analysis", *json.loads(line)]
    try:
        cli.main()
    except SystemExit as end:
        print(f"\\0{end.code or 0}\\0", flush=True)
"""
"""Commands one after the other in one process, since most of the time of one goes into its imports."""


class House:
    """A copy of the project to which things are added."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("analysis", "app"):
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        (root / "assets").symlink_to(ROOT / "assets")

    def add(self, file: str, content: str, registry: str, above: str, *lines: str) -> None:
        """A new file, and lines in a registry above the one that begins with some words: nothing else."""
        assert not (self.root / file).exists()
        (self.root / file).write_text(content, encoding="utf-8")
        for line in lines:
            self.insert(registry, above, line)

    def insert(self, registry: str, above: str, line: str) -> None:
        old = (self.root / registry).read_text(encoding="utf-8")
        before, found, after = old.partition(f"\n{above}")
        assert found, f"{registry} has no line that begins with {above!r}"
        (self.root / registry).write_text(f"{before}\n{line}{found}{after}", encoding="utf-8")

    def take(self, file: str, registry: str, *lines: tuple[str, str]) -> str:
        """Take one away that there is, and give its file."""
        content = (self.root / file).read_text(encoding="utf-8")
        (self.root / file).unlink()
        text = (self.root / registry).read_text(encoding="utf-8")
        for old, new in lines:
            assert text.count(old) == 1, f"{registry} has not {old!r} once"
            text = text.replace(old, new)
        (self.root / registry).write_text(text, encoding="utf-8")
        return content

    def run(self, *commands: list) -> list[tuple[int, str]]:
        """Exit status and output of each command."""
        done = subprocess.run(
            [sys.executable, "-c", COMMANDS],
            input="".join(json.dumps([str(part) for part in command]) + "\n" for command in commands),
            cwd=self.root,
            env=os.environ | {"COLUMNS": "200", "PYTHONPATH": "", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        parts = done.stdout.split("\0")
        assert len(parts) == 2 * len(commands) + 1, done.stdout
        return [(int(code), said) for said, code in zip(parts[::2], parts[1::2], strict=False)]


def mpt_network() -> MptForCausalLM:
    sizes = {"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 97, "max_seq_len": 512, "expansion_ratio": 2}
    return MptForCausalLM(MptConfig(**sizes)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def said(tmp_path_factory, model, text) -> dict[str, tuple[int, str]]:
    """What the commands said in a house to which one of everything has been added."""
    house = House(tmp_path_factory.mktemp("house"))
    policies, figures, families = (f"analysis/{name}/__init__.py" for name in ("policies", "figures", "families"))
    house.add("analysis/policies/even.py", POLICY, policies, "# isort: on", "from .even import Even")
    house.add("analysis/figures/dots.py", FIGURE, figures, "# isort: on", "from .dots import Dots")
    mpt = house.take("analysis/families/mpt.py", families, (", mpt", ""), (', "mpt": mpt.adapt', ""))
    tiny = house.root / "mpt"
    mpt_network().save_pretrained(tiny)
    ids = house.root / "ids.npy"
    np.save(ids, np.load(text)[:80])
    stream = ["stream", "--text", ids, "--device", "cpu", "--chunk", "16"]
    out = house.root / "run"
    family = [*stream, "--model", tiny, "--policy", "window:window=8", "--out"]
    house.add("analysis/families/mpt.py", mpt, families, "ADAPTERS", "from . import mpt")
    house.insert(families, "class Family", 'ADAPTERS["mpt"] = mpt.adapt')
    commands = {
        "policies": ["policies"],
        "figures": ["figures"],
        "stream": [*stream, "--model", model, "--policy", "even:budget=16,recent=4", "--out", out],
        "figure": ["figure", "dots", "--run", out, "--out", house.root / "dots.csv"],
        "family": [*family, house.root / "yes"],
    }
    said = dict(zip(commands, house.run(*commands.values()), strict=True))
    assert (house.root / "dots.csv").exists()
    return said


def test_a_policy_is_a_file_and_a_line(said):
    code, listed = said["policies"]
    assert code == 0 and "at even positions of the text" in listed
    code, told = said["stream"]
    assert code == 0 and "Even positions" in told


def test_a_figure_is_a_file_and_a_line(said):
    code, listed = said["figures"]
    assert code == 0 and "One dot for the NLL" in listed
    code, told = said["figure"]
    assert code == 0 and "Dots: " in told


def test_a_family_with_an_attention_of_its_own_is_a_file_and_its_registry(said, monkeypatch):
    code, told = said["family"]
    assert code == 0, told
    # Without them it is refused.
    monkeypatch.delitem(ADAPTERS, "mpt")
    with pytest.raises(ValueError, match="mpt"):
        adapt(mpt_network())
