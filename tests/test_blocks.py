"""Laws of slots that leave in blocks: what stays, and what memory that is handed out in blocks holds.

That bands leave in blocks as their rule says is in test_stream.py.
"""

import numpy as np
import pytest

from analysis.engine.check import adapt
from analysis.engine.stream import open_lanes, stream
from analysis.policies import POLICIES, Streaming, Window, parse
from analysis.runs.run import Run
from analysis.runs.spec import Spec
from analysis.runs.summary import summarize

from .families import shared, words
from .published import naive
from .reading import read
from .test_ranked import RANKED, distinct, small

IN_BLOCKS = [name for name in RANKED if "block" in {f.name for f in POLICIES[name].settings()}]


@pytest.mark.parametrize(("block", "interval", "groups"), [(3, 1, 1), (4, 4, 2), (2, 3, 4)])
@pytest.mark.parametrize("positions", ["cache", "text"])
@pytest.mark.parametrize("name", IN_BLOCKS)
def test_blocks_leave_whole_and_the_lowest_mean_first(name, positions, block, interval, groups):
    model, tokens = shared("llama", num_key_value_heads=4 // groups, num_hidden_layers=2), distinct(48)
    policy = small(name, interval=interval, positions=positions, block=block)
    expected, book = naive(model, tokens, policy)
    nll, mass, held, _, lane = read(model, tokens, policy)
    np.testing.assert_allclose(nll, expected, atol=1e-4)
    np.testing.assert_allclose(mass, book.mass, atol=1e-5)
    for (layer, head), kept in book.kept.items():
        assert lane.store.layers[layer].of_head(head)[0].tolist() == kept
    # All that was read and has left are whole blocks.
    assert not any((len(tokens) - 1 - len(layer)) % block for layer in lane.store.layers)
    assert policy.name == "knorm" or held.max() <= policy.budget


@pytest.mark.parametrize("name", IN_BLOCKS)
def test_chunk_size_changes_nothing_where_blocks_leave(name, tiny_llama):
    policy, tokens = small(name, block=3), distinct(80)
    expected = read(tiny_llama, tokens, policy, 1)
    for chunk in (5, 64):
        got = read(tiny_llama, tokens, policy, chunk)
        np.testing.assert_allclose(got[0], expected[0], atol=1e-5)
        np.testing.assert_array_equal(got.cache_tokens, expected.cache_tokens)


@pytest.mark.parametrize("name", IN_BLOCKS)
def test_blocks_of_one_slot_are_no_blocks(name):
    assert parse(f"{name}:block=1") == parse(name) and str(parse(f"{name}:block=1")) == str(parse(name))
    assert "block" not in str(parse(name)) and ",block=2" in str(parse(f"{name}:block=2"))
    assert "blocks of 2" in parse(f"{name}:block=2").label


def test_late_sinks_in_blocks_are_sinks_and_a_window_in_blocks(tiny_llama):
    """Two engines, one rule: a band, and slots that are ranked by their age."""
    tokens = words(90)
    late = read(tiny_llama, tokens, "late:budget=19,sinks=4,start=0,block=4")
    band = read(tiny_llama, tokens, "streaming:sinks=4,window=15,block=4")
    np.testing.assert_allclose(late[0], band[0], atol=1e-5)
    np.testing.assert_array_equal(late.cache_tokens, band.cache_tokens)


@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize(
    "policy",
    [
        "streaming:sinks=3,window=16,block=4",
        "window:window=13,block=5",
        "h2o:budget=16,recent=5,block=4",
        "knorm:budget=16,skip=1,block=3",
        "pyramid:budget=24,recent=2,steepness=4,block=3",
        "pyramid:budget=24,recent=2,steepness=4,block=2",
        "pyramid:budget=24,recent=2,steepness=4,block=1",
    ],
)
def test_memory_is_handed_out_in_blocks(policy, chunk, tiny_llama):
    """The bytes of each token are those of the blocks that hold what each head of each layer then holds."""
    policy, tokens = parse(policy), distinct(70)
    lane, block, sizes, alone = open_lanes(tiny_llama, tokens, [policy])[0], policy.block, [], 2 * 2 * 8 * 4
    while not lane.done:
        lane.read(1, upto=lane.position + 1)
        held = [len(layer.of_head(0)[0]) for layer in lane.store.layers]
        first = min(3, held[0]) if policy.name == "streaming" else 0
        sizes.append(sum(-(-first // block) * block + -(-(n - first) // block) * block for n in held) * alone)
        assert lane.cache_bytes == sizes[-1]
    again, told = open_lanes(tiny_llama, tokens, [policy])[0], []
    while not again.done:
        told += again.read(chunk).cache_bytes.tolist()
    np.testing.assert_allclose(told, sizes, atol=1)
    plain = read(tiny_llama, tokens, parse(str(policy).replace(f",block={block}", ""))).lane
    assert plain.cache_bytes == plain.store.nbytes


def test_what_protected_slots_take_in_whole_blocks_must_have_room():
    for fits in ("h2o:budget=16,recent=13,block=4", "tova:budget=16,sinks=1,block=8", "tova:budget=16,block=16"):
        assert parse(fits).block > 1
    with pytest.raises(ValueError, match=r"sinks \+ recent are 14 tokens, in blocks of 4 up to 17 slots, and after"):
        parse("h2o:budget=16,recent=14,block=4")
    with pytest.raises(ValueError, match="adakv has no setting 'block=2'"):
        parse("adakv:block=2")


@pytest.mark.parametrize(
    "settings",
    [
        "h2o:budget=64,recent=32,block=34",
        "keydiff:budget=16,block=17",
        "expected-attention:budget=32,sinks=13,block=12",
        "late:budget=24,sinks=4,start=0,block=9",
        "scissorhands:budget=16,recent=10,block=8",
        "pyramid:budget=16,recent=8,block=10",
    ],
)
def test_blocks_that_leave_no_room_are_refused(settings):
    with pytest.raises(ValueError, match="choose a larger budget, or fewer of them, or a smaller interval or block"):
        parse(settings)


@pytest.mark.parametrize("name", IN_BLOCKS)
def test_blocks_leave_on_the_meta_device(name, tiny_llama):
    model = adapt(type(tiny_llama)(tiny_llama.config).eval().to("meta"))
    lane = open_lanes(model, words(60), [small(name, interval=2, block=3)])[0]
    for begin, count in ((0, 5), (5, 12), (17, 2), (19, 1)):
        logits, *_ = lane.store.forward(begin, count)
        assert logits.is_meta and all(layer.keys.is_meta for layer in lane.store.layers)


def test_a_run_says_in_how_many_slots_its_tokens_stand(tiny_llama):
    spec = Spec("tiny", "words", ("streaming:sinks=4,window=60,block=16", "h2o:budget=64,recent=9,block=7", "dense"))
    run = Run(spec)
    for step in stream(tiny_llama, words(90), [parse(p) for p in spec.policies], chunk=16):
        run.append(step)
    for lane, track in enumerate(run.tracks[:2]):
        policy = parse(spec.policies[lane])
        assert track.allocated().tolist() == [policy.allocated(int(n)) for n in track.cache_tokens.view()]
        assert track.allocated(80).tolist() == track.allocated().tolist()[80:]
        # Of heads that hold equally many, bytes say the same.
        assert (track.cache_bytes.view() == track.allocated() * 3 * 2 * 2 * 8 * 4).all()
    assert not run.tracks[2].allocated().any()
    said = [lane.cached_text for lane in summarize(run)]
    assert said == ["57 in 80 slots, 29 % empty", "61 in 63 slots, 3 % empty", "89"]


def test_sinks_and_window_have_blocks_of_their_own():
    assert [Streaming(4, 60, block=16).allocated(n) for n in (0, 1, 4, 5, 20, 21, 64)] == [0, 16, 16, 32, 32, 48, 80]
    assert [Window(60, block=16).allocated(n) for n in (0, 1, 16, 17, 60)] == [0, 16, 16, 32, 64]
    assert [parse("shift").allocated(n) for n in (0, 1, 17)] == [0, 1, 17]


def test_late_sinks_that_begin_inside_a_block_need_room_for_both():
    assert parse("late:budget=12,sinks=2,start=3,block=4").protected_slots == 12
    with pytest.raises(ValueError, match="choose a larger budget"):
        parse("late:budget=11,sinks=2,start=3,block=4")
