"""The eviction policies, by the name that a person writes.  A new one is a new file and its line below."""

# In the order in which they are listed.
# isort: off
from ..settings import Registry
from .base import Recomputed, Banded, Policy
from .ranked import Ranked
from .dense import Dense
from .window import Window
from .streaming import Streaming
from .shift import Shift
from .recompute import Recompute
from .h2o import H2O
from .tova import TOVA
from .snapkv import SnapKV
from .adakv import AdaKV
from .knorm import KNorm
from .keydiff import KeyDiff
from .scissorhands import Scissorhands
from .cam import CaM
from .lagkv import LagKV
from .expected_attention import ExpectedAttention
from .pyramid import Pyramid
from .duo import Duo
from .random import Random
from .late import Late
# isort: on

POLICIES = Registry.of_classes("policy", Policy, globals())


def parse(text: str) -> Policy:
    """The policy written as `name:key=value,key=value`.  Raises ValueError with what exists when it is not known."""
    return POLICIES.parse(text)
