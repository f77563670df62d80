"""Loads a causal language model into memory.

Refuses with one sentence what cannot be loaded.  Where the files come from is fetch.py's; whether the engine can read a
family is decided where that is known (families/).  Weights are read from safetensors or GGUF only and no model's own
code is ever run.
"""

import contextlib
import importlib.util
import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .. import files
from ..engine import allocator
from ..families import unreadable
from ..settings import quoted
from . import conversions, gemma, gguf_metadata, gguf_tokenizer, laid_out, tiny
from .checked import adapted_once
from .checkpoint import check_loaded, check_quantization, check_rope
from .devices import pick_device
from .dtypes import AUTO, DTYPES, decide
from .fetch import EMBEDDED_NAME, check_gguf, embedded, first_line, from_hub, weight_files
from .gqa import pool
from .kinds import EMBEDDED, at_hub
from .language_model import LanguageModel, stamp
from .memory import fits_on_one, gpus, needed, numbers_in
from .progress import Tell, quiet
from .quantization import check, lay_out, make_linear, pack


def load(
    name: str = EMBEDDED,
    *,
    dtype: str = "float32",
    device: str = "auto",
    weights: str = "model",
    kv_heads: int | None = None,
    progress: Tell = lambda sentence: None,
    make_room: Callable[[], None] = lambda: None,
) -> LanguageModel:
    """The model of that name (see KINDS), ready to read.

    `dtype`: one of DTYPES, or auto: the fastest here.  `weights`: one of WEIGHTS.  `kv_heads`: the KV heads of a layer
    are averaged down to so many.  `progress` is told in a few words what is being waited for.  `make_room` is called
    when there is such a model, before memory is taken.  Raises ValueError, in one sentence that says what to do, for
    everything that can be wrong with a name or a file.
    """
    if dtype not in (AUTO, *DTYPES):
        raise ValueError(f"dtype must be one of {', '.join((AUTO, *DTYPES))}, not {dtype!r}")
    allocator.keep_freed()
    dtype = decide(dtype, device).dtype
    check(weights)
    target = pick_device(device)
    path, own, called = _files(name, progress, make_room)
    before = {own: stamp(own)} if own.is_file() else {}
    with quiet(f"Loading {called}", progress), _read_once() if path.is_file() else contextlib.nullcontext():
        model = _from_disk(path, called, getattr(torch, dtype), target, weights, make_room)
        model.loaded_as = name
        if kv_heads is not None:
            model.averaged = pool(model.network, kv_heads)
        make_linear(model.network)
        if weights != "model":
            pack(model.network, weights)
        lay_out(model.network)
        if (path / conversions.MANIFEST).is_file():
            model.twin = partial(adapted_once, folder=path, settings=f"{weights} {kv_heads}")
        if path != own:
            # The file says more than its conversion: it is the same on every machine.
            model.weights, model.stamps = [own], before
        if name != EMBEDDED:
            _adapt(model, called, kv_heads)
    return model


def _files(name: str, progress: Tell, make_room: Callable[[], None]) -> tuple[Path, Path, str]:
    """What is loaded, what that was converted from or is itself, and what the model is called."""
    if name == EMBEDDED:
        return *embedded(progress), EMBEDDED_NAME
    # os.path answers for any string, also for one that can be no path.
    place = Path(os.path.expanduser(name))
    if name == gemma.NAME:
        path, called = _gemma(progress), gemma.CALLED
    elif name == tiny.NAME:
        path, called = tiny.FOLDER, tiny.CALLED
    elif name and os.path.exists(place):
        path, called = place, place.resolve().stem if place.suffix.lower() == ".gguf" else place.resolve().name
    elif at_hub(name):
        path, called = from_hub(name, progress), name
    else:
        raise ValueError(
            f"there is no model {name[:80]!r}: write embedded, a hub id such as HuggingFaceTB/SmolLM2-360M, or the "
            "path of a folder or GGUF file that exists"
        )
    return _converted(path, called, progress, make_room) if path.is_file() else path, path, called


