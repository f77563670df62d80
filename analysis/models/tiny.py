"""A tiny model with learned sinks, which comes with Sinkscope: lab/own_sink.py has trained it."""

from .. import resource

NAME = "tiny-gpt-oss"
CALLED = "Tiny gpt-oss"
FOLDER = resource(f"assets/{NAME}")
