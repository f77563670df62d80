"""Laws of what one layer holds: what is in a slot is what was read at its position, whatever was evicted or copied."""

import copy
import itertools
import random

import numpy as np
import pytest
import torch

from analysis.engine.kv.store import Predicted
from analysis.engine.layers.banded import BandedLayer
from analysis.engine.layers.eviction import evict
from analysis.engine.layers.queries import QueryMoments
from analysis.engine.layers.ragged import RaggedLayer
from analysis.engine.layers.ranked import RankedLayer, Scattered
from analysis.engine.layers.slots import Slots, Span, prefix_of
from analysis.engine.layers.split import SplitLayer
from analysis.engine.logits import Logits
from analysis.policies import H2O, Late, SnapKV

HEADS, DIM = 3, 2


def keys_at(positions):
    """Keys that say whose they are: positions [heads, slots] → [heads, slots, dim]."""
    positions = torch.as_tensor(positions)
    positions = positions.expand(HEADS, -1) if positions.ndim == 1 else positions
    return torch.stack((positions, 100.0 * torch.arange(len(positions))[:, None].expand_as(positions)), -1).float()


def values_at(positions):
    return -1 - keys_at(positions)


def read(count):
    """A layer that has read `count` tokens and evicted none."""
    layer = BandedLayer(torch.empty(HEADS, 0, DIM))
    positions = torch.arange(count)
    layer.append(keys_at(positions), values_at(positions))
    return layer


def banded(sinks, window, count):
    """A layer as a band of this size has it after `count` tokens."""
    layer = read(count)
    layer.fit(sinks, window, None)
    return layer


def positions_of(layer):
    """Where the slots of a band were read, if they hold what was read there."""
    keys, values = layer.everything()
    positions = layer.positions()
    assert torch.equal(keys, keys_at(positions)) and torch.equal(values, values_at(positions))
    return positions.tolist()


def test_copies_of_a_window_never_see_what_another_wrote():
    draw = random.Random(0)
    for _ in range(15):
        # Some grow and never evict, from the beginning of a text: nothing but who has written decides there.
        begin, evicting = draw.choice(((0, 0), (5, 0.4)))
        all_, held, seen, n = [Slots(torch.empty(1, 0, 1), begin)], [(begin, [])], {}, 0
        for _ in range(60):
            i = draw.randrange(len(all_))
            slots, (first, numbers), what = all_[i], held[i], draw.random()
            if what < 0.15 and len(all_) < 5:
                all_.append(copy.copy(slots))
                held.append((first, numbers))
            elif what < evicting:
                keep = draw.randint(0, len(numbers) + 2)
                slots.keep_last(keep)
                evicted = max(0, len(numbers) - keep)
                held[i] = first + evicted, numbers[evicted:]
            elif what < 0.5 and not numbers:
                slots.skip(3)
                held[i] = first + 3, []
            else:
                new = list(range(n, n := n + draw.randint(1, 6)))
                slots.append(torch.tensor(new, dtype=torch.float32).view(1, -1, 1))
                held[i] = first, numbers + new
            for slots, (first, numbers) in zip(all_, held, strict=True):
                view, begin = slots.placed()
                assert view.flatten().tolist() == numbers
                assert begin == slots.first == first and len(slots) == len(numbers)
                # What was seen in a room stays, for as long as who showed it stays there too.
                room, views = seen.get(id(slots), (0, []))
                views = views if room == view.untyped_storage().data_ptr() else []
                assert all(torch.equal(then, now) for then, now in views)
                seen[id(slots)] = view.untyped_storage().data_ptr(), [*views[-20:], (view.clone(), view)]


def test_a_window_moves_now_and_then_and_has_half_its_size_to_spare():
    slots, rooms, other = Slots(torch.empty(1, 0, 1)), set(), None
    for i in range(400):
        slots.append(torch.full((1, 1, 1), float(i)))
        room = slots.view().untyped_storage().nbytes() // 4
        assert room <= 1.5 * i + 2
        rooms.add(slots.view().data_ptr())
        # Who goes on alone, or with a copy that stands still, needs no other room.
        other = copy.copy(slots) if i == 100 else other
    assert len(rooms) < 20
    for _ in range(400):
        slots.append(torch.zeros(1, 1, 1))
        slots.keep_last(10)
    assert slots.view().untyped_storage().nbytes() // 4 <= 600 and len(other) == 101
    with pytest.raises(AssertionError, match="no gap"):
        slots.skip(1)


