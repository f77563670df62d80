"""The stories that one press tells, each a set of lanes over a text."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """A story: its name and its point as a person would say them, and what is read."""

    title: str
    point: str
    policies: tuple[str, ...]
    reference: int
    dtype: str = "float32"


FOUR = ("dense", "window:window=128", "recompute:window=128,stride=16", "streaming:sinks=4,window=124")

PRESETS = {
    "four": Preset("The four policies", "Which one can read for ever?", FOUR, 3),
    "drop": Preset(
        "Drop the sinks", "Evict four tokens, lose the model", ("streaming:sinks=4,window=124", "window:window=128"), 0
    ),
    "enough": Preset(
        "How many are enough?",
        "0, 1, 2, 4, 8 sinks in a cache of 128",
        tuple(f"streaming:sinks={s},window={128 - s}" for s in (0, 1, 2, 4, 8)),
        3,
    ),
    # Half the digits, twice the speed: so dense is past its 8,192 tokens while a class still looks.
    "past": Preset(
        "Past the training length",
        "Dense beyond 8,192 tokens",
        ("dense", "streaming:sinks=4,window=252"),
        1,
        "bfloat16",
    ),
}
