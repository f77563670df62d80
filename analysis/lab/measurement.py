"""What is measured of a training; training.py measures it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Measurement:
    """What the model is like after so many steps, on the held-out sequences."""

    step: int
    loss: float
    """Mean NLL of all tokens, nats."""
    copied: float
    """Mean NLL of copied tokens; NaN where nothing is copied."""
    weight: NDArray[np.float32]
    """Mean weight on the first token where attention has nothing to do, [layers, heads]."""
    norm: NDArray[np.float32]
    """Norm of the first token's value, times the mean of the others', [layers, heads]."""
    head: tuple[int, int]
    """The layer and head that gives most to the first token."""
    map: NDArray[np.float16]
    """Its weights on the first held-out sequence, [queries, keys]."""

    @property
    def sink(self) -> float:
        """Weight on the first token of the head that gives it most."""
        return float(self.weight[self.head])

    @property
    def value(self) -> float:
        """Norm of the first token's value in that head, times the others'."""
        return float(self.norm[self.head])
