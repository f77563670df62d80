"""Small transformers learn what they are given, and what is measured of them is written down and read again."""

import csv
import json

import numpy as np
import pytest
import torch

from analysis.figures import parse
from analysis.figures.sheet import Layout, drawn
from analysis.lab import training as training_module
from analysis.lab.folder import folders_of, read, write
from analysis.lab.measurement import Measurement
from analysis.lab.recipe import ATTENTIONS, Recipe, names_of
from analysis.lab.tasks import TRIGGERS, Backcopy, is_trigger
from analysis.lab.training import Training
from analysis.lab.transformer import Activations, Attention, Transformer

TINY = {"width": 16, "vocabulary": 24, "length": 24, "batch": 8, "steps": 12}


def recipe(**settings) -> Recipe:
    return Recipe(**{**TINY, **settings})


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_weights_equal_the_textbook(kind):
    torch.manual_seed(0)
    attention, logits = Attention(kind, 8, 2), torch.randn(3, 2, 5, 5)
    if attention.sink is not None:
        torch.nn.init.normal_(attention.sink)
    weights = attention.weigh(logits, torch.ones(5, 5, dtype=torch.bool).triu(1))
    for b, h, q in np.ndindex(3, 2, 5):
        row = logits[b, h, q, : q + 1].double()
        wanted = {
            "softmax": lambda x: x.exp() / x.exp().sum(),
            "learned": lambda x, h=h: x.exp() / (x.exp().sum() + attention.sink[h].double().exp()),
            "off-by-one": lambda x: x.exp() / (1 + x.exp().sum()),
            "relu": lambda x: x.clamp(min=0),
            "sigmoid": lambda x: 1 / (1 + 5 * (-x).exp()),
        }[kind](row)
        torch.testing.assert_close(weights[b, h, q, : q + 1].double(), wanted, atol=1e-6, rtol=1e-5)
        assert not weights[b, h, q, q + 1 :].any()


