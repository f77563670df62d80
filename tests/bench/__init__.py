"""Benchmarks: what the engine and the page reach on this machine, each against its mark, side by side in one run."""
