"""The eviction policies, by the name that a person writes."""

from ..settings import quoted
from .base import Afresh, Band, Policy
from .dense import Dense
from .duo import Duo
from .h2o import H2O
from .keydiff import KeyDiff
from .knorm import KNorm
from .lagkv import LagKV
from .late import Late
from .pyramid import Pyramid
from .random import Random
from .ranked import Ranked
from .recompute import Recompute
from .scissorhands import Scissorhands
from .snapkv import SnapKV
from .streaming import Streaming
from .tova import TOVA
from .window import Window

_ALL = (
    Dense,
    Window,
    Streaming,
    Recompute,
    H2O,
    TOVA,
    SnapKV,
    KNorm,
    KeyDiff,
    Scissorhands,
    LagKV,
    Pyramid,
    Duo,
    Random,
    Late,
)
POLICIES: dict[str, type[Policy]] = {p.name: p for p in _ALL}


def parse(text: str) -> Policy:
    """The policy written as `name:key=value,key=value`; raises ValueError with what exists when it is not known."""
    name, _, settings = text.partition(":")
    if name.strip() not in POLICIES:
        raise ValueError(f"there is no policy {quoted(name.strip())}; choose one of: {', '.join(POLICIES)}")
    return POLICIES[name.strip()].parse(settings)


__all__ = ["POLICIES", "Afresh", "Band", "Policy", "Ranked", "parse", *sorted(p.__name__ for p in _ALL)]
