"""One forward pass over slots of which KV heads hold differently many.

The slots of all heads of a layer stand in one row.  Every head scores all of them in one product and weighs its own
alone: the others' are minus infinity, and nothing is padded or copied to the host.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ...families.positions import Angles, AttentionModule
from ..layers.ragged import RaggedLayer, in_one_row
from .call import Call
from .ranked import RankedPass, Rotated, ahead


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
                ("ahead", device, queries),
                lambda: ahead(queries, device).repeat_interleave(kv_heads, 1).repeat(call.groups, 1),
            )
        own = self.layers[call.layer].own
        return scores.add_(torch.where(own, 0, float("-inf"))[:, None])

    def _rotate(
        self, attention: AttentionModule, call: Call, rotated_once: Rotated | None
    ) -> Float[Tensor, "heads queries dim"]:
        """Let the keys held be rotated to where they stand, as far as they are not, and give the queries, which stand
        where the newest keys of their head do."""
        model, held = self.model, self.layers[call.layer]
        at = held.slots_of_heads() if rotated_once is None else held.positions[0]
        old, new = at.split((len(at) - held.kv_heads * call.queries, held.kv_heads * call.queries))
        if held.rotated is None:
            angles = model.angles(attention, old, self.length)
            held.rotated = model.rotate(attention, held.keys[None, :, : len(old)], angles)[0]
        if rotated_once is None:
            here = model.angles(attention, new, self.length)
            # Heads that hold differently many ask from different slots: for once they are a batch of texts.
            of_heads = call.query[0].unflatten(0, (held.kv_heads, -1))
            queries = model.rotate(attention, of_heads, _of_heads(here, held.kv_heads)).flatten(0, 1)
            newest = model.rotate(attention, held.keys[None, :, len(old) :], here)[0]
        else:
            queries, newest = rotated_once[0], in_one_row(rotated_once[1])
        held.rotated = torch.cat((held.rotated, newest), 1)
        return queries


def _of_heads(angles: Angles | None, kv_heads: int) -> Angles | None:
    """Angles of tokens that stand once for each head, [1, tokens × kv_heads, *], as [kv_heads, tokens, *]."""
    if angles is None:
        return None
    cos, sin = (a[0].unflatten(0, (-1, kv_heads)).transpose(0, 1) for a in angles)
    return cos, sin