def test_softmax_is_the_same_with_and_without_looking():
    model = Transformer("softmax", 24, 24, 16, 2, 2, torch.Generator().manual_seed(0))
    ids = torch.randint(0, 24, (3, 24))
    torch.testing.assert_close(model(ids), model(ids, Activations()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bos", ["yes", "no"])
def test_what_follows_a_trigger_is_the_token_before_it(bos):
    drawn = Backcopy(recipe(bos=bos)).draw(200, np.random.default_rng(0))
    assert drawn.shape == (200, 25) and drawn[:, 1:].min() > 0
    assert (drawn[:, 0] == 0).all() == (bos == "yes")
    copies = 0
    for row in drawn:
        for t in range(3, 25):
            if is_trigger(row[t - 1]):
                assert row[t] == row[t - 2]
                copies += 1
    assert copies > 200


def test_what_follows_another_token_is_drawn_from_its_row():
    task = Backcopy(recipe(vocabulary=16))
    drawn = task.draw(20_000, np.random.default_rng(0))
    wanted = task.followers
    before, after = drawn[:, 1:-1].ravel(), drawn[:, 2:].ravel()
    for token in (TRIGGERS + 1, 15):
        follows = np.bincount(after[before == token], minlength=16)[1:]
        np.testing.assert_allclose(follows / follows.sum(), wanted[token], atol=0.02)
    # The first token's own row too, and triggers come as often as they should.
    first = np.bincount(drawn[:, 1], minlength=16)[1:] / len(drawn)
    np.testing.assert_allclose(first, wanted[0], atol=0.02)
    assert wanted[:, :TRIGGERS].sum(1) == pytest.approx(0.1)


def test_the_plays_are_read_in_stretches():
    training = Training(recipe(task="plays", vocabulary=300))
    task = training.task
    drawn = task.draw(8, np.random.default_rng(0))
    assert drawn.shape == (8, 25) and (drawn[:, 0] == 0).all() and drawn[:, 1:].min() > 0 and drawn.max() < 300
    assert not task.copies(torch.from_numpy(drawn)).any()
    moments = list(training.measurements(6))
    assert np.isnan(moments[-1].copied) and moments[-1].loss < moments[0].loss


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_the_same_seed_gives_the_same_curves(kind):
    one, other = (list(Training(recipe(attention=kind, seed=5)).measurements(4)) for _ in range(2))
    assert [m.step for m in one] == [0, 4, 8, 12]
    for a, b in zip(one, other, strict=True):
        assert a.loss == b.loss
        np.testing.assert_array_equal(a.weight, b.weight)
    assert one[-1].loss != list(Training(recipe(attention=kind, seed=6)).measurements(4))[-1].loss
    assert one[-1].loss < one[0].loss


def test_how_often_one_looks_changes_nothing():
    often, seldom = (list(Training(recipe()).measurements(e))[-1] for e in (1, 12))
    assert often.loss == seldom.loss


def test_moments_are_those_of_the_held_out_sequences():
    training = Training(recipe(layers=2, heads=2))
    moment = training.measure()
    assert moment.weight.shape == moment.norm.shape == (2, 2) and moment.map.shape == (24, 24)
    seen, ids = Activations(), torch.from_numpy(training.task.held_out())
    training.model(ids[:, :-1], seen)
    # A trigger behind fewer than two tokens has nothing to copy.
    idle = [(i, t) for i, t in np.ndindex(len(ids), 24) if t > 0 and (t == 1 or not is_trigger(int(ids[i, t])))]
    wanted = np.mean([seen.weights[1][i, 0, t, 0].item() for i, t in idle])
    np.testing.assert_allclose(moment.weight[1, 0], wanted, rtol=1e-4)
    layer, head = moment.head
    assert moment.sink == moment.weight.max() == moment.weight[layer, head]
    np.testing.assert_allclose(moment.map, seen.weights[layer][0, head].detach(), atol=1e-3)
    np.testing.assert_array_equal(training.example, ids[0, :-1])


def test_measuring_in_parts_changes_nothing(monkeypatch):
    training = Training(recipe(layers=2, heads=2))
    whole = training.measure()
    monkeypatch.setattr(training_module, "HELD_WEIGHTS", 5 * 4 * 24**2)
    parts = training.measure()
    for name in ("loss", "copied", "weight", "norm", "map"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-4, atol=1e-6)
    assert parts.head == whole.head


def test_a_training_that_runs_away_says_so():
    training = Training(recipe())
    with torch.no_grad():
        training.model.head.weight.fill_(float("inf"))
    with pytest.raises(ValueError, match="smaller learning rate"):
        training.measure()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("attention=hard", "be one of softmax"),
        ("width=30,heads=4", "choose a multiple"),
        ("rate=fast", "a number"),
        ("task=plays", "257 tokens or more, not 64"),
    ],
)
def test_recipes_that_cannot_be_cooked_are_said(wrong, says):
    with pytest.raises(ValueError, match=says):
        Recipe.parse(wrong)


SETTINGS = ",".join(f"{k}={v}" for k, v in TINY.items())


def test_trainings_of_one_attention_are_called_by_what_else_differs():
    recipes = [Recipe(), Recipe(rate=0.001, seed=2), Recipe("relu", steps=9), Recipe(rate=0.001)]
    names = ["Softmax, rate 0.005, seed 0", "Softmax, rate 0.001, seed 2", "ReLU", "Softmax, rate 0.001, seed 0"]
    assert names_of(recipes) == names and names_of(recipes[2:]) == ["ReLU", "Softmax"]


def test_a_training_is_written_down_and_read_again(run, tmp_path):
    place = tmp_path / "e"
    code, said, _ = run("emergence", SETTINGS, "--every", "6", "--out", str(place))
    assert code == 0 and "Weight on token 0" in said and "Finished" in said
    rows = list(csv.DictReader((place / "curves.csv").open()))
    assert [int(r["step"]) for r in rows] == [0, 6, 12] and float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert json.loads((place / "run.json").read_text())["status"] == "finished"
    (trained,) = read(place)
    wanted: list[Measurement] = list(Training(recipe()).measurements(6))
    assert trained.recipe == recipe() and trained.maps.shape == (3, 24, 24)
    np.testing.assert_allclose(trained.of_head("weight"), [m.sink for m in wanted], rtol=1e-5)
    np.testing.assert_array_equal(trained.maps[-1], wanted[-1].map)
    code, _, said = run("emergence", SETTINGS, "--out", str(place))
    assert code == 2 and "holds a run already" in said
    for empty in ("", " ", ",", " , ,", "\x0b,"):
        code, _, said = run("emergence", SETTINGS, empty, "--out", str(tmp_path / "new"))
        assert code == 2 and "says nothing about a model" in said
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="holds no training"):
        read(tmp_path / "none")


