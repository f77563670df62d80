"""A text, read from its beginning to its end into a Run in memory, as a notebook wants it.

What goes into a folder, stops and goes on, or is steered from a page, is not done here.
"""

from typing import TYPE_CHECKING

from numpy.typing import NDArray

from .. import texts
from ..models.dtypes import arithmetic
from ..policies import parse
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
    folder.  Raises ValueError where the text cannot be read, or the model computes in other numbers than the Spec says.
    """
    from ..engine.stream import stream

    computes = arithmetic(model.packed, model.dtype)
    if computes != spec.arithmetic:
        raise ValueError(
            f"the model computes in {computes}, and the Spec says {spec.arithmetic}: load it by load(**spec.loading)"
        )
    if spec.kv_heads not in (None, model.kv_heads):
        raise ValueError(
            f"the model has {model.kv_heads} KV heads, and the Spec says {spec.kv_heads}: load it by "
            "load(**spec.loading)"
        )
    run, ids = begun(spec, model, texts.read(spec.text))
    run.take_pieces(-1, 0, texts.token_texts(model.tokenizer, ids))
    for step in stream(model, ids, [parse(p) for p in spec.policies], chunk=spec.chunk, fidelity=spec.fidelity):
        run.append(step)
    run.status = "finished"
    return run
