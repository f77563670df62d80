"""What the addresses of the pages that read and talk say, beside their run, model, lanes and view.

No Streamlit in here.
"""

from typing import TYPE_CHECKING

from analysis.chat.scripts import scripts
from analysis.experiments.presets import PRESETS
from analysis.experiments.recall import Task
from analysis.experiments.recall import parse as parse_task
from analysis.experiments.recall.base import ASKING
from analysis.settings import quoted

from .address import HASH, Parameter, Parameters, given_text, one_of, policy, real, reals, switch, text, whole, wholes

if TYPE_CHECKING:
    from analysis.experiments.verdict import Plan

MOST_TOKENS = 2**31 - 1
"""In a text, or a place in one."""
TEXT = Parameter(given_text)
AT: Parameters = {"at": whole("at", 1, MOST_TOKENS)}
"""The moment of a recording."""
READ: Parameters = {
    "text": TEXT,
    "fidelity": switch("fidelity", "off", "on"),
    "story": one_of("story", [name for name, story in PRESETS.items() if story.switches]),
    "pause": whole("pause", 1, MOST_TOKENS),
    **AT,
}
"""The page that reads: its text, whether lanes are measured against the first one, the story whose switches happen to
them, the token before which they pause, and the moment of a recording."""


def _script(name: str) -> str:
    if name not in scripts() and not HASH.fullmatch(name):
        raise ValueError(f"there is no bundled script {quoted(name)}")
    return name


SAMPLING: Parameters = {
    "max_new": whole("max_new", 1, 4096),
    "temperature": real("temperature", 0.0, 2.0),
    "top_k": whole("top_k", 1, 1000),
    "top_p": real("top_p", 0.05, 1.0),
    "repetition_penalty": real("repetition_penalty", 1.0, 2.0),
    "seed": whole("seed", 0, 2**31),
}
"""How answers are sampled."""
CHAT: Parameters = {"script": Parameter(_script), "kv_chunk": whole("kv_chunk", 1, 65536), **SAMPLING}

LONGEST_RECALL, MOST_PLACES, MOST_REPEATS, MOST_SEED = 65_536, 24, 100, 2**31
"""Of a map on a page: tokens of a text, lengths or depths, texts for each, and the seed that decides them."""
MEASURED = {"recalled": "How often it is recalled", "nll": "NLL of the answer"}
"""What the cells of a map show."""


def task(written: str) -> Task:
    """A task that an address or a press on a page names.  Raises ValueError where it is none, or reads a file."""
    found = parse_task(written)
    if getattr(found, "file", ""):
        raise ValueError("pages read no files by name: upload the questions beside the task")
    if (haystack := getattr(found, "haystack", "filler")) != "filler":
        text(haystack)
    return found


def check_plan(plan: "Plan") -> None:
    """Raises ValueError where a comparison would read a file by name: it may come from anybody."""
    for written in plan.policies:
        policy(written)
    for name in plan.texts:
        text(name)
    for name in plan.recalled:
        task(name)


RECALL: Parameters = {
    "task": Parameter(lambda written: task(written).short),
    "lengths": wholes("lengths", MOST_PLACES, 2, LONGEST_RECALL),
    "depths": reals("depths", MOST_PLACES, 0, 100),
    "repeats": whole("repeats", 1, MOST_REPEATS),
    "seed": whole("seed", 0, MOST_SEED),
    "question": one_of("question", ASKING),
    "measured": one_of("measured", MEASURED),
}
"""The page that asks what a policy forgets: its texts, how they are asked, and what its map shows."""
