"""Laws of checkpoints: what was written comes back, whatever becomes of the newest, and little is written twice."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import files
from analysis.engine.layers.slots import Slots
from analysis.runs.checkpoint import EVERY, KINDS, Checkpoints, Saver

pytestmark = pytest.mark.whole


def grow(slots, count, seed=0):
    slots.append(torch.randn(2, count, 3, generator=torch.Generator().manual_seed(seed + slots.first + len(slots))))


def same(found, tensors):
    assert found.keys() == tensors.keys()
    for name, t in tensors.items():
        torch.testing.assert_close(found[name], t, rtol=0, atol=0)


def test_what_was_written_comes_back(tmp_path):
    tensors = {str(dtype): torch.arange(6).view(2, 3).to(dtype) for dtype in KINDS}
    tensors |= {"empty": torch.empty(2, 0, 3), "transposed": torch.randn(3, 4).T, "number": torch.tensor(1.5)}
    tensors["numpy's empty"] = torch.from_numpy(np.zeros(0, np.int32))
    Checkpoints(tmp_path).write({"position": 7, "policy": "dense"}, tensors)
    found = Checkpoints(tmp_path).newest()
    assert found.about == {"position": 7, "policy": "dense"}
    same(found.tensors, tensors)


def test_where_nothing_was_written_there_is_no_checkpoint(tmp_path):
    assert Checkpoints(tmp_path).newest() is None


CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 5)),
        st.tuples(st.just("keep"), st.integers(0, 9)),
        st.tuples(st.just("anew"), st.integers(0, 3)),
        st.tuples(st.just("write"), st.just(0)),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=60)
@given(CHANGES)
def test_windows_come_back_as_they_were_whatever_became_of_them(tmp_path_factory, changes):
    folder = tmp_path_factory.mktemp("run")
    checkpoints, slots, written = Checkpoints(folder), Slots(torch.empty(2, 0, 3)), []
    for what, count in changes:
        if what == "append":
            grow(slots, count)
        elif what == "keep":
            slots.keep_last(count)
        elif what == "anew":
            slots = Slots(torch.empty(2, 0, 3), slots.first)
            grow(slots, count, seed=1000)
        else:
            checkpoints.write({"n": len(written)}, {"keys": slots.window(), "n": torch.tensor(len(written))})
            written.append(slots.view().clone())
    found = list(Checkpoints(folder).generations())
    assert [c.about["n"] for c in found] == list(range(len(written)))[::-1][:2]
    for checkpoint in found:
        same(checkpoint.tensors, {"keys": written[checkpoint.about["n"]], "n": torch.tensor(checkpoint.about["n"])})


def test_of_a_window_that_grows_only_what_is_new_is_written(tmp_path):
    checkpoints, slots = Checkpoints(tmp_path), Slots(torch.empty(2, 0, 3))
    grow(slots, 10_000)
    checkpoints.write({}, {"keys": slots.window()})
    before = set(checkpoints.path.iterdir())
    grow(slots, 10)
    checkpoints.write({}, {"keys": slots.window()})
    new = sum(p.stat().st_size for p in set(checkpoints.path.iterdir()) - before)
    assert new < 2_000
    torch.testing.assert_close(checkpoints.newest().tensors["keys"], slots.view(), rtol=0, atol=0)


def test_a_window_written_often_stands_in_few_files_and_is_rewritten_seldom(tmp_path):
    checkpoints, slots, written = Checkpoints(tmp_path), Slots(torch.empty(2, 0, 3)), 0
    there = set()
    for _ in range(200):
        grow(slots, 100)
        checkpoints.write({}, {"keys": slots.window()})
        written += sum(p.stat().st_size for p in set(checkpoints.path.iterdir()) - there)
        there = set(checkpoints.path.iterdir())
        assert len(there) <= 40
    assert written < 10 * slots.view().numel() * 4
    torch.testing.assert_close(checkpoints.newest().tensors["keys"], slots.view(), rtol=0, atol=0)


def test_of_a_window_that_moves_on_old_files_go(tmp_path):
    checkpoints, slots = Checkpoints(tmp_path), Slots(torch.empty(2, 0, 3))
    for _ in range(30):
        grow(slots, 10)
        slots.keep_last(25)
        checkpoints.write({}, {"keys": slots.window()})
    assert sum(p.stat().st_size for p in checkpoints.path.iterdir()) < 12_000


def two(folder):
    """A folder with two generations, and how the older one looks."""
    checkpoints, slots = Checkpoints(folder), Slots(torch.empty(2, 0, 3))
    for n in range(3):
        grow(slots, 20)
        checkpoints.write({"n": n}, {"keys": slots.window(), "position": torch.tensor(n)})
    return checkpoints, slots.view()


def test_a_newest_generation_that_is_damaged_anywhere_gives_way_to_the_one_before(tmp_path):
    chance = np.random.default_rng(0)
    for i in range(40):
        folder = tmp_path / str(i)
        folder.mkdir()
        checkpoints, keys = two(folder)
        newest = sorted(p for p in checkpoints.path.iterdir() if p.name.startswith("00000003"))
        assert len(newest) == 3
        file = newest[i % 3]
        data = bytearray(file.read_bytes())
        if i % 4 == 0:
            file.unlink()
        elif i % 4 == 1:
            file.write_bytes(data[: chance.integers(len(data))])
        else:
            data[chance.integers(len(data))] ^= 1 << int(chance.integers(8))
            file.write_bytes(data)
        found = Checkpoints(folder).newest()
        assert found.about == {"n": 1}, file.name
        same(found.tensors, {"keys": keys[:, :40], "position": torch.tensor(1)})


def test_after_a_damaged_one_the_next_is_written_and_found(tmp_path):
    checkpoints, _ = two(tmp_path)
    next(checkpoints.path.glob("00000003.json")).write_bytes(b"")
    again = Checkpoints(tmp_path)
    again.write({"n": 9}, {})
    assert Checkpoints(tmp_path).newest().about == {"n": 9}


def test_what_a_kill_left_half_written_is_no_generation(tmp_path):
    checkpoints, _ = two(tmp_path)
    (checkpoints.path / "00000004.safetensors").write_bytes(b"half")
    (checkpoints.path / ".00000004.json.1.part").write_bytes(b"half")
    assert Checkpoints(tmp_path).newest().about == {"n": 2}


def test_a_disk_that_takes_no_more_leaves_the_generations_before(tmp_path, monkeypatch):
    checkpoints, _ = two(tmp_path)
    real, there = files.write, sorted(checkpoints.path.iterdir())

    def full(path, text):
        raise files.unwritten(path, OSError(28, "No space left on device"))

    monkeypatch.setattr(files, "write", full)
    with pytest.raises(ValueError, match=r"^[^\n]*No space left[^\n]*$"):
        checkpoints.write({"n": 3}, {"keys": torch.zeros(9)})
    assert sorted(checkpoints.path.iterdir()) == there
    monkeypatch.setattr(files, "write", real)
    assert checkpoints.newest().about == {"n": 2}


def test_a_checkpoint_without_room_is_refused_before_it_is_written(tmp_path, monkeypatch):
    checkpoints, _ = two(tmp_path)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(ValueError, match=r"a checkpoint needs .* MB on disk"):
        checkpoints.write({"n": 3}, {"keys": torch.zeros(9)})
    assert checkpoints.newest().about == {"n": 2}


def test_removed_checkpoints_leave_nothing(tmp_path):
    checkpoints, _ = two(tmp_path)
    checkpoints.remove()
    assert not checkpoints.path.exists()
    assert checkpoints.newest() is None


def test_checkpoints_take_a_fiftieth_of_the_time_at_most(monkeypatch):
    clock, made = SimpleNamespace(now=0.0), []
    monkeypatch.setattr("analysis.runs.checkpoint.time", SimpleNamespace(monotonic=lambda: clock.now))
    slow = SimpleNamespace(write=lambda about, tensors: setattr(clock, "now", clock.now + 2))
    saver = Saver(slow, print)

    def due(after):
        """Whether a checkpoint is begun so many seconds after the last."""
        clock.now, before = clock.now + after, len(made)
        saver.save(lambda: (made.append(clock.now) or {}, {}))
        assert not saver.close()
        return len(made) > before

    assert [due(EVERY - 1), due(1)] == [False, True]
    # It took 2 seconds.
    assert [due(EVERY), due(99 - EVERY), due(1)] == [False, False, True]