@pytest.mark.parametrize("recipes", [(SETTINGS,), (SETTINGS, f"{SETTINGS},attention=relu")])
def test_trainings_that_are_refused_leave_no_folder_and_free_no_run(run, tmp_path, recipes):
    code, _, said = run("emergence", *recipes, "--device", "tpu", "--runs", str(tmp_path / "runs"))
    assert code == 2 and "device must be one of" in said
    code, _, said = run("emergence", *recipes, "--device", "tpu", "--out", str(tmp_path / "new"))
    assert code == 2 and not list(tmp_path.iterdir())


def test_several_are_written_beside_each_other_and_drawn_together(run, tmp_path):
    place, picture = tmp_path / "e", tmp_path / "curves.csv"
    code, _, _ = run("emergence", SETTINGS, f"{SETTINGS},attention=relu", "--every", "6", "--out", str(place))
    assert code == 0 and [t.recipe.attention for t in read(place)] == ["softmax", "relu"]
    assert run("figure", "emergence:curve=value", "--run", str(place), "--out", str(picture))[0] == 0
    rows = list(csv.DictReader(picture.open()))
    assert [(r["attention"], r["step"]) for r in rows] == [
        (a, s) for a in ("softmax", "relu") for s in "0 6 12".split()
    ]
    code, _, said = run("figure", "emergence-map:training=2", "--run", str(place), "--out", str(picture))
    assert code == 2 and "trainings 0 to 1" in said


@pytest.mark.parametrize("most", [1.0, 49.5])
def test_weights_that_sum_to_anything_stay_inside_their_axes(most):
    data = {"training": np.zeros(2, int), "step": np.array([0, 10]), "weight": np.array([0.1, most])}
    data |= {"attention": np.array(["relu", "relu"]), "label": np.array(["ReLU", "ReLU"])}
    with drawn(parse("emergence"), data, Layout("acl", 8, 72)) as sheet:
        assert (top := sheet.axes[0].get_ylim()[1]) >= most and (top == 1) == (most == 1)


def test_nothing_waits_for_another_device():
    """What is made on the way lies where the model lies: on a device that computes nothing."""
    model = Transformer("sigmoid", 24, 24, 16, 1, 2, torch.Generator().manual_seed(0)).to("meta")
    assert model(torch.zeros(2, 24, dtype=torch.long, device="meta"), Activations()).device.type == "meta"


def test_twelve_in_one_folder_are_read_in_the_order_of_their_numbers(tmp_path):
    training = Training(recipe(steps=1))
    measured = list(training.measurements(1))
    for i in range(12):
        write(tmp_path / f"{i}-softmax", recipe(steps=1, seed=i), measured, training.example, "finished")
    assert [saved.recipe.seed for saved in read(tmp_path)] == list(range(12))
    assert [folder.name for folder in folders_of(tmp_path)] == [f"{i}-softmax" for i in range(12)]


def test_a_training_that_was_cut_or_lost_its_record_is_not_shown_as_whole(tmp_path):
    training = Training(recipe(steps=1))
    measured = list(training.measurements(1))
    for i in range(2):
        write(tmp_path / f"{i}-softmax", recipe(steps=1, seed=i), measured, training.example, "finished")
    curves = tmp_path / "1-softmax" / "curves.csv"
    whole = curves.read_bytes()
    # Without its last digit the norm of a value is another number.
    curves.write_bytes(whole[:-2])
    with pytest.raises(ValueError, match=r"curves\.csv is cut short in its last line"):
        read(tmp_path)
    curves.write_bytes(whole)
    (record := tmp_path / "1-softmax" / "run.json").unlink()
    with pytest.raises(ValueError, match=r"1-softmax lacks run\.json, which says what was trained: copy all files"):
        read(tmp_path)
    write(record.parent, recipe(steps=1), measured, training.example, "finished")
    assert len(read(tmp_path)) == 2