def newest(held, read):
    return next((i for i in range(read) if read - 1 - i not in held), read)


def oldest(held, read):
    return next((i for i in range(read) if i not in held), read)


def test_what_is_said_of_a_band_is_what_a_set_says():
    for sinks, first, count in itertools.product(range(4), range(7), range(9)):
        if max(sinks, first) > count:
            continue
        span, held = Span(2, sinks, first, count), {*range(sinks), *range(first, count)}
        assert span.alike == (span.prefix, span.suffix) == (oldest(held, count), newest(held, count))
        shares = np.zeros(count, np.float32)
        span.add_to(shares)
        if first >= sinks:
            assert shares.tolist() == [2.0 * (i in held) for i in range(count)]


def test_what_is_said_of_scattered_slots_is_what_sets_say():
    draw, spans = random.Random(0), []
    for _ in range(100):
        count = draw.randint(1, 9)
        slots = draw.randint(1, count)
        held = [sorted(draw.sample(range(count), slots)) for _ in range(2)]
        spans.append(Scattered(torch.tensor(held), count))
        assert spans[-1].prefix == min(oldest(h, count) for h in held)
        assert spans[-1].suffix == min(newest(h, count) for h in held)
        shares = np.ones(count, np.float32)
        spans[-1].add_to(shares)
        assert shares.tolist() == [1 + sum(i in h for h in held) for i in range(count)]
        assert (spans[-1].heads, spans[-1].alike) == (2, None)
    assert prefix_of(spans) == min(s.prefix for s in spans) and prefix_of(()) == 0


def fitted(held, count, sinks, window, pin):
    """Places that a band keeps of those held."""
    wanted, whole = min(sinks, count), oldest(held, count) == count
    if window is None:
        return sorted({*held, *range(wanted if pin else 0)})
    prefix = list(range(wanted)) if pin or oldest(held, count) >= wanted else []
    rest = range(0 if whole else count - newest(held, count), count)
    rest = [p for p in rest if p >= len(prefix)]
    return [*prefix, *rest[max(0, len(rest) - window) :]]


@pytest.mark.parametrize("pin", [False, True])
def test_a_band_of_another_size_keeps_what_it_keeps_of_what_is_held(pin):
    bands = [(0, None), (0, 3), (2, 3), (4, 1), (6, 9)]
    for old, new, count in itertools.product(bands, bands, (1, 2, 3, 5, 8, 12, 30)):
        layer = banded(*old, count)
        held = positions_of(layer)
        assert held == fitted(range(count), count, *old, False)
        twin = layer.copy()
        wanted = torch.arange(min(new[0], count))
        layer.rotated_sinks = torch.zeros(1)
        layer.fit(*new, (keys_at(wanted), values_at(wanted)) if pin else None)
        assert positions_of(layer) == fitted(set(held), count, *new, pin), (old, new, count)
        assert layer.rotated_sinks is None and len(layer.rotated) == 0 and layer.read == count
        assert positions_of(twin) == held
        assert layer.slots == HEADS * len(layer) == HEADS * len(positions_of(layer))
        assert layer.nbytes == 2 * 4 * DIM * layer.slots


def test_a_rotated_window_begins_where_the_window_begins():
    layer = read(8)
    layer.rotated.append(keys_at(torch.arange(5)))
    for kept in (9, 8, 6, 2, 0):
        layer.keep_last(kept)
        held = list(range(8))[8 - min(kept, 8) :]
        assert positions_of(layer) == held and layer.first == 8 - min(kept, 8)
        assert layer.rotated.view()[0, :, 0].tolist() == [p for p in held if p < 5]
        layer.rotated.keep_last(len([p for p in held if p < 5]))


