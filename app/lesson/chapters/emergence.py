"""The emergence lab: small transformers that are trained side by side in front of the student."""

import tempfile
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import streamlit as st
from plotly.subplots import make_subplots

from analysis.figures import parse
from analysis.figures.export import export
from analysis.lab.folder import SavedTraining, curves_as_csv, read, write
from analysis.lab.measurement import Measurement
from analysis.lab.recipe import ATTENTIONS, Recipe
from analysis.palette import TRAINED
from analysis.runs.library import GALLERY
from analysis.settings import told_apart
from app import address
from app.choices import choice, choose, kept_default, kept_value
from app.components import chart
from app.downloads import download
from app.jobs.training import TrainingJob
from app.lesson import Chapter, translated
from app.lesson.answers import About
from app.panels.charts import LEGEND
from app.plain import plain

from . import stage

START = ("softmax", "relu")
PANELS = ("weight", "value", "copied", "loss")
FOR_PLAYS = {"vocabulary": 512, "width": 224, "layers": 7, "heads": 7, "steps": 1000, "batch": 16, "rate": 0.001}
"""About three million parameters; these are not to be chosen, since others would take longer than a class."""
CHOSEN = ("task", "bos", "layers", "heads", "rate", "decay", "steps", "seed")
"""What a student chooses of a recipe, beside what turns logits into weights."""
RECIPE, STEP = "emergence-recipe", "emergence-step"
"""Where these choices are kept, and the step that is looked at."""
MARKERS = ("circle", "square", "diamond", "cross", "x")
FILES = {"pdf": "application/pdf", "svg": "image/svg+xml", "png": "image/png"}


def start() -> None:
    """Train what is chosen, from the beginning."""
    stage.begin(lambda: partial(TrainingJob, recipes()))


def recipes() -> tuple[Recipe, ...]:
    """What the student has chosen.  Raises ValueError where it does not go together."""
    chosen = choice("emergence-kinds", list(START))
    return tuple(recipe_of(choice(RECIPE, {}), kind) for kind in ATTENTIONS if kind in chosen)


def recipe_of(settings: Mapping[str, Any], kind: str = "softmax") -> Recipe:
    """A recipe with these settings.  Raises ValueError where they do not go together."""
    of_plays = FOR_PLAYS if settings.get("task") == "plays" else {}
    chosen: dict[str, Any] = {**settings, **of_plays}
    return Recipe(attention=kind, **chosen)


def read_recipe(written: str) -> dict[str, Any]:
    """What an address says that trainings have in common.  Raises ValueError where it cannot be chosen here."""
    # Which vocabulary there is depends on the task, and is not to be chosen.
    recipe = Recipe.parse(f"{written},vocabulary={FOR_PLAYS['vocabulary']}")
    names = [part.partition("=")[0].strip() for part in written.split(",") if part.strip()]
    if strange := [name for name in names if name not in CHOSEN]:
        raise ValueError(f"recipe: {strange[0]} is not chosen in this chapter, which has {', '.join(CHOSEN)}")
    settings = {name: getattr(recipe, name) for name in names}
    recipe_of(settings)
    return settings


def write_recipe(settings: Mapping[str, Any]) -> str:
    """The same as an address says it: what is not as usual."""
    usual = {f.name: f.default for f in Recipe.settings()}
    return ",".join(f"{name}={settings[name]}" for name in CHOSEN if settings.get(name, usual[name]) != usual[name])


def asked() -> tuple[Recipe, ...] | None:
    """The same as `recipes`; None where it does not go together."""
    try:
        return recipes()
    except ValueError:
        return None


