"""Fuzzes the addresses of every page: whatever is asked, a page shows what it has and says the rest in a sentence.

Each try opens a page as a new tab does.  A failure is an exception, a name of the address that reaches a file or the
network, or a text of it that the page would take for Markdown.
"""

import random
import re
import sys
import traceback
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from streamlit.testing.v1 import AppTest

from analysis import texts
from analysis.experiments.recall.asked import Asked
from analysis.experiments.verdict import Plan
from analysis.lab.recipe import Recipe
from analysis.policies import POLICIES
from analysis.runs.spec import Sampling, Spec
from app import address, parameters
from app.jobs.ablation import AblationJob
from app.jobs.capture import CaptureJob
from app.jobs.chat import ChatJob
from app.jobs.measures import MeasuresJob
from app.jobs.reading import ReadingJob
from app.jobs.recall import RecallJob
from app.jobs.registry import REGISTRY
from app.jobs.training import TrainingJob
from app.jobs.verdict import VerdictJob
from app.libraries import LIBRARIES

from .parsers import Row, settings
from .spoil import NASTY, spoiled_text

MAIN = str(Path(__file__).parents[2] / "app" / "main.py")
PAGES = ("read", "chat", "heads", "recall", "verdict", "figures", "runs", "learn")
MARK = "zqmark"
"""Part of every name that an address must not pass on."""
NAMES = (
    f"http://127.0.0.1:9/{MARK}", f"![x](http://127.0.0.1:9/{MARK}.png)", f"[x](http://127.0.0.1:9/{MARK})", f"/{MARK}",
    f"../{MARK}", f"~/{MARK}", f"{MARK}/{MARK}", f"file:///{MARK}", f"//{MARK}/x", f"\\\\{MARK}\\x", f"{MARK}.gguf",
    f"<img src=http://127.0.0.1:9/{MARK}>", f"$\\href{{http://{MARK}}}{{x}}$", f":material/{MARK}:", f"# {MARK}",
    f"- ![x](http://127.0.0.1:9/{MARK})", f"{MARK}\n\n    x\n\n![x](http://127.0.0.1:9/{MARK})", f"www.{MARK}.com",
)  # fmt: skip
PARAMETERS = {
    "read": (*"lane model text bos special run mode paint grid fidelity reference shown head".split(),),
    "chat": ("lane", "model", "bos", "special", "run", "shown", "head", "token", "script"),
    "heads": ("run", "bos", "special", "model", "text", "layer", "head", "panel"),
    "recall": ("run", "lane", "model", "bos", "task", "lengths", "depths", "repeats", "question", "measured", "cell"),
    "verdict": ("run", "lane", "model", "budgets", "kl", "tasks", "texts", "tokens", "lengths", "quality", "cost"),
    "figures": ("run", "figure", "folder", "venue", "points", "file", "dpi", "grey"),
    "runs": ("compare", "search", "run", "projected", "mode", "lanes"),
    "learn": ("chapter", "lang", "bos", "projected", "run", "sentence", "head", "logits", "cuts", "recipe", "step"),
}
RIGHT = {
    "text": ("hamlet", "macbeth"), "bos": ("auto", "on", "off"), "special": ("text", "tokens"), "model": ("embedded",),
    "mode": ("relative", "rolling", "cumulative"), "paint": ("nll", "attention"), "reference": ("0", "1"),
    "shown": ("0", "1"), "head": ("0.0", "20.3"), "token": ("7",), "chapter": ("1", "9", "row", "first", "chunks"),
    "lang": ("en", "zh"), "projected": ("1",), "sentence": ("Other words of my own",), "logits": ("1,2,3",),
    "cuts": ("2,4",), "recipe": ("steps=20,seed=1",), "step": ("20",), "script": ("memory", "sha256:0123456789abcdef"),
    "venue": ("acl",), "points": ("7.5",), "file": ("svg",), "dpi": ("150",), "grey": ("1",), "lanes": ("0.1",),
    "panel": ("maps",), "figure": ("perplexity",), "task": ("needle:haystack=hamlet", "copy:items=3", "jsonl"),
    "lengths": ("64,128",), "depths": ("2.5,50",), "repeats": ("2",), "question": ("blind",), "measured": ("nll",),
    "cell": ("0,64,50",), "fidelity": ("on",), "grid": ("output error",), "budgets": ("32,64", "16"), "kl": ("0", "1"),
    "texts": ("hamlet,macbeth",), "tokens": ("300",), "tasks": ("passkey,needle:haystack=hamlet", "arc", "jsonl"),
    "quality": ("kl", "passkey"), "cost": ("megabytes",),
}  # fmt: skip
SHOWN = ("markdown", "alert", "button", "popover", "expandable", "heading", "metric", "progress", "page_link")
TOUCHING = ("open", "os", "socket", "shutil", "subprocess", "urllib", "glob", "tempfile", "http", "pathlib")
"""Kinds of events that reach out of the process."""
COMMON = MarkdownIt("gfm-like", {"linkify": False})


