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
import pyarrow.parquet as pq
import pytest
from transformers import MptConfig, MptForCausalLM

from analysis.engine.check import adapt
from analysis.families import ADAPTERS

pytestmark = pytest.mark.whole

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
STORE = '''"""A store that counts what is predicted twice."""

from .banded import BandedStore


class TwiceStore(BandedStore):
    """Keeps what a banded one keeps, and tells twice the NLL."""

    def read(self, begin, chunk, stop):
        predicted = super().read(begin, chunk, stop)
        return predicted._replace(nll=2 * predicted.nll)
'''
OF_STORE = '''"""A policy of a store of its own."""

from dataclasses import dataclass
from typing import ClassVar

from .dense import Dense


@dataclass(frozen=True)
class Twice(Dense):
    """Keeps everything."""

    name: ClassVar[str] = "twice"
    store: ClassVar[str] = "twice"
'''
PAGE = '''"""A page that greets."""

import streamlit as st

st.title("Good morning")
'''
JOB = '''"""A job that counts to three."""

from .base import Job


class CountingJob(Job):
    """Counts."""

    noun = "counting"
    count = 0

    def _steps(self):
        self._set("running")
        for self.count in (1, 2, 3):
            yield
'''
CHAPTER = '''"""What is played with in a chapter that greets."""

import numpy as np
import streamlit as st

from app.lesson.answers import Question

from . import stage


def ask(model, whom):
    return {"words": np.array([model.name, whom])}


def draw(chapter, page):
    ((answer,), about) = stage.answers(page, Question(ask, ("all",)))
    st.write(chapter.say("hello") + " " + " ".join(answer["words"]))
    stage.source(page, about)


PLAY = stage.Play(draw, recorded=(Question(ask, ("all",)),))
'''
CHAPTER_TEXT = """# A greeting

A text.

## Question

Who greets?

## Answer

The chapter.

## Words

- hello: Good evening
"""
ON_SCREEN = """
import time
from streamlit.testing.v1 import AppTest
from app.jobs.counting import CountingJob
from app.jobs.registry import REGISTRY
from app.lesson import lesson
from app.lesson.answers import RECORDED, record
from app.lesson.chapters import PLAYS
from app.pages import PAGES
page = AppTest.from_file("app/" + PAGES["hello"].path, default_timeout=30).run()
print(PAGES["hello"].title(), [title.value for title in page.title])
job = REGISTRY.start(CountingJob)
job.join()
print(job.status, job.count, job.about)
class Model:
    name = "tiny"
record(PLAYS["greeting"].recorded, Model(), "float32", "2026-01-02", RECORDED)
play = [
    "import streamlit as st",
    "from app.lesson import lesson",
    "from app.lesson.chapters import PLAYS",
    "st.session_state.lesson = {}",
    "PLAYS['greeting'].draw(lesson('en')['greeting'], lesson('en')['page'])",
]
chapter = AppTest.from_string("\\n".join(play), default_timeout=30).run()
print(lesson("en")["greeting"].number, [text.value for text in chapter.markdown])
print([text.value for text in chapter.caption])
"""
COMMANDS = """
import json, sys
from pathlib import Path
from analysis.cli import main as cli
for line in sys.stdin:
    sys.argv = ["analysis", *json.loads(line)]
    try:
        cli.main()
    except SystemExit as end:
        print(f"\\0{end.code or 0}\\0", flush=True)
exec(Path("on_screen.py").read_text())
"""
"""Commands one after the other in one process, since most of the time of one goes into its imports."""