def draw(chapter: Chapter, page: Chapter) -> None:
    """The settings, the curves and the maps of the trainings."""
    state = st.session_state.lesson
    run = stage.playing(TrainingJob)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.pills(
            chapter.say("kinds"), list(ATTENTIONS), format_func=chapter.say, selection_mode="multi",
            **kept_default("emergence-kinds", list(START)),
        )  # fmt: skip
        with st.popover(chapter.say("settings"), icon=":material/tune:"):
            settings(chapter)
        stage.transport(page, run, start)
        if run is not None and any(run.moments):
            with st.popover(chapter.say("export"), icon=":material/download:"):
                exports(run, chapter)
    run = stage.watch(run)
    # One that failed at once has none.
    begun = [of for of in zip(run.recipes, run.moments, strict=True) if of[1]] if run else []
    if run is None and (folder := stage.kept_folder("training")) is not None:
        draw_kept(read(folder), chapter)
        return
    before, grows = recorded(), bool(begun) and all(len(of) > 1 for _, of in begun)
    still = bool(before) and asked() == tuple(before) and (run is None or run.live) and not grows
    if still:
        trained, moments, about = list(before), [of for of, _ in before.values()], next(iter(before.values()))[1]
    elif run is None or not begun:
        return
    else:
        trained, moments = map(list, zip(*begun, strict=True))
        about = None
    if run is not None and run.note and run.status != "failed":
        kind, _, why = run.note.partition(": ")
        st.warning(plain(f"{chapter.words.get(kind, kind)}: {translated(why, state['language'])}"))
    if run is not None and asked() != run.recipes:
        st.info(chapter.say("changed"))
    if trained[0].task == "plays":
        st.warning(chapter.say("plays-warning"))
    newest = max((of[-1].step for _, of in begun), default=0)
    steps = [m.step for m in moments[0] if m.step <= min(of[-1].step for of in moments)]
    said = {"finished": chapter.say("finished"), "stopped": chapter.say("stopped")}.get(run.status, "") if run else ""
    left, right = st.columns(2, gap="medium", vertical_alignment="bottom")
    done = chapter.say("of-steps", done=f"{newest:,}", total=f"{trained[0].steps:,}")
    left.progress(run.share if run else 0.0, f"{done} {said}")
    with right:
        name = run.id if run and not still else "recorded"
        at = step_control(steps, name, chapter, grows=run is not None and run.live)
    draw_curves(trained, moments, at, chapter)
    stage.source(page, about)


def step_control(steps: Sequence[int], name: str, chapter: Chapter, *, grows: bool = False) -> int | None:
    """A widget for the step that is looked at; None: the newest.  What an address asks is waited for while more come
    (`grows`), and is said to be missing else, until another is chosen."""
    key, wanted = f"emergence-at-{name}-{stage.turn()}", choice(STEP, None)
    if len(steps) < 2:
        return None
    if wanted in steps and st.session_state.get(key) is None:
        st.session_state[key] = wanted
    at = st.select_slider(
        chapter.say("at"), [*steps, None], **kept_value(key, None, [*steps, None]),
        format_func=lambda s: chapter.say("newest") if s is None else f"{s:,}",
    )  # fmt: skip
    if wanted is not None and grows and wanted > steps[-1]:
        return at
    if at is None and wanted not in (None, *steps):
        st.info(chapter.say("no-step", step=f"{wanted:,}"))
    else:
        choose(STEP, at)
    return at


def draw_kept(saved: Sequence[SavedTraining], chapter: Chapter) -> None:
    """Trainings of the library: their curves and maps, at any step."""
    found = {training.recipe: measured(training) for training in saved}
    if asked() != tuple(found):
        st.info(chapter.say("changed"))
    steps = [m.step for m in next(iter(found.values())) if m.step <= min(of[-1].step for of in found.values())]
    at = step_control(steps, "kept", chapter)
    draw_curves(list(found), list(found.values()), at, chapter)


def choose_kept(folder: Path) -> None:
    """Choose what trainings of the library were made with, as far as it is chosen here.  Raises ValueError where they
    are damaged."""
    made = [training.recipe for training in read(folder)]
    choose("emergence-kinds", [kind for kind in ATTENTIONS if kind in {recipe.attention for recipe in made}])
    usual = {f.name: f.default for f in Recipe.settings()}
    settings = {name: getattr(made[0], name) for name in CHOSEN if getattr(made[0], name) != usual[name]}
    if made[0].task == "plays":
        settings = {name: value for name, value in settings.items() if name not in FOR_PLAYS}
    choose(RECIPE, settings)


@cache
def recorded() -> dict[Recipe, tuple[list[Measurement], About]]:
    """The trainings of the gallery: what was measured of each, and what it is of; empty where they cannot be read."""
    try:
        return {saved.recipe: (measured(saved), about(saved)) for saved in read(GALLERY / "emergence")}
    except ValueError:
        return {}


def about(saved: SavedTraining) -> About:
    """What a training that lies in a folder is of."""
    recipe = saved.recipe
    shape = f"layers={recipe.layers}, heads={recipe.heads}, width={recipe.width}"
    what = f"task={recipe.task}, steps={recipe.steps}, seed={recipe.seed}"
    return About(shape, "float32", what, saved.about.started[:10])


