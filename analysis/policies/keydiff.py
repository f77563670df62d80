"""KeyDiff: keys that point where all keys point are redundant (Park et al. 2025, arXiv:2504.15364)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from .ranked import Ranked, Seen


@dataclass(frozen=True)
class KeyDiff(Ranked):
    """Keeps the tokens whose keys differ most, in direction, from the mean of all keys held; reads no attention.

    The paper compares keys after rotation; here before it, since their places change when others leave.
    """

    name: ClassVar[str] = "keydiff"
    title: ClassVar[str] = "Key difference"

    def score(self, seen: Seen) -> Tensor:
        keys = seen.keys.float()
        return -cosine_similarity(keys, normalize(keys, dim=-1).mean(1, keepdim=True), dim=-1)