class Watch:
    """Notes whatever opens, lists, starts or connects to something that an address named."""

    def __init__(self) -> None:
        self.on, self.seen = False, []
        # It cannot be taken off again, only switched off.
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple) -> None:
        if self.on and event.partition(".")[0] in TOUCHING:
            told = " ".join(a if isinstance(a, str) else repr(a) for a in arguments[:3])
            if MARK in told:
                self.seen.append(f"{event} {told[:120]}")

    @contextmanager
    def watching(self) -> Iterator[list[str]]:
        self.on, self.seen = True, []
        try:
            yield self.seen
        finally:
            self.on = False


@cache
def the_watch() -> Watch:
    """The only one, since what looks at events of Python stays until the process ends."""
    return Watch()


def rows(seed: int, tries: int, pages: tuple[str, ...] = PAGES) -> Generator[Row]:
    """Opens each page so often."""
    LIBRARIES.load()
    for page in pages:
        chance, refused, failures = random.Random(f"{seed} {page}"), 0, []
        with some_runs() as runs:
            for _ in range(tries):
                asked = query(page, chance, runs)
                found = opened(page, asked, the_watch())
                refused += found is True
                if isinstance(found, str):
                    failures.append(f"{page}?{asked!r:.400}: {found}")
        yield Row(f"address of {page}", tries, refused, failures)


def query(page: str, chance: random.Random, runs: list[str]) -> dict[str, list[str]]:
    """Parameters of an address."""
    asked = {}
    for name in chance.sample(PARAMETERS[page], chance.randint(1, min(4, len(PARAMETERS[page])))):
        count = chance.randint(1, 3) if name == "lane" else chance.choice((1, 1, 1, 2))
        asked[name] = [value(name, chance, runs) for _ in range(count)]
    if chance.random() < 0.1:
        asked[spoiled_text("lane", chance)] = [chance.choice(NAMES)]
    return asked


def value(name: str, chance: random.Random, runs: list[str]) -> str:
    if chance.random() < 0.25:
        return chance.choice((*NAMES, *NASTY, "9" * 400, "x" * 20_000, "-9" * 20))
    if name == "run":
        return chance.choice([*runs, "gone"])
    if name == "lane":
        policy = settings(str(chance.choice(list(POLICIES.values()))()), chance)
        how = chance.randrange(4)
        if how == 0:
            return spoiled_text(policy, chance)
        if how == 1:
            return f"duo:scores={chance.choice(NAMES)}"
        return f"dense:first={chance.choice(NAMES)}" if how == 2 else policy
    usual = chance.choice(RIGHT.get(name, NAMES))
    return usual if chance.random() < 0.6 else spoiled_text(usual, chance)


@contextmanager
def some_runs() -> Iterator[list[str]]:
    """One run of each kind, found by its id on any page; their models are not to be had."""
    spec = Spec(f"nowhere/{MARK[:4]}", "hamlet", ("dense",), 64, sampling=Sampling())
    text = texts.play("hamlet")
    kinds = (
        partial(ReadingJob, spec, text), partial(ChatJob, spec), partial(AblationJob, spec, text, "values", None),
        partial(CaptureJob, spec, text, ""), partial(MeasuresJob, spec, text, 4, 4),
        partial(RecallJob, spec, Asked("passkey", (128,), (50.0,), 1, 0)),
        partial(VerdictJob, Plan(spec, ("window",), (32,), ("perplexity",), ("hamlet",), (), ())),
        partial(TrainingJob, [Recipe("softmax", width=16, vocabulary=24, length=16, batch=4, steps=2)]),
    )  # fmt: skip
    ids = []
    try:
        for kind in kinds:
            run = REGISTRY.start(kind)
            ids.append(run.id)
            run.join()
        yield ids
    finally:
        for i in ids:
            REGISTRY.free(i)


