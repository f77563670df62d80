"""Grids on real workers, one of which is killed in the middle of a cell: what it was doing is done elsewhere."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest

from analysis.experiments import grid
from analysis.experiments.papers import Cell
from analysis.runs.reader import load
from analysis.runs.spec import Spec

from .conftest import ROOT

PATIENCE = 120
"""Seconds that workers may take to come up, or a cell to begin."""


@pytest.fixture(scope="module")
def cells(model, tmp_path_factory):
    """A few cells that take some seconds each: every window is recomputed for every token."""
    text = tmp_path_factory.mktemp("text") / "ids.npy"
    np.save(text, np.random.default_rng(0).integers(0, 97, 1200))
    policies = [f"recompute:window={window},stride=1" for window in (200, 210, 220, 230)]
    return [Cell(policy, Spec(model, str(text), (policy,), device="cpu")) for policy in policies]


@pytest.fixture(scope="module")
def expected(cells, tmp_path_factory):
    """NLL of the same cells, computed in this process."""
    alone = tmp_path_factory.mktemp("alone")
    list(grid.run(cells, alone))
    return {cell.name: nll(alone / cell.name) for cell in cells}


def nll(place):
    return load(place).tracks[0].nll.view().copy()


def writes(pid):
    """Whether a process is in the middle of a cell: its table of tokens is open."""
    try:
        return any(file.path.endswith("tokens.arrow") for file in psutil.Process(pid).open_files())
    except psutil.Error:
        return False


def run_and_kill(cells, expected, out, workers, **how):
    """Run a grid, kill one of the workers in the middle of a cell, and see that nothing is missing or different."""
    done = []
    running = threading.Thread(target=lambda: done.extend(c.name for c in grid.run(cells, out, **how)))
    running.start()
    until, victim = time.monotonic() + PATIENCE, None
    while victim is None and running.is_alive() and time.monotonic() < until:
        victim = next(filter(writes, workers()), None)
        time.sleep(0.05)
    assert victim is not None, "no worker was ever in the middle of a cell"
    os.kill(victim, signal.SIGKILL)
    running.join(PATIENCE)
    assert not running.is_alive() and sorted(done) == sorted(expected)
    for name, wanted in expected.items():
        np.testing.assert_allclose(nll(out / name), wanted, atol=1e-5)


def test_a_killed_local_worker_is_replaced(cells, expected, tmp_path):
    # The app that other tests share writes runs too.
    others = {p.pid for p in psutil.Process().children(recursive=True)}

    def workers():
        return [p.pid for p in psutil.Process().children(recursive=True) if p.pid not in others]

    run_and_kill(cells, expected, tmp_path / "out", workers, jobs=2)


def test_a_cluster_does_elsewhere_what_a_killed_worker_was_doing(cells, expected, tmp_path):
    from distributed import Client

    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started = []

    def start(*command):
        log = (tmp_path / f"{len(started)}.log").open("w")
        started.append(subprocess.Popen([sys.executable, "-m", *command], env=environment, stdout=log, stderr=log))

    try:
        start("distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        address, until = "", time.monotonic() + PATIENCE
        while not address and time.monotonic() < until:
            time.sleep(0.1)
            lines = (tmp_path / "0.log").read_text().splitlines()
            address = next((line.split()[-1] for line in lines if "Scheduler at:" in line), "")
        for _ in range(2):
            start(
                "distributed.cli.dask_worker", address, "--host", "127.0.0.1", "--no-dashboard", "--no-nanny",
                "--nthreads", "1", "--local-directory", str(tmp_path / "dask"),
            )  # fmt: skip
        with Client(address, timeout=PATIENCE) as client:
            client.wait_for_workers(2, timeout=PATIENCE)
            pids = list(client.run(os.getpid).values())
            run_and_kill(cells, expected, tmp_path / "out", lambda: pids, backend="dask", address=address)
            assert len(client.scheduler_info()["workers"]) == 1
    finally:
        # A worker that is asked to end waits for its scheduler, which may have ended first.
        for process in started:
            process.kill()
        for process in started:
            process.wait()
