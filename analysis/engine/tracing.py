"""The forward pass of one token without Python between its operations.

A token that is generated alone goes through hundreds of modules for little work in each, and half of its time would be
Python's.  So the family's own forward pass is traced once and replayed; only the attention of each layer comes back to
Python, as one operation that asks whoever is decoding in this thread.  A trace that does not repeat what the model says
(a family that decides in Python what to compute, such as a mixture of experts) is not used.
"""

import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from ..families.positions import AttentionModule
from ..families.rotary import Adapted

CHECKS = 8
"""Tokens for which a trace, or a graph, must repeat the model."""

Traced = Callable[[Tensor, Any, int], Tensor]
"""Token id [1, 1], who decodes it, and where the network places it → logits [1, 1, vocabulary]."""

_thread = threading.local()
_operations = torch.library.Library("sinkscope", "DEF")
_operations.define("attend(Tensor query, Tensor key, Tensor value, int layer) -> Tensor")


def _attend(query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
    return _thread.attend(query, key, value, layer)


_operations.impl("attend", _attend, "CompositeExplicitAutograd")


@dataclass(eq=False)
class _Recorder:
    """Puts the operation in the place of attention, and notes what each layer hands to it besides tensors."""

    layers: dict[int, tuple[nn.Module, dict[str, Any]]] = field(default_factory=dict)

    def attend(self, attention: AttentionModule, query: Tensor, key: Tensor, value: Tensor, **settings) -> Tensor:
        self.layers[attention.layer_idx] = attention, settings
        return torch.ops.sinkscope.attend(query, key, value, attention.layer_idx)


class _OneToken(nn.Module):
    def __init__(self, model: Adapted, recorder: _Recorder) -> None:
        super().__init__()
        self.network, self.model, self.recorder = model.network, model, recorder

    def forward(self, ids: Tensor, position: Any) -> Tensor:
        # A tensor here, so that the trace holds for all positions.
        return self.model.forward(ids, self.recorder, begin=position, last=1)


def tried(model: Adapted) -> tuple[Int[Tensor, " checks"], Int[Tensor, " checks"]]:
    """Token ids and text positions for which a pass that was recorded must repeat the model."""
    embedding: Any = model.network.get_input_embeddings()
    ids = torch.linspace(0, embedding.num_embeddings - 1, CHECKS, device=model.device).long()
    # Far into a text, where a family may do other things than at its beginning.
    return ids, 10_000 * torch.arange(CHECKS, device=model.device)


def _echo(query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
    return query.transpose(1, 2).clone()


def one_token(model: Adapted) -> Traced | None:
    """The pass of one token, traced; None where the model cannot be traced, and on a GPU, where graphs do more
    (attention/graph.py)."""
    if model.device.type in ("meta", "cuda") or model.positions.fixed or len(set(model.homes.values())) > 1:
        return None
    recorder = _Recorder()
    eager = _OneToken(model, recorder).eval()
    verbosity = transformers_logging.get_verbosity()
    tokens, positions = tried(model)
    tokens = tokens.view(-1, 1, 1)
    _thread.attend = _echo
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            transformers_logging.set_verbosity_error()
            traced = torch.jit.freeze(torch.jit.trace(eager, (tokens[0], positions[0]), check_trace=False).eval())
            for ids, position in zip(tokens, positions, strict=True):
                torch.testing.assert_close(traced(ids, position), eager(ids, position))
    except (AssertionError, RuntimeError):
        return None
    finally:
        del _thread.attend
        transformers_logging.set_verbosity(verbosity)
    layers = recorder.layers

    def forward(ids: Tensor, decoding: Any, begin: int) -> Tensor:
        def attend(query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
            attention, settings = layers[layer]
            return decoding.attend(attention, query, key, value, **settings)

        _thread.attend = attend
        try:
            with torch.inference_mode():
                return traced(ids, torch.tensor(begin, device=ids.device))
        finally:
            del _thread.attend

    return forward
