"""Figures for papers, by the name that a person writes."""

from .base import Figure, Numbers
from .budget import Budget, budget
from .emergence import Emergence, EmergenceMap, emergence, emergence_map
from .head_map import HeadMap, head_map
from .map_grid import MapGrid, map_grid
from .massive import Massive, massive
from .mean_logits import MeanLogits
from .memory import Memory, memory
from .perplexity import Perplexity, perplexity
from .sink_depth import SinkDepth, sink_depth
from .sink_grid import SinkGrid, sink_grid
from .strip import AttentionStrip, Strip, strip

_ALL = (
    HeadMap,
    MapGrid,
    SinkGrid,
    SinkDepth,
    MeanLogits,
    Perplexity,
    Budget,
    Memory,
    Massive,
    Strip,
    AttentionStrip,
    Emergence,
    EmergenceMap,
)
FIGURES: dict[str, type[Figure]] = {f.name: f for f in _ALL}


def parse(text: str) -> Figure:
    """The figure written as `name:key=value,key=value`; raises ValueError with what exists when it is not known."""
    name, _, settings = text.partition(":")
    if name.strip() not in FIGURES:
        raise ValueError(f"there is no figure {name.strip()!r}; choose one of: {', '.join(FIGURES)}")
    return FIGURES[name.strip()].parse(settings)


__all__ = [
    "FIGURES",
    "Figure",
    "Numbers",
    "budget",
    "emergence",
    "emergence_map",
    "head_map",
    "map_grid",
    "massive",
    "memory",
    "parse",
    "perplexity",
    "sink_depth",
    "sink_grid",
    "strip",
]
