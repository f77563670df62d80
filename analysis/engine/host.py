"""Numbers that come over from a GPU, all of a chunk at once: until they are there, nothing waits for it."""

import torch
from torch import Tensor


def on_host(*tensors: Tensor) -> list[Tensor]:
    """The same tensors in the host's own memory, after one wait for the device for all of them."""
    if not any(t.is_cuda for t in tensors):
        return [t.cpu() for t in tensors]
    # Through pinned memory, which a device can write to at full speed, and which is too dear to be kept.
    pinned = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True) for t in tensors]
    for device in {t.device for t in tensors if t.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return [t.clone() for t in pinned]
