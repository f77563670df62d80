"""The devices that a model can be on.  Torch is imported only when it is asked which of them are there."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda", "mps")


def pick_device(name: str) -> "torch.device":
    """The device that `name`, one of DEVICES, means here: `auto` takes cuda, then mps, then cpu.

    Raises ValueError where there is no such device.
    """
    import torch

    if name not in DEVICES:
        raise ValueError(f"device must be one of {', '.join(DEVICES)}, not {name!r}")
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(d for d in ("cuda", "mps", "cpu") if there[d])
    if not there[name]:
        raise ValueError(f"this machine has no {name} device that torch can use; choose auto or cpu")
    return torch.device(name)