def _adapt(model: LanguageModel, called: str, kv_heads: int | None) -> None:
    """Adapt it now, so that it is refused in the family's name rather than when the first token is read.

    Raises ValueError where it cannot be read, naming the KV heads where these were asked for.
    """
    try:
        _ = model.adapted
    except ValueError as e:
        if kv_heads is None:
            raise
        raise ValueError(
            f"{called} cannot be read with its KV heads averaged to {kv_heads}: leave kv-heads as they are ({e})"
        ) from e


def _read_once() -> AbstractContextManager[None]:
    # Here, since nothing but a GGUF file needs what reads one.
    from .gguf_once import read_once

    return read_once()


def _gemma(progress: Tell) -> Path:
    """The GGUF file of the optional model, joined where it does not lie whole in the cache."""
    parts = gemma.parts()
    path = files.cache_folder() / gemma.FILE
    if not path.is_file() or conversions.damage(conversions.folder_of(path.parent, path), path):
        gemma.join(parts, path, progress)
    return path


def _converted(path: Path, called: str, progress: Tell, make_room: Callable[[], None]) -> Path:
    """The folder of the cache with the same model as a GGUF file; the file itself where that is small, or the cache
    has no room for its numbers."""
    check_gguf(path)
    if path.stat().st_size < conversions.WORTH:
        return path
    folder = conversions.folder_of(files.cache_folder(), path)

    def convert() -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
        """The model of the file, in float32."""
        with quiet(f"Converting {called}, once", progress), _read_once():
            files.check_room(folder, 4 * numbers_in(path), f"the conversion of {called}")
            model = _from_disk(path, called, torch.float32, torch.device("cpu"), "model", make_room)
        return model.network, model.tokenizer

    try:
        conversions.kept(folder, path, called, convert, progress)
    except (OSError, ValueError) as e:
        # Read as it is, which takes its time each time, or is refused with what is wrong with it.
        progress(f"The conversion of {called} cannot be kept ({first_line(e)})")
        return path
    return folder


def _from_disk(
    path: Path,
    called: str,
    dtype: torch.dtype,
    device: torch.device,
    packed: str,
    make_room: Callable[[], None],
) -> LanguageModel:
    local = {"local_files_only": True, "trust_remote_code": False}
    header = None
    if path.is_file():
        check_gguf(path)
        header = gguf_metadata.read(path, called)
        source, weights = path.parent, [path]
        local["gguf_file"] = path.name
    else:
        source, weights = path, weight_files(path, called)
    # Whatever is written there from now on may not be what is read.
    stamps = {file: stamp(file) for file in weights}
    config = _configuration(source, called, local)
    if header is not None:
        try:
            config = gguf_metadata.complete(config, header)
        except (TypeError, AttributeError, ArithmeticError) as e:
            raise ValueError(
                f"{called} says something that is no number where one belongs ({first_line(e)}): convert it again"
            ) from e
    text: Any = config.get_text_config(decoder=True)
    padding = getattr(text, "pad_token_id", None)
    if isinstance(padding, int) and padding >= text.vocab_size:
        # One that was added to the tokenizer alone, or a class's own default: nothing here is padded.
        text.pad_token_id = None
    quantized = check_quantization(config, called)
    check_rope(config, None, called)
    make_room()
    alone = fits_on_one(needed(weights, config, dtype, called), dtype, device, called)
    try:
        # What is not multiplied as it lies there is brought into the order that any other file has.
        as_it_lies = dtype == torch.float32 and device.type == "cpu" and packed == "model"
        ours = (path / conversions.MANIFEST).is_file()
        mapped = laid_out.read(weights, None if as_it_lies else dtype) if ours else None
        kind: Any = AutoModelForCausalLM if mapped is None else AutoModelForCausalLM._model_mapping[type(config)]
        network, report = kind.from_pretrained(
            source if mapped is None else None,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            # Refused below, by name.
            ignore_mismatched_sizes=True,
            # Spread over GPUs only: what lies on the CPU or on disk would be copied for every chunk.
            **({} if alone else {"device_map": "auto", "max_memory": gpus()}),
            **(local if mapped is None else {"state_dict": mapped}),
        )
        if mapped is not None and network.can_generate():
            network.generation_config = GenerationConfig.from_pretrained(source)
        network = (network.to(device) if alone else network).eval().requires_grad_(False)
    except (torch.OutOfMemoryError, MemoryError) as e:
        raise ValueError(
            f"{called} does not fit into the memory of {device.type}: use bfloat16 or a smaller model"
        ) from e
    except Exception as e:
        # A function that is looked up by its name.
        if isinstance(e, KeyError) and (field := next((n for n, v in vars(text).items() if (v,) == e.args), "")):
            raise ValueError(
                f"{called} says {field} {quoted(e.args[0])}, which transformers does not know: fetch its config.json "
                "again, or mend it"
            ) from e
        raise ValueError(
            f"the weights of {called} cannot be read, fetch or convert them again: they may be cut short or belong to "
            f"another configuration ({first_line(e)})"
        ) from e
    if header is not None:
        report["unexpected_keys"] |= gguf_metadata.left_over(network, header)
    check_loaded(network, report, weights, called, quantized=quantized)
    tokenizer = _tokenizer(source, called, local)
    return LanguageModel(called, network, tokenizer, weights, packed, stamps=stamps)


