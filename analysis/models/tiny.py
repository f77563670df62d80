"""A tiny model with learned sinks, which comes with Sinkscope: lab/own_sink.py has trained it."""

from pathlib import Path

NAME = "tiny-gpt-oss"
CALLED = "Tiny gpt-oss"
FOLDER = Path(__file__).parents[2] / "assets" / NAME
