"""A causal language model in memory: fetched, loaded, checked, packed, and what is worth knowing about it."""

from .. import lazy

__getattr__, __dir__ = lazy(__name__, {"load": ".loading", "LanguageModel": ".language_model"})