@pytest.mark.parametrize("count", [1, 3, 5])
@pytest.mark.parametrize(("sinks", "window", "tokens"), [(0, None, 9), (0, 4, 9), (3, 2, 9), (3, 4, 5), (0, 7, 9)])
def test_first_tokens_are_replaced_wherever_they_are_held(sinks, window, tokens, count):
    for layer in (banded(sinks, window, tokens), SplitLayer(banded(sinks, window, tokens), [1])):
        layer.replace_first(1000 + keys_at(torch.arange(count)), 2000 + values_at(torch.arange(count)))
        for head in range(HEADS):
            positions, keys, values = layer.of_head(head)
            new = (positions < count)[:, None]
            assert torch.equal(keys, keys_at(positions)[head] + 1000 * new)
            assert torch.equal(values, values_at(positions)[head] + 2000 * new)
            assert positions.tolist() == fitted(range(tokens), tokens, sinks, window, False)


@pytest.mark.parametrize("full", [[], [1], [0, 2], [2], [0, 1, 2]])
def test_heads_that_are_dealt_out_hold_what_they_held(full):
    whole = banded(2, 4, 9)
    split = SplitLayer(whole, full)
    assert split.names == (full, [h for h in range(HEADS) if h not in full])
    for head in range(HEADS):
        for a, b in zip(split.of_head(head), whole.of_head(head), strict=True):
            assert torch.equal(a, b)
        (keys, first), (own, begin) = split.window_of(head), whole.window_of(head)
        assert torch.equal(keys, own) and first == begin == 5
    for a, b in zip(split.ends(2, 3), whole.ends(2, 3), strict=True):
        assert torch.equal(a, b)
    assert (split.slots, split.nbytes) == (whole.slots, whole.nbytes)
    assert sum(span.heads for span in split.held(9)) == HEADS and all(span.heads for span in split.held(9))
    twin = split.copy()
    twin.parts[0].keep_last(1)
    assert [len(p) for p in split.parts] == [6, 6]


def ranked(positions):
    """A layer whose every tensor says whose slot it is."""
    positions = torch.as_tensor(positions)
    recent = torch.stack((positions, positions + 50), 1).float()
    return RankedLayer(
        keys_at(positions),
        values_at(positions),
        positions,
        positions.float() / 64,
        recent,
        keys_at(positions) + 7,
        length=3,
    )


@pytest.mark.parametrize("positions", ["cache", "text"])
@pytest.mark.parametrize("interval", [1, 3])
def test_what_stays_in_a_slot_belongs_together(positions, interval):
    policy = Late(budget=8, sinks=1, start=2, interval=interval, positions=positions)
    held = torch.tensor([[0, 1, 2, 3, 4, 6, 8, 9, 11], [1, 2, 3, 4, 5, 6, 7, 8, 11], [0, 2, 3, 5, 6, 7, 9, 10, 11]])
    layer = ranked(held[:, :8])
    assert evict([layer], policy, [0], tell=True) == {} and layer.slots == 8 * HEADS
    layer = ranked(held)
    evicted = evict([layer], policy, [0], tell=True)[0]
    kept = [sorted([2, *[p for p in row if p != 2][-(8 - interval) :]]) for row in held.tolist()]
    assert layer.positions.tolist() == kept
    assert torch.equal(layer.keys, keys_at(kept)) and torch.equal(layer.values, values_at(kept))
    assert torch.equal(layer.accumulated_attention, torch.tensor(kept).float() / 64)
    assert torch.equal(layer.recent_attention, torch.stack((torch.tensor(kept), torch.tensor(kept) + 50), 1).float())
    assert (layer.rotated is None) if positions == "cache" else torch.equal(layer.rotated, keys_at(kept) + 7)
    left = [sorted({*row} - {*stay}) for row, stay in zip(held.tolist(), kept, strict=True)]
    assert evicted.positions.sort().values.tolist() == left and torch.equal(evicted.keys, keys_at(evicted.positions))
    assert evict([ranked(held)], policy, [0], tell=False) == {}


