"""What a chunk frees is there for the next one, and comes back to the system when it is asked for."""

import os
import platform
import subprocess
import sys

import numpy as np
import pytest

from analysis.engine import allocator
from analysis.engine import lane as lane_module
from analysis.engine.stream import open_lanes
from analysis.policies import Streaming

pytestmark = pytest.mark.whole

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no such settings")
USE = """
import resource
import sys
import psutil
import torch
from analysis.engine import allocator

def resident():
    return psutil.Process().memory_info().rss / 1e6

def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(int(sys.argv[1]) * 250_000)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / times

allocator.keep_freed()
# Until pieces have found their places.
faults(30)
begun, often = resident(), faults(10)
allocator.give_back()
print(often, begun - resident())
"""


def used(size=100, **environment):
    """Page faults for each tensor of `size` MB, and the megabytes that come back in the end."""
    told = subprocess.run(
        [sys.executable, "-c", USE, str(size)],
        env={name: value for name, value in os.environ.items() if name not in allocator.SAID} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return map(float, told.stdout.split())


@glibc
@pytest.mark.parametrize("size", [100, 400])
def test_what_is_freed_is_kept_and_can_be_given_back(size):
    faults, back = used(size)
    assert faults < 100
    assert back > 0.9 * size


@glibc
def test_who_says_otherwise_in_the_environment_is_left_alone():
    # A page has 4,096 bytes, or several times as many, and is handed out at once with some others at most.
    faults, back = used(MALLOC_MMAP_THRESHOLD_="1000000")
    assert faults > 100
    assert back < 50


def test_a_lane_gives_back_now_and_then_whatever_the_chunk(tiny_llama, monkeypatch):
    given = []
    monkeypatch.setattr(lane_module, "GIVE_BACK_EVERY", 16)
    monkeypatch.setattr(allocator, "give_back", lambda: given.append(1))
    for chunk in (1, 5, 8):
        (lane,) = open_lanes(tiny_llama, np.arange(60, dtype=np.int32), [Streaming(2, 6)])
        given.clear()
        while not lane.done:
            lane.read(chunk)
        assert len(given) == 3


def test_other_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: pytest.fail("it was asked"))
    allocator.keep_freed()
    allocator.give_back()
