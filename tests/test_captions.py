"""What captions say: what is drawn, with the settings that it is drawn with, and nothing else."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from matplotlib.figure import Figure as Sheet

from analysis.experiments.papers import EXPERIMENTS
from analysis.experiments.recall.asked import Asked
from analysis.experiments.recall.cells import write_table
from analysis.experiments.verdict import Plan, tables
from analysis.experiments.verdict.kept import folder_of
from analysis.figures import parse
from analysis.figures.citations import caption
from analysis.figures.export import export, provenance
from analysis.figures.inputs import FigureInput, open_input
from analysis.figures.notebook import show
from analysis.figures.report import page
from analysis.figures.sheet import Layout
from analysis.figures.site import site
from analysis.lab.folder import write
from analysis.lab.recipe import Recipe
from analysis.lab.training import Training
from analysis.models.kinds import named
from analysis.runs.folder import save
from analysis.runs.spec import Spec

from .recordings import made_up
from .verdicts import VERDICT


@pytest.mark.parametrize(
    ("figure", "said", "other"),
    [
        ("perplexity:reference=2,roll=64", "the last 64 tokens, times that of lane 2 as far", "most probable"),
        ("perplexity:mode=rolling,reference=2", "Perplexity of the last 256 tokens, over the tokens read", "lane"),
        ("perplexity:mode=cumulative", "Perplexity from the start, over", "256"),
        ("perplexity:mode=KL,reference=2", "KL divergence from the first lane, mean over the last 256", "erplexity"),
        ("perplexity:mode=top-1", "the same most probable token as the first one, over", "erplexity"),
        ("pareto", "perplexity over dense's against megabytes of the cache", "recalled"),
        ("pareto:measure=kl,cost=tokens", "KL divergence from dense against cached tokens", "perplexity"),
        ("pareto:measure=passkey", "the share recalled of passkey against", "perplexity"),
        ("emergence", "Weight on the first token, of the head that looks at it most, while", "NLL"),
        ("emergence:curve=loss", "NLL of all tokens, while", "head"),
        ("needle-map", "was given, by length and depth; grey where dense itself gives fewer than half", "NLL"),
        ("needle-map:cells=nll", "the mean NLL of the answer's tokens, by length", "how often"),
        ("head-map:cells=logits", "Logit, before the softmax", "gave"),
        ("head-map:cells=logits,colour=logarithmic", "cells logits, pool max).", "colour"),
        ("head-map", "pool max, colour logarithmic).", "ogit,"),
        ("map-grid:cells=logits", "Logits before the softmax", "Attention"),
    ],
)
def test_a_caption_says_what_is_drawn_with_these_settings_and_no_more(figure, said, other):
    told = caption(parse(figure), {}, [], None)
    assert said in told and other not in told


def test_a_caption_tells_of_switches_and_full_caches_where_they_are_marked(tmp_path):
    evicts, switched = ("dense", "window:window=128"), {0: (100, "window:window=512")}
    cases = [
        (made_up(120, evicts), ""),
        (made_up(300, evicts), "The moment when a cache is full is marked."),
        (made_up(120, evicts, switches=switched), "Switches are marked."),
        (made_up(300, evicts, switches=switched), "Switches and the moment when a cache is full are marked."),
    ]
    for number, (run, marked) in enumerate(cases):
        save(run, tmp_path / str(number), text_sha256="", weights_sha256="")
        source = open_input(tmp_path / str(number), "run")
        told = provenance(parse("perplexity"), source, Path("a.pdf"), Layout())["caption"]
        assert marked in told and told.count("marked") == bool(marked)


def test_no_caption_title_or_table_says_where_files_lie_on_somebodys_machine(tmp_path):
    run, model, text = made_up(300), "/home/me/models/my-llama", "/home/me/texts/my novel.txt"
    run.spec = replace(run.spec, model=model, text=text)
    save(run, tmp_path / "gallery" / "run", text_sha256="", weights_sha256="")
    source = open_input(tmp_path / "gallery" / "run", "run")
    said = [provenance(parse("memory"), source, Path("a.pdf"), Layout())["caption"]]
    assert "my-llama on my novel.txt (300 tokens" in said[0]
    said += [page(source).partition("<h2>")[0].partition("<title>")[2].partition("</title>")[0], repr(show(run))]
    assert all(words.startswith("my novel.txt, read by") for words in said[1:])
    site(tmp_path / "site", tmp_path / "gallery")
    said.append((tmp_path / "site" / "index.html").read_text(encoding="utf-8"))
    assert "my novel.txt · my-llama" in said[-1]
    for experiment in EXPERIMENTS:
        cells = EXPERIMENTS[experiment].cells(Spec(model, text, ("dense",), 120), 16)
        said += EXPERIMENTS[experiment].table(cells, tmp_path / "none")[0]
    verdict = FigureInput(
        tmp_path, msgspec.structs.replace(VERDICT, texts=[text, "hamlet"]), {"spec": {"model": model, "text": text}}
    )
    said.append(provenance(parse("pareto"), verdict, Path("a.pdf"), Layout())["caption"])
    assert "my-llama on my novel.txt, Hamlet (" in said[-1]
    assert not [words for words in said if "/home" in words]


def test_a_model_of_the_hub_keeps_its_owner():
    assert [named(m) for m in ("embedded", "org/name", "./a/b", "/a/b.gguf", "~/b")] == [
        "embedded", "org/name", "b", "b.gguf", "b",
    ]  # fmt: skip


def test_a_caption_of_trainings_says_which_recipe_at_which_moment(tmp_path):
    """One of them was ended early: what was asked for is not what was done."""
    for i, (attention, seed) in enumerate((("softmax", 3), ("relu", 3))):
        training = Training(Recipe(attention, width=16, vocabulary=24, length=24, batch=8, steps=40, seed=seed))
        moments = [training.measure()]
        training.advance(4 + i)
        write(tmp_path / str(i), training.recipe, [*moments, training.measure()], training.example, "interrupted")
    source = open_input(tmp_path, "trainings")

    def said(figure):
        return provenance(parse(figure), source, Path("a.pdf"), Layout())["caption"]

    same = "task backcopy, layers 1, heads 1, width 16, vocabulary 24, length 24, batch 8, "
    assert f"Softmax, ReLU ({same}" in said("emergence") and "seed 3), after 4 to 5 steps." in said("emergence")
    for curve, unit in (("loss", "NLL of all tokens (nats/token)"), ("copied", "NLL of copied tokens (nats/token)")):
        figure = parse(f"emergence:curve={curve}")
        assert figure.draw(figure.numbers(source.data), ax=Sheet().subplots()).get_ylabel() == unit
    last, first = said("emergence-map:training=1"), said("emergence-map:training=1,moment=0")
    assert "as a training left it" in last and f" ReLU ({same}" in last
    assert "after 5 steps, layer 0, head 0." in last
    assert "at moment 0 of a training" in first and "left it" not in first
    assert "after 0 steps, layer 0, head 0." in first
    assert "step" not in said("emergence-map:training=2") + said("emergence-map:moment=2")


def test_a_caption_of_a_grid_says_what_its_runs_have_read_and_not_what_they_were_to(tmp_path):
    """Its text may be shorter, and a run that was killed at once is drawn by no line."""
    for i, (policy, count) in enumerate((("window:window=32", 300), ("window:window=64", 300), ("dense", 0))):
        run = made_up(count, (policy,))
        run.spec = replace(run.spec, tokens=5000)
        save(run, tmp_path / str(i), text_sha256="", weights_sha256="")
    about = provenance(parse("budget"), open_input(tmp_path, "grid"), Path("a.pdf"), Layout())
    assert "tiny on a play (300 tokens, float32). Policies: Window 32, Window 64. Made" in about["caption"]


def test_a_figure_of_cells_says_of_all_policies_and_texts_that_its_folder_compares(tmp_path):
    """The first of its cells has read one text, and it is dense."""
    spec = Spec("tiny", "hamlet", ("dense",), 300)
    plan = Plan(spec, ("window",), (64, 128), ("perplexity", "passkey"), ("hamlet", "macbeth"), (512,), (5.0,))
    folder = folder_of(plan, tmp_path)
    for name, written in tables.written(VERDICT).items():
        (tmp_path / name).write_text(written)
    about = {"spec": asdict(plan.cells[0].spec), "weights_sha256": "w", "text_sha256": "hamlet's alone"}
    (tmp_path / "cell").mkdir()
    (tmp_path / "cell" / "run.json").write_text(json.dumps(about))
    folder.finish("finished")
    told = provenance(parse("pareto"), open_input(tmp_path, "verdict"), Path("a.pdf"), Layout())
    assert told["spec"]["policies"] == ["dense", "window:window=64", "window:window=128"]
    assert (told["text_sha256"], told["weights_sha256"]) == (plan.text.sha256, "w")
    assert told["run"] == plan.command() and "compare" in told["run"] and "--budgets=64,128" in told["run"]


def test_a_figure_of_recall_tells_the_command_that_asks_the_same(tmp_path):
    spec, asked = Spec("tiny", "passkey", ("dense",)), Asked("passkey", (128,), (5.0, 50.0), 2, 3)
    folder = asked.folder(spec, tmp_path)
    write_table([], tmp_path)
    folder.finish("finished")
    told = provenance(parse("needle-map"), open_input(tmp_path, "recall"), Path("a.pdf"), Layout())["run"]
    assert told == asked.command(spec) and "--depths=5,50" in told and "--seed=3" in told
    # A folder of other hands, or of an older version.
    folder._about["settings"] = {"lengths": "many"}
    folder.finish("finished")
    assert provenance(parse("needle-map"), open_input(tmp_path, "recall"), Path("a.pdf"), Layout())["run"] is None


@pytest.mark.parametrize(("cost", "measured"), [("tokens", False), ("megabytes", True)])
def test_a_caption_of_recall_names_the_task_and_no_text_of_perplexity(cost, measured):
    source = FigureInput(Path("v"), VERDICT, {"spec": {"model": "tiny", "dtype": "float32"}, "text_sha256": "h"})
    about = provenance(parse(f"pareto:measure=passkey,cost={cost}"), source, Path("a.pdf"), Layout())
    assert (about["text"], about["text_sha256"]) == ("passkey", None)
    assert " tiny on passkey. Policies" in about["caption"] and "hamlet" not in about["caption"]
    assert "Shares are of the facts that dense recalls." in about["caption"]
    assert ("What a cache takes was measured on other texts." in about["caption"]) is measured
    read = provenance(parse(f"pareto:cost={cost}"), source, Path("a.pdf"), Layout())
    assert "tiny on Hamlet, Macbeth (1,002 tokens, float32)" in read["caption"] and read["text_sha256"] == "h"
    assert read["text"] == "hamlet, macbeth", "names, by which a program finds them"


def test_a_figure_tells_the_switches_that_the_command_of_its_run_leaves_out(tmp_path):
    run = made_up(300, switches={1: (129, "window:window=16")})
    run.event("pause", lane=0, position=50)
    about = provenance(parse("memory"), FigureInput(tmp_path, run, {}), Path("a.pdf"), Layout())
    (told,) = about["switches"]
    assert about["run"] == run.spec.command()
    assert (told["lane"], told["position"], told["policy"]) == (1, 129, "window:window=16")


def test_one_lane_alone_is_drawn_by_itself_and_not_against_itself(tmp_path):
    save(made_up(300, ("dense",)), tmp_path / "run", text_sha256="", weights_sha256="")
    about = export(parse("perplexity"), tmp_path / "run", tmp_path / "a.csv")
    assert "Perplexity of the last 256 tokens, over" in about["caption"] and "mode=rolling" in about["command"]
    lines = (tmp_path / "a.csv").read_text().splitlines()
    numbers = [float(line.split(",")[-2]) for line in lines if line.endswith(",")]
    assert numbers[-1] == pytest.approx(np.exp(made_up(300, ("dense",)).tracks[0].nll.view()[-256:].mean()), rel=1e-5)
