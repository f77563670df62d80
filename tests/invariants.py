"""Whatever a lane claims to hold is what its tensors are."""

import numpy as np
import torch

from analysis.engine.head_scores import full_heads
from analysis.policies import Banded, Duo, Ranked


def held(lane, layer, kv_head):
    """Text positions that a lane claims for a KV head, and the keys and values there: [slots], [slots, dim] twice."""
    positions, keys, values = lane.store.layers[layer].of_head(kv_head)
    return positions.tolist(), keys, values


def stored(lane):
    """What a lane holds whose cache is quantized, by layer, KV head and text position."""
    layers, heads = range(len(lane.store.layers)), range(lane.context.model.kv_heads)
    if lane.policy.cache == "own":
        return {}
    slots = {(layer, head): held(lane, layer, head) for layer in layers for head in heads}
    return {at: {p: (k, v) for p, k, v in zip(*of, strict=True)} for at, of in slots.items()}


def ahead(lane, stop):
    """What a lane will hold after each token before `stop`, where slots that are stored in few bits may leave or change
    before a chunk ends; as it holds them when it reads them one at a time."""
    if lane.policy.cache == "own" or not isinstance(lane.policy, Ranked):
        return {}
    before, on_the_way = lane.snapshot(), {}
    while lane.position < stop:
        lane.read(1, upto=lane.position + 1)
        on_the_way[lane.position - 1] = stored(lane)
    lane.restore(before)
    return on_the_way


class Tokens:
    """Keys of layer 0 before rotation depend on nothing but their token: they tell which token a slot is."""

    def __init__(self, model):
        self.model, self.keys = model, None
        vocabulary = model.network.get_input_embeddings().num_embeddings
        model.forward(torch.arange(vocabulary)[:, None], self)

    def attend(self, attention, query, key, value, **_):
        if attention.layer_idx == 0:
            self.keys = key[:, :, 0]
        return query.transpose(1, 2).to(value.dtype)

    def check(self, lane, rounded=frozenset()):
        """Raises AssertionError where a claim of the lane is not so; `rounded`: tokens whose keys were quantized, and
        tell no longer whose they are."""
        ids, read, model = lane.ids.tolist(), lane.position - 1, self.model
        everyone, got, expected = [], [], []
        for layer in range(model.layers) if lane.store.layers else ():
            for head in range(model.kv_heads):
                positions, keys, values = held(lane, layer, head)
                assert positions == sorted({*positions}), "no token stands twice; all stand in the order of the text"
                assert len(positions) == len(keys) == len(values) and positions[-1] == read - 1
                if layer == 0:
                    own = [i for i, p in enumerate(positions) if p not in rounded]
                    got.append(keys[own])
                    expected.append(self.keys[[ids[positions[i]] for i in own], head])
                everyone.append(positions)
        if got:
            torch.testing.assert_close(torch.cat(got), torch.cat(expected), atol=1e-4, rtol=1e-4)
        sets = [set(of) for of in everyone]
        shared = set.intersection(*sets) if sets else set()
        sinks, first = lane.sinks, lane.first
        assert shared >= set(range(sinks)) and sinks not in shared, f"{sinks} sinks are claimed"
        assert shared >= set(range(first, read)) and first - 1 not in shared, f"all from {first} on is claimed"
        if (shares := lane.shares) is not None:
            counts = [np.mean([t in of for of in sets]) for t in range(read)]
            np.testing.assert_allclose(shares, counts, atol=1e-6)
        elif sets:
            assert all(of == sets[0] for of in sets), "no shares are told where heads hold different tokens"
        alone = 2 * model.head_dim * keys.element_size() if sets else 0
        if lane.policy.cache != "own" and sets:
            assert lane.store.nbytes == sum(stored_bytes(lane, i, of, keys) for i, of in enumerate(everyone))
            return everyone
        assert lane.store.nbytes == sum(map(len, everyone)) * alone
        # Memory is handed out in blocks; sinks of a band have their own.
        firsts = [min(lane.policy.sinks, len(of)) if isinstance(lane.policy, Banded) else 0 for of in everyone]
        parts = [n for of, first in zip(everyone, firsts, strict=True) for n in (first, len(of) - first)]
        block = lane.policy.block
        assert lane.cache_bytes == sum(-(-n // block) * block for n in parts) * alone
        if lane.policy.store == "split" and sets:
            assert [layer.names[0] for layer in lane.store.layers] == full_heads(lane.context, lane.policy)
        return everyone


def stored_bytes(lane, head, positions, like):
    """Bytes of what a KV head, counted through all layers, holds at these text positions when its cache is quantized:
    those of codes, of scales and zero points, and of the tokens that stay as they are."""
    policy, dim, bits = lane.policy, like.shape[1], int(lane.policy.cache.removeprefix("int"))
    kv_heads = lane.context.model.kv_heads
    groups = max(0, (lane.position - 1 - policy.exact - policy.residual + policy.group) // policy.group)
    end = policy.exact + groups * policy.group
    # Sinks of a band are stored apart, with scales of their own.
    sinks, layer = 0, lane.store.layers[head // kv_heads]
    if isinstance(policy, Banded):
        sinks = layer.sink_keys.shape[1]
    elif isinstance(policy, Duo):
        sinks = layer.parts[head % kv_heads not in layer.names[0]].sink_keys.shape[1]
    scale = 3 if bits == 8 else 2
    total = 0
    for part in (positions[:sinks], positions[sinks:]):
        stored = [p for p in part if policy.exact <= p < end]
        total += (len(part) - len(stored)) * 2 * dim * like.element_size()
        total += len(stored) * (2 * dim * bits // 8 + scale * (dim // 64 if dim % 64 == 0 else 1))
        total += len({(p - policy.exact) // policy.group for p in stored}) * dim * scale
    return total
