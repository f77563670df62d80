"""Laws of a band: what a query reaches, from where it sees it, and how a chunk is cut, against lists of positions."""

import itertools
import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from analysis.engine.attention.band import Band, plan
from analysis.engine.attention.blocks import Met, fold, unfold
from analysis.engine.attention.call import Call
from analysis.engine.layers.quantized import Quantization

from . import naive

POSITIONS = ("cache", "text", "none", "naive")
BANDS = [
    Band(sinks, sinks + gap, window, positions, step, sinks)
    for sinks, gap, window, positions, step in itertools.product((0, 1, 4), (0, 3), (1, 5, None), POSITIONS, (1, 3))
    # A position that is the length of the cache is of a window alone.
    if (positions != "naive" or window) and step <= (window or 1)
]


def window_of(band, t):
    """The tokens of the window that query t reaches, itself included."""
    low = 0 if band.window is None else naive.edge(t, band.steps_from, band.window, band.step)
    return list(range(max(band.first, low), t + 1))


def reached(band, t):
    """All that query t reaches, in the order of the text."""
    return [*range(min(band.sinks, t + 1)), *window_of(band, t)]


def count(band, t):
    """The length of the cache when token t was read."""
    return min(t, band.sinks + (t - naive.edge(t, band.steps_from, band.window, band.step) if band.window else 0))


def queries(band):
    return [t for t in range(25) if t < band.sinks or t >= band.first]


@pytest.mark.parametrize("band", BANDS, ids=str)
def test_a_query_reaches_the_sinks_and_its_window(band):
    sees = band.sees(torch.tensor(queries(band)), torch.arange(25))
    for t, row in zip(queries(band), sees, strict=True):
        held = {*range(band.sinks), *range(band.first, 25)}
        assert [k for k in range(25) if row[k] and k in held] == reached(band, t)


@pytest.mark.parametrize("band", BANDS, ids=str)
def test_positions_are_counted_as_the_policy_says(band):
    at_sinks = band.at_sinks(torch.device("cpu")).tolist()
    for t in queries(band):
        slot, keys = band.slot_of(t), reached(band, t)
        assert slot == band.slot(torch.tensor(t))
        counted = count(band, t)
        for sink in range(min(band.sinks, t + 1)):
            by_slot = keys.index(t) - keys.index(sink)
            wanted = {"cache": by_slot, "text": t - sink, "none": 0, "naive": counted - sink}[band.positions]
            assert slot - at_sinks[sink] == wanted
        for origin in (0, 7):
            query, key = (int(band.in_window(torch.tensor(x), origin)) for x in (t, max(t - 1, 0)))
            naively = counted - count(band, max(t - 1, 0))
            assert query - key == (naively if band.positions == "naive" else min(t, 1))
            assert band.positions == "naive" or query == t - origin
        length = {"cache": len(keys), "text": t + 1, "none": 0, "naive": counted + 1}[band.positions]
        assert band.length_of(t) == (length if band.sinks and length else max(1, len(window_of(band, t))))


@pytest.mark.parametrize("step", [1, 2, 5])
@pytest.mark.parametrize(("sinks", "window"), [(0, 1), (0, 7), (3, 1), (4, 9), (30, 5)])
def test_what_is_held_is_what_a_list_holds(sinks, window, step):
    step = min(step, window)
    band = Band(sinks, sinks, window, "cache", step, sinks)
    lists = [naive.kept(t, sinks, window, step) for t in range(41)]
    assert band.held(np.arange(40)).tolist() == [len(of) - 1 for of in lists[1:]]
    assert [band.keeps(end) for end in range(41)] == [sum(k >= sinks for k in of[:-1]) for of in lists]
    for t, of in enumerate(lists[:40]):
        assert torch.arange(40)[band.sees(torch.tensor([t]), torch.arange(40))[0]].tolist() == of
    assert Band(sinks, sinks, None, "cache").held(np.arange(40)).tolist() == list(range(1, 41))


@pytest.mark.parametrize("sliding_window", [None, 1, 5, 6, 30])
@pytest.mark.parametrize(("window", "step"), [(1, 1), (5, 1), (5, 4), (None, 1)])
def test_a_layer_that_slides_by_itself_sees_no_more(sliding_window, window, step):
    band, t = Band(3, 3, window, "cache", step, 3), torch.arange(20)
    expected = band.sees(t, t, sliding_window)
    for q, k in itertools.product(range(20), range(20)):
        own = sliding_window is None or k > q - sliding_window
        assert expected[q, k] == (k in reached(band, q) and own)
    assert torch.equal(band.narrowed(sliding_window).sees(t, t[3:]), expected[:, 3:])


def cases():
    draw = random.Random(0)
    for _ in range(160):
        sinks, window = draw.choice((0, 2, 4, 6)), draw.choice((None, 1, 5, 70))
        first = sinks + draw.choice((0, 0, 3))
        held = draw.randint(0, 80 if window is None else window)
        start = draw.randint(0, sinks) if first == sinks and draw.random() < 0.3 else first + held
        # No more first tokens are sinks than have been read when the chunk ends.
        count = max(draw.choice((1, 3, 64, 65, 140)), sinks - start)
        settings = {"sink_tokens": draw.choice((0, 4, 9)), "sliding_window": draw.choice((None, None, 1, 4, 30))}
        step = draw.randint(1, window) if window and draw.random() < 0.5 else 1
        band = Band(sinks, first, window, "cache", step, sinks)
        if start > band.first:
            # Before the chunk, too, no more was kept than its first token reaches.
            band = replace(band, first=max(first, start - band.keeps(start)))
        yield band, start, count, settings, draw.choice((1, 2))


