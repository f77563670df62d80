"""The state of something that reads: what it needs to go on in another process, as plain values and named tensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from .layers.slots import Window

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class State:
    """Plain values, which JSON can hold, and tensors by name.  Takes no memory of its own: nothing changes them."""

    values: dict[str, Any]
    tensors: Mapping[str, Tensor | Window]
    """Whole, or as the windows that they are part of."""

    @classmethod
    def of(cls, parts: Mapping[str, "State"], **values: Any) -> "State":
        """The state of something that is made of parts."""
        tensors = {f"{name}/{key}": t for name, part in parts.items() for key, t in part.tensors.items()}
        return cls({**values, **{name: part.values for name, part in parts.items()}}, tensors)

    def part(self, name: str) -> "State":
        """The state of one part.  Raises ValueError where there is none."""
        tensors = {key.removeprefix(f"{name}/"): t for key, t in self.tensors.items() if key.startswith(f"{name}/")}
        return State(self.value(name, dict), tensors)

    def value(self, name: str, kind: type[T]) -> T:
        """A plain value.  Raises ValueError where there is none of that kind."""
        value = self.values.get(name)
        if not isinstance(value, kind):
            raise ValueError(f"this state has no {name} ({kind.__name__}): it is damaged, or of something else")
        return value

    def tensor(
        self, name: str, like: Tensor, shape: tuple[int | None, ...], dtype: torch.dtype | None = None
    ) -> Tensor:
        """A tensor, on the device of another; None in its shape: any size, `dtype`: what it must have, None: any.

        Raises ValueError where there is none of that kind.
        """
        found = self.get(name, like, shape, dtype)
        if found is None:
            raise ValueError(f"this state has no {name}: it is damaged, or of something else")
        return found

    def get(
        self, name: str, like: Tensor, shape: tuple[int | None, ...], dtype: torch.dtype | None = None
    ) -> Tensor | None:
        """The same, or None where there is none.  Raises ValueError where it is of another kind."""
        held = self.tensors.get(name)
        found = held.tensor if isinstance(held, Window) else held
        if found is None:
            return None
        fits = found.ndim == len(shape) and all(b in (None, a) for a, b in zip(found.shape, shape, strict=True))
        if not fits or dtype not in (None, found.dtype):
            wanted = f"{dtype or 'numbers'} [{', '.join('any' if n is None else str(n) for n in shape)}]"
            raise ValueError(
                f"{name} of this state is {found.dtype} {list(found.shape)} and not {wanted}: it is of another model"
            )
        return found.to(like.device)
