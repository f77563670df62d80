"""One forward pass over slots of which KV heads hold differently many.

The slots of all heads of a layer stand in one row.  Every head scores all of them in one product and weighs its own
alone: the others' are minus infinity, and nothing is padded or copied to the host.
"""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from ...families.positions import Angles, AttentionModule
from ..layers.ragged import RaggedLayer
from .call import Call
from .ranked import RankedPass, ahead


@dataclass(eq=False)
class RaggedPass(RankedPass):
    """One forward pass over ragged layers, of tokens that begin at text position `token`."""

    # All of its layers are of one kind.
    layers: list[RaggedLayer]  # ty: ignore[incompatible-attribute-override]

    def _hide(self, scores: Float[Tensor, "kv_heads rows slots"], call: Call) -> Float[Tensor, "kv_heads rows slots"]:
        """Scores with minus infinity, in place, for what comes after a query and for the slots of other heads."""
        kv_heads, queries, device = call.kv_heads, call.queries, scores.device
        if queries > 1:
            # Each token stands once for each KV head.
            scores[..., scores.shape[-1] - queries * kv_heads :] += self._shared(
                ("ahead", device),
                lambda: ahead(queries, device).repeat_interleave(kv_heads, 1).repeat(call.groups, 1),
            )
        own = self.layers[call.layer].own
        return scores.add_(torch.where(own, 0, float("-inf"))[:, None])

    def _rotate(self, attention: AttentionModule, queries: int) -> Angles | None:
        """Let the keys held be rotated to where they stand, as far as they are not, and say where the newest stand in
        each head."""
        model, held = self.model, self.layers[attention.layer_idx]
        at = held.slots_of_heads() if self.policy.positions == "cache" else held.positions[0]
        old, new = at.split((len(at) - held.kv_heads * queries, held.kv_heads * queries))
        if held.rotated is None:
            angles = model.angles(attention, old, self.length)
            held.rotated = model.rotate(attention, held.keys[None, :, : len(old)], angles)[0]
        make = partial(model.angles, attention, new, self.length)
        # In the text the newest tokens stand where they do in every layer.
        here = self._shared(("here", model.kind(attention)), make) if self.policy.positions == "text" else make()
        rotated = model.rotate(attention, held.keys[None, :, len(old) :], here)[0]
        held.rotated = torch.cat((held.rotated, rotated), 1)
        return here

    def _rotated_queries(
        self, attention: AttentionModule, query: Float[Tensor, "1 heads queries dim"], here: Angles | None
    ) -> Float[Tensor, "heads queries dim"]:
        """Queries where they stand in each head; `here`: where the newest keys do."""
        kv_heads = self.layers[attention.layer_idx].kv_heads
        # Heads that hold differently many ask from different slots: for once they are a batch of texts.
        of_heads = query[0].unflatten(0, (kv_heads, -1))
        return self.model.rotate(attention, of_heads, _of_heads(here, kv_heads)).flatten(0, 1)


def _of_heads(angles: Angles | None, kv_heads: int) -> Angles | None:
    """Angles of tokens that stand once for each head, [1, tokens × kv_heads, *], as [kv_heads, tokens, *]."""
    if angles is None:
        return None
    cos, sin = (a[0].unflatten(0, (-1, kv_heads)).transpose(0, 1) for a in angles)
    return cos, sin
