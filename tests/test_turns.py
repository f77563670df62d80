"""Blocks that take turns have the numbers of blocks that are read together."""

import numpy as np
import pytest
import torch

from analysis.engine.attention import blocks
from analysis.engine.attention.blocks import Room, turns
from analysis.engine.attention.call import weigh

from .families import shared, words
from .reading import read

POLICIES = [
    "window:window=70",
    "streaming:sinks=4,window=70",
    "streaming:sinks=4,window=70,block=9",
    "streaming:sinks=4,window=70,positions=none,softmax=off-by-one",
    "streaming:sinks=4,window=70,knockout=weights",
    "streaming:sinks=4,window=70,cache=int4,exact=4,group=4,residual=6",
    "window:window=70,softmax=logit,logit=2,knockout=values",
    "duo:sinks=4,window=70",
    "recompute:window=40,stride=3",
]


CASES = [(family, policy) for family in ("llama", "gpt_oss", "gemma2", "bloom") for policy in POLICIES]


# The heads of BLOOM carry positions, which cannot be quantized.
@pytest.mark.parametrize(("family", "policy"), [c for c in CASES if c[0] != "bloom" or "cache=" not in c[1]])
def test_blocks_that_take_turns_read_as_all_at_once(family, policy, monkeypatch):
    model, tokens, taken = shared(family), words(420), set()
    together = read(model, tokens, policy, 200, sink_tokens=6)

    def counted(q, columns):
        some = [*turns(q, columns)]
        taken.add(len(some))
        return some

    monkeypatch.setattr(blocks, "TURN", 1)
    monkeypatch.setattr("analysis.engine.attention.banded.turns", counted)
    in_turn = read(model, tokens, policy, 200, sink_tokens=6)
    assert max(taken) > 2
    np.testing.assert_allclose(in_turn.nll, together.nll, atol=2e-5)
    np.testing.assert_allclose(in_turn.sink_mass, together.sink_mass, atol=2e-6)


@pytest.mark.parametrize(("pieces", "columns"), [(1, 10), (5, 10), (5, 2100), (16, 1088), (7, 100_000)])
def test_turns_take_each_piece_once_and_no_more_than_they_may(pieces, columns):
    q = torch.zeros(pieces, 3, 192, 2)
    each = 3 * 192 * columns * 4
    some = [*turns(q, columns)]
    assert [i for of in some for i in range(of.start, of.stop)] == [*range(pieces)]
    sizes = [of.stop - of.start for of in some]
    assert all(size * each <= blocks.TURN or size == 1 for size in sizes)
    assert len(some) == -(-pieces // max(1, blocks.TURN // each)) and max(sizes) - min(sizes) < len(some)
    assert [*turns(q.to("meta"), columns)] == [slice(0, pieces)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("columns", [1, 7, 64, 1088, 5000])
def test_weights_may_be_written_where_the_scores_were(dtype, columns):
    scores = torch.randn(2, 3, 65, columns, generator=torch.Generator().manual_seed(columns)).to(dtype)
    scores[..., 1::3] = float("-inf")
    apart, _ = weigh(scores.clone(), [], dtype)
    room = scores.clone()
    written, _ = weigh(room, [], dtype, free=True)
    assert torch.equal(written, apart) and written.data_ptr() == room.data_ptr()


def test_a_room_gives_what_torch_gives_and_takes_its_memory_once():
    room = Room()
    x, y = torch.randn(4, 3, 6, 8), torch.randn(4, 3, 8, 20)
    first = room.matmul("scores", x, y)
    assert torch.equal(first, x @ y)
    again = room.matmul("scores", x[:2], y[:2])
    assert again.data_ptr() == first.data_ptr() and torch.equal(again, x[:2] @ y[:2])
    assert torch.equal(room.matmul("scores", x.double(), y.double()), x.double() @ y.double())
    parts = [x, x[:, :, :1], x[:, :, 2:4]]
    assert torch.equal(room.joined("keys", parts), torch.cat(parts, 2))
    assert torch.equal(room.joined("keys", [x, x.double()]), torch.cat([x, x.double()], 2))
    assert room.joined("keys", [x]) is x
    assert torch.equal(room.joined("keys", [x[:, :, ::2]]), x[:, :, ::2])
    assert room.matmul("scores", x.to("meta"), y.to("meta")).is_meta


def test_no_first_tokens_may_count_as_sinks(tiny_llama):
    blind, seeing = (read(tiny_llama, words(), "streaming:sinks=4,window=16", 17, sink_tokens=n) for n in (0, 4))
    np.testing.assert_allclose(blind.nll, seeing.nll, atol=1e-5)
    assert not blind.sink_mass.any() and seeing.sink_mass.min() > 0