def test_slots_are_given_out_put_before_the_others_and_replaced_by_their_positions():
    held = [[0, 2, 5, 6, 7], [1, 2, 3, 6, 7], [0, 1, 2, 3, 7]]
    layer = ranked(held)
    twin, bare = layer.copy(), layer.observed_for(Late())
    layer.append(keys_at(torch.arange(8, 10)), values_at(torch.arange(8, 10)), torch.arange(8, 10))
    longer = [[*row, 8, 9] for row in held]
    assert layer.positions.tolist() == longer and twin.positions.tolist() == held
    assert bare.rotated is bare.accumulated_attention is bare.recent_attention is None and len(bare) == 5
    assert torch.equal(layer.keys, keys_at(longer)) and torch.equal(layer.values, values_at(longer))
    assert layer.nbytes == 2 * 4 * DIM * HEADS * 7
    for x, y in zip(layer.ends(0, 3), (keys_at([7, 8, 9]), values_at([7, 8, 9])), strict=True):
        assert torch.equal(x, y)
    for x, y in zip(ranked([[0, 1, 4], [0, 1, 4], [0, 1, 4]]).ends(2, 1), (keys_at, values_at), strict=True):
        assert torch.equal(x, y(torch.tensor([0, 1, 4])))
    first = torch.arange(3)
    prefix = layer.with_prefix(keys_at(first) + 1000, values_at(first) + 2000)
    # All heads hold equally many, so as many of the newest as all have.
    wanted = [[0, 1, 2, *row[-4:]] for row in longer]
    assert prefix.positions.tolist() == wanted and prefix.rotated is None
    assert torch.equal(prefix.keys, keys_at(wanted) + 1000 * (torch.tensor(wanted) < 3)[..., None])
    assert torch.equal(prefix.values, values_at(wanted) + 2000 * (torch.tensor(wanted) < 3)[..., None])
    layer.replace_first(keys_at(first) + 1000, values_at(first) + 2000)
    assert torch.equal(layer.keys, keys_at(longer) + 1000 * (torch.tensor(longer) < 3)[..., None])
    assert torch.equal(layer.values, values_at(longer) + 2000 * (torch.tensor(longer) < 3)[..., None])
    assert layer.rotated is None and torch.equal(twin.keys, keys_at(held))


def ragged(held):
    """A layer of heads that hold differently many slots, each of which says whose it is."""
    slots = sorted((position, head) for head, of in enumerate(held) for position in of)
    of = torch.tensor([head for _, head in slots])
    at = torch.tensor([[position for position, _ in slots]])
    key = torch.stack((at, 100 * of[None]), -1).float()
    return RaggedLayer(key, -1 - key, at, own=of == torch.arange(HEADS)[:, None])


def rows_of(layer):
    """What its heads hold, if each holds what was read there."""
    found = []
    for head in range(HEADS):
        positions, keys, values = layer.of_head(head)
        assert torch.equal(keys, keys_at(positions)[head]) and torch.equal(values, values_at(positions)[head])
        found.append(positions.tolist())
    return found


