"""The command that talks: one conversation for each policy."""

from functools import partial
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich.table import Table

from .. import metrics
from ..chat.scripts import read_script
from ..policies import parse
from ..runs.facts import ModelFacts
from ..runs.run import ROLES, Run
from ..runs.spec import TYPED, Sampling, Spec
from ..runs.summary import label_of
from ..texts import with_bos
from . import options
from .console import check_new, new_folder, note, out, right, say
from .ending import end_run, opened
from .waiting import loading

if TYPE_CHECKING:
    from ..chat.conversation import Conversation
    from ..runs.checkpoint import Checkpoints
    from ..runs.folder import Folder

TWO = ["streaming:sinks=4,window=60", "window:window=64"]
"""So small that the second of these breaks down within a few questions."""


def chat(
    model: options.Model = "embedded",
    policy: options.Policies = None,
    script: Annotated[str | None, typer.Option(help="prompts, one a line, or JSONL with turns; none: you type")] = None,
    max_new: Annotated[int, typer.Option(help="at most so many tokens an answer")] = 128,
    temperature: Annotated[float, typer.Option(help="0: always the most probable token")] = 0.0,
    top_k: Annotated[int, typer.Option(help="only the k most probable tokens; 0: all")] = 0,
    top_p: Annotated[float, typer.Option(help="only the most probable tokens of this probability together")] = 1.0,
    repetition_penalty: Annotated[float, typer.Option(help="above 1 makes tokens said lately less probable")] = 1.0,
    seed: Annotated[int, typer.Option(help="same seed, same answers")] = 0,
    chunk: Annotated[int, typer.Option(help="tokens of a prompt read at once; changes no number")] = 256,
    kv_chunk: Annotated[int | None, typer.Option(help="cached tokens read at once; changes no number")] = None,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
    bos: options.Bos = None,
    special: options.Special = "text",
    weights: options.Weights = "model",
    kv_heads: options.KVHeads = None,
    out_folder: options.RunFolder = None,
    runs: options.Runs = None,
) -> None:
    """Talk without end, one lane for each policy.  Ctrl-C ends an answer, Ctrl-D the conversation."""
    dtype = options.dtype_of(dtype, device)
    sampling = Sampling(max_new, temperature, top_k, top_p, repetition_penalty, seed)
    spec = Spec(
        model=model,
        text=TYPED if script is None else script,
        policies=tuple(str(parse(p)) for p in policy or TWO),
        chunk=chunk,
        dtype=dtype,
        device=device,
        weights=weights,
        kv_heads=kv_heads,
        sampling=sampling,
        kv_chunk=kv_chunk,
        bos=options.bos_of(bos),
        special=special,
    )
    prompts, digest = read_script(script) if script is not None else (None, "")
    check_new(out_folder)
    with loading(out) as tell:
        from ..chat.conversation import Conversation
        from ..chat.partner import Partner
        from ..models.loading import load
        from ..runs.checkpoint import Checkpoints
        from ..runs.folder import Folder

        network = load(**spec.loading, progress=tell)
        partner = Partner(network, bos=spec.bos, special=special)
        lanes = [
            Conversation(partner, parse(p), sampling, index=i, kv_chunk=kv_chunk) for i, p in enumerate(spec.policies)
        ]
        for lane in lanes:
            lane.trace()
    with new_folder(out_folder, "chat", runs) as place:
        run = Run(spec)
        run.model, run.begins = ModelFacts.of(network), partner.begins
        with opened(lambda: Folder(place, run, text_sha256=digest, weights_sha256=network.sha256)) as folder:
            options.say_changed(spec)
            say(f"The conversation begins {with_bos(partner.begins)}.")
            if warning := partner.template.note or partner.template.caution:
                folder.event("warning", text=warning)
                note(warning)
            talk(lanes, prompts, folder, Checkpoints(place), len(prompts or ()))


def talk(
    lanes: "list[Conversation]", prompts: list[str] | None, folder: "Folder", checkpoints: "Checkpoints", whole: int
) -> None:
    """Let lanes answer the prompts of a script, or what is typed; finish the folder and print a table.

    `whole`: how many prompts the script had, of which some may have been said.
    """
    from ..chat.resume import checkpoint
    from ..runs.checkpoint import Saver
    from .terminal import converse, typed

    run, status, warnings = folder.run, "finished", list[str]()
    saver, left = Saver(checkpoints, warnings.append), prompts if prompts is not None else []
    made = partial(checkpoint, run, lanes, left, whole)
    try:
        converse(lanes, typed(out), folder, saver, out, made, chunk=run.spec.chunk, pending=prompts)
    except KeyboardInterrupt:
        status = "interrupted"
    except Exception:
        saver.close()
        raise
    # What was typed before a script was played into it goes on, too.
    ended = status == "finished" and prompts is not None and run.spec.text != TYPED
    # One that was left in the middle of a token has gone back a step, and its answer has ended.
    turns = [lane.turns[-1] for lane in lanes if lane.turns]
    sound = turns and not any(turn.why == "failed" for turn in turns)
    end_run(folder, saver, status, warnings, made if sound and not ended else None, over=ended, table=spoken)


def spoken(run: Run) -> Table:
    """Per lane of a conversation: tokens, perplexity of the answers under the model, cache, and speed of answers."""
    table = Table("Lane", *(right(h) for h in ("Tokens", "Answered", "Perplexity", "Kept", "Cache", "ms/token")))
    table.title = f"Computed in {run.spec.arithmetic}"
    table.caption = "Perplexity and ms/token: of the tokens that the model said, under the model as this lane had it"
    for lane, track in enumerate(run.tracks):
        said = track.roles.view() == ROLES.index("assistant")
        # The first token is predicted by none.
        read = len(said) + 1 if len(said) else 0
        if not said.any():
            table.add_row(label_of(run, lane), f"{read:,}", "0", *["–"] * 4)
            continue
        spent = np.diff(track.compute.view(), prepend=0.0)[said]
        # Of what was said before a conversation was resumed, times are not known.
        spent = spent[np.isfinite(spent)]
        table.add_row(
            label_of(run, lane),
            f"{read:,}",
            f"{said.sum():,}",
            f"{metrics.perplexity(track.nll.view()[said]):.3f}",
            f"{track.cache_tokens.view()[-1]:,}",
            f"{track.cache_bytes.view()[-1] / 1e6:,.1f} MB",
            f"{spent.mean() * 1e3:,.1f}" if len(spent) else "–",
        )
    return table