def opened(page: str, asked: Mapping[str, list[str]], watch: Watch) -> str | bool:
    """Whether the page said that something was wrong, or what is wrong with the page."""
    at = AppTest.from_file(MAIN, default_timeout=120)
    if page != "read":
        at.switch_page(f"views/{page}.py")
    for name, values in asked.items():
        at.query_params[name] = values
    try:
        with watch.watching() as touched:
            at.run()
        if at.exception:
            return f"exception {at.exception[0].value[:200]}"
        if touched:
            return f"reaches {touched[0]}"
        return judged(at, page)
    except Exception as e:
        where = traceback.extract_tb(e.__traceback__)[-1]
        return f"{type(e).__name__} {str(e)[:200]} at {where.filename}:{where.lineno}"
    finally:
        if "lesson_run" in at.session_state:
            REGISTRY.free(at.session_state["lesson_run"])


def judged(at: AppTest, page: str) -> str | bool:
    state, said = at.session_state, []
    if page == "read":
        said, lanes, chosen = [state["read_problem"]], state["lanes"], state["model"]
        if state["text"] not in texts.plays():
            return f"would read the text {state['text']!r}"
    elif page == "chat":
        said, lanes, chosen = [state["chat_problem"]], state["chat"].lanes, state["chat"].model
    elif page == "heads":
        said, lanes, chosen = [state["heads_problem"]], [state["heads"]["policy"]], state["heads"]["model"]
    elif page == "recall":
        said, lanes, chosen = [state["recall_problem"]], state["recall"]["lanes"], state["recall"]["model"]
        if file := getattr(parameters.task(state["recall"]["task"]), "file", ""):
            return f"would ask from the file {file}"
    elif page == "verdict":
        now = state["verdict"]
        said, lanes, chosen = [state["verdict_problem"]], now["lanes"], now["model"]
        if wrong := [n for n in now["tasks"] if getattr(parameters.task(n), "file", "")] + [
            n for n in now["texts"] if n not in texts.plays()
        ]:
            return f"would read the file {wrong[0]}"
    elif page == "learn":
        said, lanes, chosen = [state["lesson"]["note"], state["lesson_problem"]], [], None
    else:
        lanes, chosen = [], None
    for lane in lanes:
        address.policy(lane)
    if chosen is not None and chosen.model not in ("embedded", f"nowhere/{MARK[:4]}"):
        return f"would load the model {chosen.model!r}"
    for sentence in said:
        if len(sentence) > 1200 or "\n" in sentence or "Traceback" in sentence:
            return f"says {sentence[:200]!r}"
    for words in markdown(at._tree):
        # An icon that is the page's own.
        if MARK in words and (what := live(re.sub(r"^:material/\w+: ", "", words))):
            return f"shows {what} in {words[:200]!r}"
    return any(said)


def live(words: str) -> str:
    """What Markdown would make of a text with a mark in it; empty where it is a text."""
    kinds = {t.type for line in COMMON.parse(words) for t in (line, *(line.children or ()))}
    found = kinds - {"inline", "paragraph_open", "paragraph_close", "text", "text_special", "softbreak", "strong_open"}
    found -= {"strong_close", "hardbreak"}
    if not found and re.search(r"(?i)https?://|www\.|(?<!\\)\$|:[\w+/-]+:", words):
        found = {"a link, a formula or an icon"}
    return ", ".join(sorted(found))


def markdown(node: Any) -> Generator[str]:
    """All texts of a page that are Markdown."""
    proto = getattr(node, "proto", None)
    kind = getattr(node, "type", "")
    for place in (proto, *(getattr(proto, name, None) for name in SHOWN)):
        if kind == "bidi_component":
            break
        for field in ("body", "label", "help", "text"):
            if isinstance(words := getattr(place, field, None), str):
                yield words
    children = getattr(node, "children", None)
    for child in children.values() if isinstance(children, Mapping) else ():
        yield from markdown(child)