def measured(saved: SavedTraining) -> list[Measurement]:
    """What was measured of a training that lies in a folder."""
    shape, of, found = (saved.recipe.layers, saved.recipe.heads), saved.curves, list[Measurement]()
    for i, (layer, head) in enumerate(saved.heads):
        weight, norm = (
            np.array([of[f"{what} {of_layer}.{of_head}"][i] for of_layer, of_head in np.ndindex(shape)], np.float32)
            for what in ("weight", "norm")
        )
        step, loss, copied = (float(of[name][i]) for name in ("step", "loss", "copied"))
        which = int(layer), int(head)
        found.append(
            Measurement(int(step), loss, copied, weight.reshape(shape), norm.reshape(shape), which, saved.maps[i])
        )
    return found


def draw_curves(
    trained: Sequence[Recipe], moments: Sequence[Sequence[Measurement]], at: int | None, chapter: Chapter
) -> None:
    """The curves of trainings, and the maps at a step, or the newest."""
    labels = told_apart([chapter.say(r.attention) for r in trained], trained)
    values = "; ".join(
        f"{label}: {chapter.say('weight')} {m[-1].sink:.2f}" for label, m in zip(labels, moments, strict=True)
    )
    seen = [_at(m, at) for m in moments]
    chart.mount(grown(trained, moments, labels, at, chapter), key="emergence-curves", height=280, projected=35,
                alt=chapter.say("alt", values=values))  # fmt: skip
    chart.mount(
        maps(seen, labels, chapter), key="emergence-maps", height=270, projected=29,
        alt=" ".join(chapter.say("alt-map", step=m.step, weight=f"{m.sink:.2f}") for m in seen),
    )  # fmt: skip


def settings(chapter: Chapter) -> None:
    """Widgets for what all have in common; they count from the next start on."""
    state = st.session_state.lesson
    recipe, turn = dict(choice(RECIPE, {})), (state.setdefault("recipe-turn", 0), stage.turn())
    now = {f.name: f for f in Recipe.settings()}

    def value(name: str) -> Any:
        return recipe.get(name, now[name].default)

    def number(name: str, step: float, format: str | None = None) -> None:
        rule, kind = now[name].metadata, float if now[name].type is float else int
        if recipe["task"] == "plays" and name in FOR_PLAYS:
            st.number_input(
                chapter.say(name), value=FOR_PLAYS[name], key=f"emergence-{name}-plays", disabled=True, format=format
            )
            return
        low, high, at = kind(rule["low"]), kind(rule["high"]), kind(value(name))
        recipe[name] = st.number_input(
            chapter.say(name), low, high, at, step, key=f"emergence-{name}-{turn}", format=format
        )

    for name, choices in (("task", ("backcopy", "plays")), ("bos", ("yes", "no"))):
        recipe[name] = st.segmented_control(
            chapter.say(name), choices, default=value(name), required=True, key=f"emergence-{name}-{turn}",
            format_func=(lambda c: chapter.say(f"bos-{c}")) if name == "bos" else chapter.say,
        )  # fmt: skip
    if recipe["task"] == "plays":
        st.caption(chapter.say("plays-warning"))
    left, right = st.columns(2)
    with left:
        number("layers", 1)
        number("rate", 0.001, format="%.4f")
        number("steps", 100)
    with right:
        number("heads", 1)
        number("decay", 0.01, format="%.3f")
        number("seed", 1)

    # An address says what is not as usual.
    choose(RECIPE, {name: chosen for name, chosen in recipe.items() if chosen != now[name].default})

    def undo() -> None:
        choose(RECIPE, {})
        state["recipe-turn"] += 1

    st.button(chapter.say("undo"), icon=":material/undo:", on_click=undo, key="emergence-undo")


def exports(run: TrainingJob, chapter: Chapter) -> None:
    """Files of what there is now."""

    def made(figure: str, kind: str) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "trainings"
            for i, (recipe, moments) in enumerate(zip(run.recipes, run.moments, strict=True)):
                if moments:
                    write(place / f"{i}-{recipe.attention}", recipe, list(moments), run.examples[i], run.status)
            export(parse(figure), place, made := Path(folder) / f"made.{kind}")
            return made.read_bytes()

    for figure, label in (("emergence", chapter.say("weight")), ("emergence-map", chapter.say("map-of"))):
        for kind, mime in FILES.items():
            download(f"{label} · {kind.upper()}", f"{figure}.{kind}", partial(made, figure, kind), mime, icon=None)
    for i, recipe in enumerate(run.recipes):
        download(
            f"{chapter.say(recipe.attention)} · CSV", f"emergence-{i}-{recipe.attention}.csv",
            lambda i=i: curves_as_csv(list(run.moments[i])), icon=None,
        )  # fmt: skip


