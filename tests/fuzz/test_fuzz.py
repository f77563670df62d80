"""A handful of each row of the fuzzers: the same ones each time, and others for each change of the code."""

import random

import pytest

from . import commands, fresh, parsers
from .seeds import everything
from .spoil import spoiled_json

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = everything(tmp_path_factory.mktemp("seeds"))
    parsers.prepare(root)
    return root


@pytest.mark.parametrize("seed", [1, fresh()], ids=["same", "fresh"])
def test_whatever_is_read_is_read_or_refused_in_a_sentence(whole, seed):
    found = list(parsers.rows(whole, seed, 4))
    assert sum(row.tries for row in found) > 150
    assert not (bad := [f for row in found for f in row.failures]), f"seed {seed}: {bad}"


@pytest.mark.parametrize("seed", [3, fresh()], ids=["same", "fresh"])
def test_every_command_ends_with_a_result_or_a_sentence_and_changes_nothing_of_others(whole, seed):
    found = list(commands.rows(whole, seed, 25))
    assert not (bad := [f for row in found for f in row.failures]), f"seed {seed}: {bad}"


def test_the_same_seed_spoils_alike_whatever_was_spoiled_before():
    first, again = ([spoiled_json('{"a": [{}, []]}', random.Random(seed)) for seed in range(300)] for _ in range(2))
    assert first == again
