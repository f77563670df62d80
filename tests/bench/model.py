"""The model that is measured: the embedded one; at toy sizes one of two narrow layers that reads the same tokens."""

import shutil
import tempfile
from functools import cache
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from analysis.models import loading
from analysis.models.fetch import embedded
from analysis.models.loading import LanguageModel
from analysis.models.progress import quiet

from .sizes import TOY


@cache
def folder() -> Path:
    """Where its files are."""
    whole = Path(embedded(lambda sentence: None)[0])
    if not TOY:
        return whole
    small = Path(tempfile.mkdtemp(prefix="sinkscope-bench-"))
    for path in whole.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, small)
    config = AutoConfig.from_pretrained(whole)
    config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.head_dim = 2, 288, 64, 32
    AutoModelForCausalLM.from_config(config).save_pretrained(small)
    return small


def load(**how) -> LanguageModel:
    """The model as the product loads it, on this machine's processor."""
    return loading.load(str(folder()) if TOY else "embedded", device="cpu", **how)


def stock(dtype: str) -> PreTrainedModel:
    """The model as transformers loads it, with nothing of ours: not from our conversion, which lies as we read it."""
    file = None if TOY else embedded(lambda sentence: None)[1]
    local = {"local_files_only": True} if file is None else {"local_files_only": True, "gguf_file": file.name}
    source = folder() if file is None else file.parent
    with quiet("", lambda sentence: None):
        return AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype), **local).eval()
