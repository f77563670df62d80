"""Figures for papers, by the name that a person writes.  A new one is a new file and its line below."""

# In the order in which they are listed.
# isort: off
from ..settings import Registry
from .base import Figure, Numbers
from .head_map import HeadMap, head_map
from .map_grid import MapGrid, map_grid
from .sink_grid import SinkGrid, sink_grid
from .sink_depth import SinkDepth, sink_depth
from .mean_logits import MeanLogits
from .perplexity import Perplexity, perplexity
from .budget import Budget, budget
from .memory import Memory, memory
from .massive import Massive, massive
from .key_ranges import KeyRanges, key_ranges
from .strip import Strip, strip
from .attention_strip import AttentionStrip
from .emergence import Emergence, emergence
from .emergence_map import EmergenceMap
from .needle_map import NeedleMap
from .recall_curve import RecallCurve
from .pareto import Pareto
# isort: on

FIGURES = Registry.of_classes("figure", Figure, globals())


def parse(text: str) -> Figure:
    """The figure written as `name:key=value,key=value`.  Raises ValueError with what exists when it is not known."""
    return FIGURES.parse(text)