def _at(moments: Sequence[Measurement], step: int | None) -> Measurement:
    """The newest moment, or that of a step."""
    return moments[-1] if step is None else min(moments, key=lambda m: abs(m.step - step))


def grown(
    recipes: Sequence[Recipe],
    moments: Sequence[Sequence[Measurement]],
    labels: Sequence[str],
    at: int | None,
    chapter: Chapter,
) -> go.Figure:
    """Curves of what is measured while they are trained."""
    figure = make_subplots(2, 2, subplot_titles=[chapter.say(p) for p in PANELS], vertical_spacing=0.24)
    reads = {"weight": "sink", "value": "value", "copied": "copied", "loss": "loss"}
    for n, (recipe, of, label) in enumerate(zip(recipes, moments, labels, strict=True)):
        colour, dash = TRAINED[recipe.attention]
        # Of one attention there may be several in the library: markers tell them apart.
        same = sum(before.attention == recipe.attention for before in recipes[:n])
        marked = {"mode": "lines+markers", "marker": {"symbol": MARKERS[(same - 1) % len(MARKERS)], "size": 5}}
        for i, panel in enumerate(PANELS):
            figure.add_scatter(
                x=[m.step for m in of], y=[getattr(m, reads[panel]) for m in of], name=label,
                **(marked if same else {"mode": "lines"}),
                line={"color": colour, "dash": dash, "width": 2}, showlegend=i == 0, legendgroup=label,
                hovertemplate="%{x:,}: %{y:.3f}", row=1 + i // 2, col=1 + i % 2,
            )  # fmt: skip
    if at is not None:
        figure.add_vline(x=at, line={"color": "#767676", "width": 1, "dash": "dot"})
    figure.update_layout(margin={"l": 40, "r": 8, "t": 48, "b": 36}, legend={**LEGEND, "y": 1.15})
    figure.update_xaxes(range=[0, max(recipe.steps for recipe in recipes)])
    figure.update_xaxes(title=chapter.say("step"), row=2)
    figure.update_yaxes(rangemode="tozero")
    # Weights of ReLU have no bound.
    most = max((m.sink for of in moments for m in of), default=1.0)
    figure.update_yaxes(range=[0, 1.02 * max(1.0, most)], row=1, col=1)
    return figure


def maps(moments: Sequence[Measurement], labels: Sequence[str], chapter: Chapter) -> go.Figure:
    """What the heads that look at the first token most do, each on its own sequence."""
    titles = [
        f"{label}<br>{chapter.say('map', layer=m.head[0], head=m.head[1], weight=f'{m.sink:.2f}')}"
        for label, m in zip(labels, moments, strict=True)
    ]
    figure = make_subplots(1, len(moments), subplot_titles=titles)
    ends = ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    # Weights of ReLU may be larger, and have the colour of 1.
    said = [*ends[:-1], "≥ 1"] if any(m.map.max() > 1 for m in moments) else ends
    for i, m in enumerate(moments):
        weights = m.map.astype(np.float32)
        weights[np.triu_indices(len(weights), 1)] = np.nan
        figure.add_heatmap(
            z=np.round(weights, 3), zmin=0, zmax=1, colorscale="Viridis", showscale=i == len(moments) - 1,
            hovertemplate=f"{chapter.say('query')} %{{y}} → %{{x}}: %{{z:.2f}}<extra></extra>",
            colorbar={"thickness": 10, "tickvals": list(map(float, ends)), "ticktext": said}, row=1, col=i + 1,
        )  # fmt: skip
    figure.update_layout(margin={"l": 40, "r": 8, "t": 44, "b": 30})
    figure.update_xaxes(showgrid=False, constrain="domain")
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure


PLAY = stage.Play(
    draw,
    start,
    choices={
        "kinds": stage.Choice(address.some_of("kinds", ATTENTIONS), "emergence-kinds", list(START)),
        "recipe": stage.Choice(address.Parameter(read_recipe, write_recipe), RECIPE, {}),
        "step": stage.Choice(address.whole("step", 0, 100_000), STEP),
    },
    keeps="training",
    open_kept=choose_kept,
)
