"""What a paper says beside a figure: a caption, and whom to cite, as BibTeX."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..models import gemma
from ..models.dtypes import arithmetic
from ..models.kinds import named
from ..policies import parse
from .base import Figure

WORKS = {
    "streaming": ("xiao2023streamingllm", "Efficient Streaming Language Models with Attention Sinks", "2309.17453",
                  "Xiao, Guangxuan and Tian, Yuandong and Chen, Beidi and Han, Song and Lewis, Mike"),
    "h2o": ("zhang2023h2o",
            "{H2O}: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models", "2306.14048",
            "Zhang, Zhenyu and others"),
    "tova": ("oren2024tova", "Transformers are Multi-State {RNN}s", "2401.06104", "Oren, Matanel and others"),
    "snapkv": ("li2024snapkv", "{SnapKV}: {LLM} Knows What You are Looking for Before Generation", "2404.14469",
               "Li, Yuhong and others"),
    "knorm": ("devoto2024knorm", "A Simple and Effective {L2} Norm-Based Strategy for {KV} Cache Compression",
              "2406.11430", "Devoto, Alessio and others"),
    "keydiff": ("park2025keydiff", "{KeyDiff}: Key Similarity-Based {KV} Cache Eviction for Long-Context {LLM} "
                "Inference in Resource-Constrained Environments", "2504.15364", "Park, Junyoung and others"),
    "scissorhands": ("liu2023scissorhands", "Scissorhands: Exploiting the Persistence of Importance Hypothesis for "
                     "{LLM} {KV} Cache Compression at Test Time", "2305.17118", "Liu, Zichang and others"),
    "adakv": ("feng2024adakv", "{Ada-KV}: Optimizing {KV} Cache Eviction by Adaptive Budget Allocation for Efficient "
              "{LLM} Inference", "2407.11550", "Feng, Yuan and others"),
    "cam": ("zhang2024cam", "{CaM}: Cache Merging for Memory-efficient {LLM}s Inference",
            "Proceedings of Machine Learning Research 235, 2024", "Zhang, Yuxin and others"),
    "lagkv": ("liang2025lagkv", "{LagKV}: Lag-Relative Information of the {KV} Cache Tells Which Tokens Are Important",
              "2504.04704", "Liang, Manlai and others"),
    "expected-attention": ("devoto2025expectedattention", "Expected Attention: {KV} Cache Compression by Estimating "
                           "Attention from Future Queries Distribution", "2510.00636", "Devoto, Alessio and others"),
    "pyramid": ("cai2024pyramidkv", "{PyramidKV}: Dynamic {KV} Cache Compression based on Pyramidal Information "
                "Funneling", "2406.02069", "Cai, Zefan and others"),
    "duo": ("xiao2024duoattention", "{DuoAttention}: Efficient Long-Context {LLM} Inference with Retrieval and "
            "Streaming Heads", "2410.10819", "Xiao, Guangxuan and others"),
    "sinks": ("gu2024attentionsink", "When Attention Sink Emerges in Language Models: An Empirical View", "2410.10781",
              "Gu, Xiangming and others"),
    "massive": ("sun2024massive", "Massive Activations in Large Language Models", "2402.17762",
                "Sun, Mingjie and Chen, Xinlei and Kolter, J. Zico and Liu, Zhuang"),
    "kvquant": ("hooper2024kvquant", "{KVQuant}: Towards 10 Million Context Length {LLM} Inference with {KV} Cache "
                "Quantization", "2401.18079", "Hooper, Coleman and others"),
    "intactkv": ("liu2024intactkv", "{IntactKV}: Improving Large Language Model Quantization by Keeping Pivot Tokens "
                 "Intact", "2403.01241", "Liu, Ruikang and others"),
    "embedded": ("allal2025smollm2", "{SmolLM2}: When Smol Goes Big -- Data-Centric Training of a Small Language Model",
                 "2502.02737", "Ben Allal, Loubna and others"),
    gemma.NAME: ("gemmateam2025gemma3", "Gemma 3 Technical Report", "2503.19786", "{Gemma Team}"),
}  # fmt: skip
"""Key, title, number at arXiv (or where it was published) and authors, by the policy, figure or model that cites it."""
OF_FIGURES = {
    "massive": ("massive",), "mean-logits": ("streaming",), "emergence": ("sinks",), "emergence-map": ("sinks",),
    "sink-grid": ("sinks",), "sink-depth": ("sinks",), "head-map": ("sinks",), "map-grid": ("sinks",),
    "key-ranges": ("kvquant", "intactkv"),
}  # fmt: skip


def caption(
    figure: Figure, spec: Mapping[str, Any], policies: Sequence[str], tokens: int | None, marked: str = ""
) -> str:
    """What is seen, of which model on which text, under which policies; `spec` and how many `tokens` were read: as far
    as they are known; `marked`: what is marked besides, as a sentence."""
    parts = [figure.seen(), *filter(None, [marked])]
    if isinstance(model := spec.get("model"), str):
        model = {"embedded": "SmolLM2-135M-Instruct", gemma.NAME: gemma.CALLED}.get(model, named(model))
        text = f" on {spec['text']}" if spec.get("text") else ""
        facts = [f"{tokens:,} tokens"] if tokens else []
        if (heads := spec.get("kv_heads")) is not None:
            facts.append(f"KV heads averaged to {heads}, without training")
        how = arithmetic(spec.get("weights") or "model", spec.get("dtype") or "")
        # As in lists of runs, float32 is what is meant where nothing else is said.
        facts += [how] * bool(how and (facts or how != "float32"))
        told = f" ({', '.join(facts)})" if facts else ""
        parts.append(f"{model}{text}{told}.")
    if trained := spec.get("trained"):
        parts.append(f"{trained}.")
    if policies:
        labels = ", ".join(parse(p).label for p in policies)
        parts.append(f"{'Policy' if len(policies) == 1 else 'Policies'}: {labels}.")
    return " ".join((*parts, "Made with Sinkscope."))


def bibtex(figure: Figure, spec: Mapping[str, Any], policies: Sequence[str]) -> str:
    """Entries of the papers that the policies, the figure and the model come from; empty where there are none."""
    names = [parse(p).name for p in policies] + list(OF_FIGURES.get(figure.name, ()))
    if (model := spec.get("model")) in ("embedded", gemma.NAME):
        names.append(model)
    return "\n\n".join(_entry(*WORKS[name]) for name in dict.fromkeys(names) if name in WORKS)


def _entry(key: str, title: str, where: str, authors: str) -> str:
    year, found = f"20{where[:2]}", f"  eprint = {{{where}}},\n  archivePrefix = {{arXiv}}"
    if not where[0].isdigit():
        year, found = where[-4:], f"  howpublished = {{{where}}}"
    return f"@misc{{{key},\n  title = {{{title}}},\n  author = {{{authors}}},\n  year = {{{year}}},\n{found}\n}}"