class House:
    """A copy of the project to which things are added."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("analysis", "app"):
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        (root / "assets").mkdir()
        for path in (ROOT / "assets").iterdir():
            if path.name == "lesson":
                shutil.copytree(path, root / "assets" / path.name)
            else:
                (root / "assets" / path.name).symlink_to(path)

    def add(self, file: str, content: str, registry: str = "", above: str = "", *lines: str) -> None:
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
        """Exit status and output of each command, and what was on screen after them."""
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
        return [*((int(code), said) for said, code in zip(parts[::2], parts[1::2], strict=False)), (0, parts[-1])]


def mpt_network() -> MptForCausalLM:
    sizes = {"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 97, "max_seq_len": 512, "expansion_ratio": 2}
    return MptForCausalLM(MptConfig(**sizes)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def said(tmp_path_factory, model, text) -> dict:
    """What the commands said in a house to which one of everything has been added."""
    house = House(tmp_path_factory.mktemp("house"))
    policies, figures, families = (f"analysis/{name}/__init__.py" for name in ("policies", "figures", "families"))
    house.add("analysis/policies/even.py", POLICY, policies, "# isort: on", "from .even import Even")
    house.add("analysis/figures/dots.py", FIGURE, figures, "# isort: on", "from .dots import Dots")
    stores, pages = "analysis/engine/kv/__init__.py", "app/pages.py"
    house.add("analysis/engine/kv/twice.py", STORE, stores, "from .store ", "from .twice import TwiceStore")
    house.insert(stores, '    "recomputed"', '    "twice": TwiceStore,')
    house.add("analysis/policies/twice.py", OF_STORE, policies, "# isort: on", "from .twice import Twice")
    house.add(
        "app/views/hello.py", PAGE, pages, "    )\n}", '        Page("hello", "star", {"en": "Hello"}, {"en": "Hi"}),'
    )
    house.add("app/jobs/counting.py", JOB)
    house.add("app/lesson/chapters/greeting.py", CHAPTER)
    house.add("assets/lesson/en/10-greeting.md", CHAPTER_TEXT)
    (house.root / "on_screen.py").write_text(ON_SCREEN)
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
        "store": [*stream, "--model", model, *"--policy dense --policy twice --out".split(), house.root / "twice"],
        "figure": ["figure", "dots", "--run", out, "--out", house.root / "dots.csv"],
        "family": [*family, house.root / "yes"],
    }
    said = dict(zip((*commands, "screen"), house.run(*commands.values()), strict=True))
    assert (house.root / "dots.csv").exists()
    return said | {"tokens": pq.read_table(house.root / "twice" / "tokens.parquet").to_pandas()}


def test_a_policy_is_a_file_and_a_line(said):
    code, listed = said["policies"]
    assert code == 0 and "at even positions of the text" in listed
    code, printed = said["stream"]
    assert code == 0 and "Even positions" in printed


def test_a_figure_is_a_file_and_a_line(said):
    code, listed = said["figures"]
    assert code == 0 and "One dot for the NLL" in listed
    code, printed = said["figure"]
    assert code == 0 and "Dots: " in printed


def test_a_store_is_a_file_and_its_registry_and_a_policy_of_it(said):
    code, printed = said["store"]
    assert code == 0, printed
    dense, twice = (rows.nll.dropna().to_numpy() for _, rows in said["tokens"].groupby("lane"))
    assert len(dense) == 79
    np.testing.assert_allclose(twice, 2 * dense, rtol=1e-6)


def test_a_page_is_a_file_and_a_line_a_job_a_file_and_a_chapter_its_text_and_what_is_played_with(said):
    _, screen = said["screen"]
    kept = "['Recorded, not live: tiny, float32, whom=all, 2026-01-02.']"
    for line in ("Hello ['Good morning']", "finished 3 counting", "10 ['Good evening tiny all']", kept):
        assert line in screen.splitlines(), screen


def test_a_family_with_an_attention_of_its_own_is_a_file_and_its_registry(said, monkeypatch):
    code, printed = said["family"]
    assert code == 0, printed
    # Without them it is refused.
    monkeypatch.delitem(ADAPTERS, "mpt")
    with pytest.raises(ValueError, match="mpt"):
        adapt(mpt_network())
