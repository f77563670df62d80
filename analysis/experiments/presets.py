"""The stories that one press tells, each a set of lanes over a text, and what of each the gallery has recorded."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..models import gemma, tiny
from ..policies import Streaming, parse
from ..runs.switches import Switch


@dataclass(frozen=True)
class Preset:
    """A story: its name and its point as a person would say them, and what is read."""

    title: str
    point: str
    policies: tuple[str, ...]
    reference: int
    dtype: str = "float32"
    recorded: int = 0
    """Tokens that the gallery's recording of it has; 0: there is none."""
    switches: tuple[Switch, ...] = ()
    """What happens to its lanes in the recording."""
    model: str = ""
    """The model that it is about; empty: whichever is chosen."""
    head: tuple[int, int] | None = None
    """Layer and head of the embedded model that are looked into, where a person has chosen none."""


FOUR = ("dense", "window:window=128", "recompute:window=128,stride=16", "streaming:sinks=4,window=124")

PRESETS = {
    "four": Preset("The four policies", "Which one can read for ever?", FOUR, 3, recorded=3000),
    "drop": Preset(
        "Drop the sinks",
        "Evict four tokens, lose the model",
        ("streaming:sinks=4,window=124", "window:window=128"),
        0,
        recorded=3000,
        switches=(
            Switch(1000, 1, "streaming:sinks=4,window=124", pin=True),
            Switch(2000, 1, "window:window=128"),
        ),
    ),
    "enough": Preset(
        "How many are enough?",
        "0, 1, 2, 4, 8 sinks in a cache of 128",
        tuple(f"streaming:sinks={s},window={128 - s}" for s in (0, 1, 2, 4, 8)),
        3,
        recorded=2000,
    ),
    "newlines": Preset(
        "Newlines will do",
        "Sinks that are not the text's own",
        (
            "streaming:sinks=4,window=124",
            "streaming:sinks=4,window=124,first=newlines",
            "streaming:sinks=4,window=124,first=macbeth",
            "window:window=128",
        ),
        0,
    ),
    "sizes": Preset(
        "Does a larger cache help?",
        "4 sinks and 60 to 1,020 newest tokens",
        tuple(f"streaming:sinks=4,window={size - 4}" for size in (64, 128, 256, 512, 1024)),
        4,
    ),
    "choice": Preset(
        "Who chooses best?",
        "Attention or chance decides what stays",
        (
            "streaming:sinks=4,window=124",
            # Plays are longer than what the model was trained on, so positions are slots.
            "h2o:budget=128,recent=64,interval=16,positions=cache",
            "tova:budget=128,interval=16,positions=cache",
            "random:budget=128,sinks=4,recent=64,interval=16",
            "random:budget=128,sinks=0,recent=64,interval=16",
        ),
        0,
        recorded=1500,
    ),
    "what": Preset(
        "What are sinks for?",
        "Empty them, hide them, give attention another way out",
        (
            "streaming:sinks=4,window=124",
            "streaming:sinks=4,window=124,knockout=values",
            "streaming:sinks=4,window=124,knockout=weights",
            "window:window=128,softmax=off-by-one",
        ),
        0,
        recorded=1500,
    ),
    "shift": Preset(
        "An engine shifts its context",
        "llama.cpp drops half at once, with and without --keep",
        ("streaming:sinks=4,window=124", "shift:window=124,keep=4", "shift:window=128,keep=0"),
        0,
    ),
    "blocks": Preset(
        "Memory in blocks",
        "Engines free whole blocks, and some of them protect the sinks",
        (
            "streaming:sinks=4,window=124",
            "streaming:sinks=4,window=124,block=16",
            "streaming:sinks=4,window=124,block=64",
            "window:window=128,block=16",
        ),
        0,
    ),
    "mqa": Preset(
        "Multi-query attention",
        "Four query heads, one KV head, and BOS for a sink",
        ("dense", "window:window=128", "streaming:sinks=1,window=127", "streaming:sinks=4,window=124"),
        3,
        model=gemma.NAME,
    ),
    "own": Preset(
        "A sink of its own",
        "A model that has learned a way out needs no first tokens",
        ("streaming:sinks=4,window=60", "window:window=64"),
        0,
        model=tiny.NAME,
    ),
    "quantized": Preset(
        "Why quantizers spare the sink",
        "A cache of four bits, with the first four tokens exact and without",
        (
            "streaming:sinks=4,window=252",
            "streaming:sinks=4,window=252,cache=int4,exact=4",
            "streaming:sinks=4,window=252,cache=int4",
        ),
        0,
        # Keys of the first tokens reach far beyond all others here.
        head=(12, 3),
    ),
    # What is fastest here: so dense is past its 8,192 tokens while a class still looks.
    "past": Preset(
        "Past the training length",
        "Dense beyond 8,192 tokens",
        ("dense", "streaming:sinks=4,window=252"),
        1,
        "auto",
        # Dense breaks two to three thousand tokens past the 8,192 that the embedded model was trained on.
        recorded=13000,
    ),
}


def reference_of(lanes: Sequence[str]) -> int:
    """The lane that others are compared with, where nobody says which: that of the story with these lanes; else the
    last sinks + window lane, if there is one without interventions such a one; else the first."""
    policies = [parse(p) for p in lanes]
    for story in PRESETS.values():
        if [parse(p) for p in story.policies] == policies:
            return story.reference
    found = [i for i, p in enumerate(policies) if p.name == Streaming.name and p.first_protected(1)]
    plain = [i for i in found if not policies[i].changes]
    return (plain or found or [0])[-1]


@dataclass(frozen=True)
class ChatPreset:
    """A conversation that one press tells: lanes, and the bundled script that is played to them."""

    title: str
    point: str
    policies: tuple[str, ...]
    script: str
    max_new: int
    lesson: str = ""
    """What to see in it, in one or two sentences."""


CHATS = {
    "breakdown": ChatPreset(
        "Where it breaks down",
        "Eleven questions, 64 cached tokens",
        ("streaming:sinks=4,window=60", "window:window=64"),
        "questions",
        48,
        "Both lanes keep 64 tokens. Watch the second one when the first tokens of the text leave its cache.",
    ),
    "memory": ChatPreset(
        "Fluent is not remembering",
        "Tell it a name, and ask for it later",
        ("dense", "streaming:sinks=4,window=60"),
        "memory",
        40,
        "Sinks keep a model fluent. No policy here extends what it can recall: what has left the cache is gone.",
    ),
    "three": ChatPreset(
        "Three ways to forget",
        "Dense, sinks + window, window",
        ("dense", "streaming:sinks=4,window=60", "window:window=64"),
        "questions",
        48,
        "Dense forgets nothing and grows; the other two are bounded, and only one of them stays itself.",
    ),
}
