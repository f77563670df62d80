"""A text, read from its beginning to its end into a Run in memory, as a notebook wants it.

What goes into a folder, stops and goes on, or is steered from a page, is not done here.
"""

import os
from typing import TYPE_CHECKING

from numpy.typing import NDArray

from .. import texts
from ..models.dtypes import arithmetic
from ..policies import parse
from ..settings import quoted
from .facts import ModelFacts
from .run import Run
from .spec import Spec

if TYPE_CHECKING:
    from ..models.language_model import LanguageModel


def begun(spec: Spec, model: "LanguageModel", source: texts.Text) -> tuple[Run, NDArray]:
    """A run that has read nothing yet, and the ids of the tokens that it is to read, [tokens].

    Raises ValueError where the text cannot be read.
    """
    read = spec.tokenized(source, model.tokenizer)
    run = Run(spec, int(read.ids[0]))
    run.model, run.begins, run.as_text = ModelFacts.of(model), read.begins, read.as_text
    return run, read.ids


def run_of(spec: Spec, model: "LanguageModel") -> Run:
    """What the policies of a Spec make of its text, with a model that was loaded by `load(**spec.loading)`.

    The run stays in memory: `show` draws it, `summarize` says it in numbers, and `save` (runs/folder.py) puts it into a
    folder.  Raises ValueError where the text cannot be read, or the Spec says another model than this one, or other
    numbers or KV heads than it has.
    """
    from ..engine.stream import stream

    if other := _other(spec, model):
        raise ValueError(f"{other}: load it by load(**spec.loading)")
    run, ids = begun(spec, model, texts.read(spec.text))
    run.take_pieces(-1, 0, texts.token_texts(model.tokenizer, ids))
    for step in stream(model, ids, [parse(p) for p in spec.policies], chunk=spec.chunk, fidelity=spec.fidelity):
        run.append(step)
    run.status = "finished"
    return run


def _other(spec: Spec, model: "LanguageModel") -> str:
    """What a model has that the Spec says otherwise, which a run of it would then say wrongly; empty: nothing."""
    computes = arithmetic(model.packed, model.dtype)
    if model.loaded_as and _whole_path(model.loaded_as) != _whole_path(spec.model):
        return f"the model was loaded as {quoted(model.loaded_as)}, and the Spec says {quoted(spec.model)}"
    if computes != spec.arithmetic:
        return f"the model computes in {computes}, and the Spec says {spec.arithmetic}"
    if spec.kv_heads is None and model.averaged:
        return f"the model's KV heads are averaged down to {model.kv_heads}, and the Spec leaves them as they are"
    if spec.kv_heads not in (None, model.kv_heads):
        return f"the model has {model.kv_heads} KV heads, and the Spec says {spec.kv_heads}"
    return ""


def _whole_path(model: str) -> str:
    # A folder may be written in several ways; a name that is no path stays different from all others.
    return os.path.realpath(os.path.expanduser(model))
