"""How the text of a GGUF file's model is split and begun, where its header says so and transformers leaves it out.

transformers splits byte-level text as GPT-2 does where it knows no better, puts BOS before it only where it is told to,
and a space before every sentencepiece text.  What a header means is what llama.cpp makes of it.
"""

from pathlib import Path
from typing import Any

from tokenizers import Regex, pre_tokenizers
from transformers import LlamaTokenizer
from transformers.integrations.gguf import read_gguf_metadata
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS as KNOWN

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_DIGITS = (r"\p{N}", _GPT2)
_BLOOM = " ?[^(\\s|.,!?…。，、।۔،)]+"
SPLITS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys("smollm starcoder refact command-r codeshell exaone minerva-7b mellum2".split(), _DIGITS),
    **dict.fromkeys("stablelm2 hunyuan solar-open".split(), (KNOWN["qwen2"],)),
    **dict.fromkeys("glm4 chatglm-bpe".split(), (KNOWN["llama3"],)),
    **dict.fromkeys("bloom poro-chat gpt3-finnish".split(), (_BLOOM,)),
    "viking": (_BLOOM, r"\p{N}"),
    "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"),
}
"""What a text is split by, one behind the other, under names that transformers does not know."""
_AS_GPT2 = frozenset(
    "default gpt-2 phi-2 jina-es jina-de jina-v1-en jina-v2-es jina-v2-de jina-v2-code roberta-bpe gigachat a.x-4.0 "
    "mellum modern-bert mpt olmo jais trillion granite-docling exaone4".split()
)
"""Names of what transformers does for all that it does not know."""
_LLAMA3 = frozenset("llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano tekken".split())
"""Names of byte-level vocabularies that have whole words without merges, and whose texts begin with BOS unless the file
says otherwise."""


class UnknownSplit(ValueError):
    """A file names a way to split text that is not known here, so its tokens would be others."""


def complete(tokenizer: Any, path: Path) -> None:
    """Let the tokenizer that transformers makes of a GGUF file split and begin texts as the file says.

    Raises UnknownSplit where it cannot be.
    """
    said, _ = read_gguf_metadata(str(path))
    backend = tokenizer.backend_tokenizer
    kind, split = said.get("tokenizer.ggml.model"), said.get("tokenizer.ggml.pre")
    gemma = said["general.architecture"].startswith("gemma")
    if kind == "llama" and not gemma and said.get("tokenizer.ggml.add_space_prefix") is False:
        plain = LlamaTokenizer(add_prefix_space=False).backend_tokenizer
        backend.normalizer, backend.pre_tokenizer, backend.decoder = None, plain.pre_tokenizer, plain.decoder
    if kind != "gpt2" or not split:
        return
    if split in SPLITS:
        parts: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in SPLITS[split]]
        parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        backend.pre_tokenizer = pre_tokenizers.Sequence(parts)
    elif split not in KNOWN and split not in _AS_GPT2:
        raise UnknownSplit(
            "give the folder of the model, since its text is split in a way that is not known here "
            f"(tokenizer.ggml.pre = {split[:60]})"
        )
    if split in _LLAMA3:
        backend.model.ignore_merges = True
        if "tokenizer.ggml.add_bos_token" not in said:
            tokenizer.add_bos_token = True
