"""How the documentation site is built: `make docs`, by sphinx, from the pages of this folder.

Tables of policies and figures are made from their registries, and the API from the docstrings, whenever it is built.
Every warning is an error, a link that leads nowhere among them, and so is a page that would ask another server for
anything.
"""

import re
import sys
from collections.abc import Iterable
from dataclasses import Field
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from analysis.cli.listings import settings_text
from analysis.figures import FIGURES
from analysis.policies import POLICIES, Policy
from analysis.settings import Settings

project = "Sinkscope"
html_title = "Sinkscope"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["conf.py"]

html_theme = "furo"
html_logo = "../assets/logo.png"
html_favicon = "../assets/logo.png"
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
# The colours of the pages; each stands apart from its background as readers need it.
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0072B2", "color-brand-content": "#0072B2"},
    "dark_css_variables": {"color-brand-primary": "#56B4E9", "color-brand-content": "#56B4E9"},
}

# Links to headings are those that GitHub makes, so that the pages can be read there too.
myst_heading_anchors = 4
# Docstrings write code between single backticks.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True

HERE = "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"
"""From where a page of the site may take what it needs: from its own server alone."""
STYLE = "article td { vertical-align: top !important }"
ASKS = re.compile(r"""<(?:script|img|link|iframe|source|video|audio)\b[^>]*?\b(?:src|href)=["']?(?:https?:)?//[^>]*""")
"""What would make a browser ask another server while it shows a page."""


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table whose cells may have several lines, and any sign in them."""
    header = list(header)
    lines = [header, ["---"] * len(header), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |".replace("\n", "<br>") for line in lines)


def named(name: str, kind: type[Settings]) -> str:
    """How a policy or figure is written, and what it is called."""
    return f"`{name}`\n{kind.title}"


def about(kind: type) -> str:
    """The docstring of a policy or figure, in one line."""
    return " ".join((kind.__doc__ or "").split())


def settings(fields: list[Field]) -> str:
    """Settings as `python -m analysis policies` lists them, with name and default as code."""
    return re.sub(r"^(\S+=.*?)  ", r"`\1` ", settings_text(fields), flags=re.M)


def policies() -> str:
    """Every policy, as the command line and the pages know it."""
    rows = [(named(name, kind), about(kind), settings(kind.settings())) for name, kind in POLICIES.items()]
    rows.append(("any of them", "Attention, or what is stored, is changed.", settings(Policy.interventions())))
    return table(("Policy", "What it does", "Settings and defaults"), rows)


def figures() -> str:
    """Every figure, as the command line and the pages know it."""
    rows = [(named(name, kind), kind.needs, about(kind), settings(kind.settings())) for name, kind in FIGURES.items()]
    return table(("Figure", "Made of", "What it shows", "Settings and defaults"), rows)


TABLES = {"policies": policies, "figures": figures}
"""What stands where a page has the comment `<!-- table: NAME -->`."""


def fill(app: Sphinx, name: str, source: list[str]) -> None:
    """Put the tables into a page that has just been read."""
    source[0] = re.sub(r"<!-- table: (\w+) -->", lambda found: TABLES[found[1]](), source[0])


def keep_private(app: Sphinx, page: str, template: str, context: dict, tree: object) -> None:
    """Let the browser itself refuse what another server would have to be asked for."""
    head = f'<meta http-equiv="Content-Security-Policy" content="{HERE}"><style>{STYLE}</style>'
    context["metatags"] = context.get("metatags", "") + head


def check(app: Sphinx, failure: Exception | None) -> None:
    """Look at what was written.  Raises ExtensionError where a page asks another server for something."""
    if failure is not None:
        return
    for page in Path(app.outdir).rglob("*.html"):
        if asked := ASKS.search(page.read_text(encoding="utf-8")):
            raise ExtensionError(f"{page} asks another server: {asked[0][:200]}")
    for style in Path(app.outdir).rglob("*.css"):
        if asked := re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//.{,80}", style.read_text(encoding="utf-8")):
            raise ExtensionError(f"{style} asks another server: {asked[0]}")


def setup(app: Sphinx) -> None:
    """What is done beside sphinx's own work."""
    app.connect("source-read", fill)
    app.connect("html-page-context", keep_private)
    app.connect("build-finished", check)