def test_a_plan_shows_every_query_what_it_reaches_and_nothing_else():
    cut = 0
    for band, start, count, settings, groups in cases():
        made = plan(band, start, count, groups=groups, dtype=torch.float32, device=torch.device("cpu"), **settings)
        stop, (_, after), sliding_window = start + count, made.pad, settings["sliding_window"]
        rest = band.first + made.observed + made.past
        prefix = [*range(band.sinks), *range(band.first, band.first + made.observed)]
        keys = torch.arange(rest, stop)[None, :, None]
        # Behind the ends stand keys that are nobody's.
        keys = Met.of(keys + 1, made).came[:, 0, :, 0] - 1
        assert keys.shape == (made.blocks, made.width) and (made.blocks - 1) * made.block < count + after + 1
        rows = torch.zeros(made.blocks, 1, groups * made.block, made.width)
        for columns in made.masks:
            rows[..., columns.where] += columns.mask
        of_prefix = torch.zeros(made.blocks, 1, groups * made.block, len(prefix))
        if made.prefix_mask is not None:
            of_prefix += made.prefix_mask
        cut += made.blocks > 1
        if made.blocks > 1:
            assert made.width == made.block + band.narrowed(sliding_window).reach and made.past == 0
        for i, group in itertools.product(range(count), range(groups)):
            t, (block, row) = start + i, divmod(i, made.block)
            row += group * made.block
            seen = [k for k, x in zip(prefix, of_prefix[block, 0, row].tolist(), strict=True) if x == 0]
            seen += range(band.first + made.observed, rest)
            seen += [k for k, x in zip(keys[block].tolist(), rows[block, 0, row].tolist(), strict=True) if x == 0]
            own = 0 if sliding_window is None else t - sliding_window + 1
            assert seen == [k for k in reached(band, t) if k >= own], (band, start, count, settings, t)
        early = [k for k in prefix if k < settings["sink_tokens"]]
        assert prefix[: made.counted] == early and not set(range(rest, stop)) & set(range(settings["sink_tokens"]))
    assert cut > 20


def test_a_query_meets_each_key_once_and_as_it_is_stored_for_it():
    draw, twice = random.Random(1), set()
    for _ in range(150):
        window, group = draw.choice((3, 20, 70, 130, None)), draw.choice((1, 4, 32, 48))
        q = Quantization(4, draw.choice((0, 2, 4)), group, draw.randint(group, 3 * group))
        start, count, sliding = draw.randint(140, 400), draw.choice((1, 3, 64, 65, 140)), draw.choice((None, 30))
        band = Band(4, 4 if window is None else max(4, start - window), window, "cache", 1, 4)
        settings = {"sink_tokens": 0, "sliding_window": sliding, "groups": 1, "quantization": q}
        made = plan(band, start, count, dtype=torch.float32, device=torch.device("cpu"), **settings)
        keys = torch.arange(band.first + made.past, start + count)[None, :, None]
        keys = Met.of(keys + 1, made).came[:, 0, :, 0] - 1
        again = [*range(made.width)][made.changing]
        # Columns before those that change hold keys as they are stored, and so do the last ones.
        stored = [*(i < made.changing.start for i in range(made.width)), *(True for _ in again)]
        rows = torch.zeros(made.blocks, made.block, len(stored))
        for columns in made.masks:
            rows[..., columns.where] += columns.mask[:, 0]
        for i in range(count):
            t, (block, row) = start + i, divmod(i, made.block)
            columns = [*keys[block].tolist(), *keys[block, again].tolist()]
            seen = [(c, k) for c, k in enumerate(columns) if rows[block, row, c] == 0]
            low = max(band.first + made.past, band.narrowed(sliding).low_of(t))
            assert sorted((k, stored[c]) for c, k in seen) == [(k, q.exact <= k < q.end(t)) for k in range(low, t + 1)]
        twice.add((made.blocks > 1, len(again) > 0))
        if made.blocks > 1 and 64 % group == 0 and window and window > q.residual:
            # A block sees no more keys change than it has queries.
            assert len(again) <= 64
    assert len(twice) == 4


@pytest.mark.parametrize(("block", "blocks"), [(1, 5), (5, 1), (2, 3), (4, 2)])
def test_unfolding_gives_back_what_was_folded(block, blocks):
    x = torch.arange(2 * 6 * 5 * 3.0).view(2, 6, 5, 3)
    rows = fold(x, 2, block, blocks)
    assert rows.shape == (2 * blocks, 2, 3 * block, 3)
    whole = unfold(rows, 2, block, blocks)
    assert torch.equal(whole[:, :5].transpose(1, 2), x) and not whole[:, 5:].any()
    assert torch.equal(unfold(rows[..., 0], 2, block, blocks), whole[..., 0])


def test_a_layer_that_says_no_scaling_has_that_of_its_dimensions():
    x = torch.zeros(1, 2, 3, 16)
    assert Call.of(SimpleNamespace(layer_idx=0), x, x, x).scaling == 0.25
    assert Call.of(SimpleNamespace(layer_idx=0), x, x, x, scaling=0.5).scaling == 0.5
