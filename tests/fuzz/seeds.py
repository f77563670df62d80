"""Whole files of every kind that a person may hand to the project, to be spoiled by the fuzzers."""

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from analysis.chat.scripts import SCRIPTS
from analysis.engine.check import adapt
from analysis.engine.step import Step
from analysis.lab.folder import write
from analysis.lab.recipe import Recipe
from analysis.lab.training import Training
from analysis.maps.capture import capture
from analysis.models.loading import load
from analysis.policies import Dense, Window
from analysis.runs.folder import Folder
from analysis.runs.run import Run
from analysis.runs.spec import Sampling, Spec

from ..gguf_files import tiny
from ..gguf_files import write as write_gguf

IDS = np.random.default_rng(0).integers(3, 90, 41).astype(np.int32)
POLICIES = ("dense", "window:window=8")


class Named:
    """A model as captures know it, without files."""

    def __init__(self, network) -> None:
        self.adapted, self.sha256 = adapt(network), "w"


def run(place: Path, *, end: str = "", chat: bool = False, model: str = "embedded") -> None:
    """A run of two lanes, one of which switched; without an end, as a killed process leaves it."""
    spec = Spec(model, "hamlet", POLICIES, tokens=40, chunk=16, sampling=Sampling() if chat else None)
    folder = Folder(place, Run(spec, first_token=7), text_sha256="t", weights_sha256="w")
    for lane, policies in enumerate(((Dense(),) * 3, (Window(8), Window(8), Window(4)))):
        for start, policy in zip((1, 17, 33), policies, strict=True):
            at = np.arange(start, min(start + 16, 40))
            kept = np.minimum(at, 8).astype(np.int32)
            mass = np.random.default_rng([lane, start]).random((2, 3, len(at)), np.float32)
            roles = np.full(len(at), 2, np.int8) if chat else None
            nll = np.linspace(1, 2, len(at), dtype=np.float32)
            folder.append(Step(lane, policy, start, at.astype(np.int32), nll, kept, kept * 96, 0.5, mass, roles))
    folder.event("switch", lane=1, position=33, policy="window:window=4", how="")
    if end:
        folder.finish(end)


def stretch(place: Path, model) -> None:
    """A captured stretch, of a model by its folder or of a network alone."""
    spec = Spec(str(model) if isinstance(model, Path) else "tiny", "words", ("streaming:sinks=2,window=8",))
    for _ in capture(load(spec.model) if isinstance(model, Path) else Named(model), IDS, spec, place):
        pass


def trainings(place: Path) -> None:
    for i, attention in enumerate(("softmax", "relu")):
        training = Training(Recipe(attention, width=16, vocabulary=24, length=16, batch=4, steps=2))
        write(place / str(i), training.recipe, list(training.measurements(1)), training.example, "finished")


def model(place: Path) -> LlamaForCausalLM:
    """A tiny llama with a tokenizer of bytes and a chat template, as a folder."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    network = LlamaForCausalLM(LlamaConfig(vocab_size=260, **sizes)).eval().requires_grad_(False)
    network.save_pretrained(place)
    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({sign: i for i, sign in enumerate([*signs, "<s>", "</s>"])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    fast.save_pretrained(place)
    return network


def everything(root: Path) -> Path:
    """All of them in one folder: run, growing, chat, stretch, trainings, model, model.gguf, and files by themselves."""
    model(root / "model")
    for name, how in {"run": {"end": "finished"}, "growing": {}, "chat": {"end": "interrupted", "chat": True}}.items():
        run(root / name, model=str(root / "model"), **how)
    stretch(root / "stretch", root / "model")
    trainings(root / "trainings")
    write_gguf(tiny("llama"), root / "model.gguf")
    files = root / "files"
    files.mkdir()
    np.save(files / "ids.npy", IDS)
    (files / "text.txt").write_text("To be, or not to be: that is the question.\nWhether 'tis nobler")
    (files / "script.jsonl").write_text('{"turns": ["Who are you?", "And I?"]}\n{"turns": ["Why?"]}\n')
    (files / "script.txt").write_bytes((SCRIPTS / "questions.txt").read_bytes())
    return root