def test_heads_that_hold_differently_many_hold_what_lists_hold():
    draw = random.Random(0)
    for _ in range(100):
        count = draw.randint(3, 12)
        held = [sorted(draw.sample(range(count), draw.randint(1, count))) for _ in range(HEADS)]
        layer, first = ragged(held), draw.randint(1, 3)
        twin = layer.copy()
        (span,) = layer.held(count)
        assert rows_of(layer) == held and layer.slots == sum(map(len, held)) and span.heads == layer.kv_heads == HEADS
        assert len(layer) == -(-layer.slots // HEADS) and layer.nbytes == 2 * 4 * DIM * layer.slots
        prefix, suffix = min(oldest(h, count) for h in held), min(newest(h, count) for h in held)
        assert (span.prefix, span.suffix, span.alike) == (prefix, suffix, None)
        shares = np.zeros(count, np.float32)
        span.add_to(shares)
        assert shares.tolist() == [sum(i in h for h in held) for i in range(count)]
        at = torch.tensor([*range(prefix), *range(count - suffix, count)])
        for got, expected in zip(layer.ends(prefix, suffix), (keys_at(at), values_at(at)), strict=True):
            assert torch.equal(got, expected)
        shortest = min(map(len, held))
        rows = layer.rows()
        assert rows_of(rows) == [h[:prefix] + h[len(h) - shortest + prefix :] for h in held]
        assert rows_of(RaggedLayer.of_rows(rows)) == rows_of(rows)
        early = torch.arange(first)
        whole = layer.with_prefix(keys_at(early), values_at(early))
        assert rows_of(whole) == [sorted({*range(first), *h}) for h in held]
        layer.append(
            keys_at(torch.arange(count, count + 2)), values_at(torch.arange(count, count + 2)), count + torch.arange(2)
        )
        assert rows_of(layer) == [[*h, count, count + 1] for h in held]
        layer.rotated = layer.keys
        layer.replace_first(1000 + keys_at(early), 2000 + values_at(early))
        for head in range(HEADS):
            positions, keys, values = layer.of_head(head)
            new = (positions < first)[:, None]
            assert torch.equal(keys, keys_at(positions)[head] + 1000 * new) and layer.rotated is None
            assert torch.equal(values, values_at(positions)[head] + 2000 * new)
        assert rows_of(twin) == held


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [1, 3, 6])
def test_attention_is_remembered_as_a_list_remembers_it(heads, dtype):
    for policy in (H2O(budget=200), SnapKV(budget=200, recent=5)):
        draw, layer, given = torch.Generator().manual_seed(0), RankedLayer(*(torch.empty(heads, 0, 1),) * 3), []
        for queries in (1, 3, 1, 7, 2, 1):
            slots = len(given) + queries
            weights = torch.rand(heads, queries, slots, generator=draw).to(dtype)
            given += weights[-1].tolist()
            layer.observe(weights, policy)
            rows = torch.tensor([row + [0.0] * (slots - len(row)) for row in given])
            if policy.observation_window:
                torch.testing.assert_close(layer.recent_attention[-1].float(), rows[-5:])
                assert layer.accumulated_attention is None
            else:
                torch.testing.assert_close(layer.accumulated_attention[-1], rows.sum(0))
                assert layer.recent_attention is None


@pytest.mark.parametrize("far", [0.0, 1e3])
def test_moments_of_queries_are_those_of_all_of_them(far):
    draw, parts, whole = torch.Generator().manual_seed(0), [], None
    for queries in (1, 3, 1, 70, 2):
        parts.append(far + torch.randn(2, queries, 4, generator=draw))
        whole = QueryMoments.of(parts[-1]) if whole is None else whole.followed_by(parts[-1])
    every = torch.cat(parts, 1).double()
    assert whole.count == 77
    torch.testing.assert_close(whole.mean.double(), every.mean(1))
    for got, head in zip(whole.covariance.double(), every, strict=True):
        torch.testing.assert_close(got, torch.cov(head.T, correction=0), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nll_is_the_cross_entropy_in_float32(rows, dtype):
    draw = torch.Generator().manual_seed(rows)
    logits = torch.randn(rows, 50, generator=draw).to(dtype)
    targets = torch.randint(0, 50, (rows,), generator=draw)
    got = Logits.of(logits).nll(targets)
    assert got.dtype == torch.float32
    expected = torch.nn.functional.cross_entropy(logits.double(), targets, reduction="none")
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=1e-5)


def test_parts_that_follow_one_another_are_joined_in_their_order():
    parts = [
        Predicted(torch.full((n,), float(n)), torch.full((2, 3, n), -float(n)), np.full(n, 9.0 + n)) for n in (2, 1)
    ]
    whole = Predicted.joined(parts)
    assert whole.nll.tolist() == [2, 2, 1] and whole.held.tolist() == [11, 11, 10]
    assert whole.sink_mass.shape == (2, 3, 3) and whole.sink_mass[1, 2].tolist() == [-2, -2, -1]
    for count in (1, 2, 3):
        logits = [Logits.of(torch.full((n, 5), float(n))) for n in range(1, count + 1)]
        whole = Logits.joined(logits)
        assert whole.rows[:, 0].tolist() == [n for n in range(1, count + 1) for _ in range(n)]
        assert torch.equal(whole.totals, Logits.of(whole.rows).totals)