def _tokenizer(source: Path, called: str, local: dict[str, Any]) -> PreTrainedTokenizerBase | None:
    """A model's tokenizer; None where it has none, or one that cannot be used: it can still read token ids."""
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source, **local)
        if "gguf_file" in local:
            gguf_tokenizer.complete(tokenizer, source / local["gguf_file"])
        # One that is damaged may say so only when it is asked.
        tokenizer("a")
        return tokenizer
    except Exception as e:
        whole, pieces = ((source / name).exists() for name in ("tokenizer.json", "tokenizer.model"))
        if "gguf_file" in local or whole or pieces:
            mend = str(e) if isinstance(e, gguf_tokenizer.UnknownSplit) else f"fetch it again ({first_line(e)})"
            if pieces and not whole and importlib.util.find_spec("sentencepiece") is None:
                # transformers takes it for a file of another kind then, and asks for what would not help.
                mend = "install sentencepiece, which reads its tokenizer.model, or put a tokenizer.json beside that"
            logging.getLogger(__name__).warning(
                "The tokenizer of %s cannot be used, so it reads token ids only: %s", called, mend
            )
        return None


def _configuration(source: Path, called: str, local: dict[str, Any]) -> PretrainedConfig:
    # Whatever is wrong inside a file that somebody else wrote may come out as any exception at all.
    try:
        config = AutoConfig.from_pretrained(source, **local)
    except Exception as e:
        why = "is of a family that transformers does not know, or its configuration is damaged: choose another model"
        if "gguf_file" in local:
            # Its family is known by now.
            why = "is damaged or cut short, fetch or convert it again"
        # Where it lies is no part of what is wrong.
        said = first_line(ValueError(str(e).replace(f"{source.parent}{os.sep}", "")))
        raise ValueError(f"{called} {why} ({said})") from e
    if why := unreadable(config):
        raise ValueError(why)
    if not isinstance(config.get_text_config(decoder=True), PretrainedConfig):
        raise ValueError(
            f"{called} has a part for text in its configuration that is none (decoder, text_config or another of such "
            "a name): mend its config.json, or fetch it again"
        )
    if config._attn_implementation != "eager":
        # Attention is the reader's, so a kernel that the file asks for need not be installed.
        config._attn_implementation = None
    # A file that was saved for callers of tuples asks for them, and a pass asks a layer's output by name.
    config.return_dict = True
    return config
