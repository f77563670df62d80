"""The pages of the app, one line each, in the order of the navigation.  The page NAME is drawn by `views/NAME.py`.

The first page has the address `/`, to which its `/NAME` leads, each other one `/NAME`.  No Streamlit in here.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Page:
    """A page: its icon in the navigation, and what it says of itself, by language; English where there is no other."""

    name: str
    icon: str
    titles: Mapping[str, str]
    mottos: Mapping[str, str]
    heading: str = ""
    """For people who listen to the page: others see what it shows."""
    at_once: bool = False
    """Whether it is drawn before torch is loaded: only what one starts on it needs torch."""

    @property
    def path(self) -> str:
        """The file that draws it, from `app/` on."""
        return f"views/{self.name}.py"

    def title(self, language: str = "en") -> str:
        """Its name in the navigation."""
        return self.titles.get(language, self.titles["en"])

    def motto(self, language: str) -> str:
        """What it is for, in a few words."""
        return self.mottos.get(language, self.mottos["en"])


PAGES = {
    page.name: page
    for page in (
        Page(
            "read",
            "menu_book",
            {"en": "Read", "zh": "阅读"},
            {"en": "Watch a model forget how to read"},
            "Read a text under several policies",
            at_once=True,
        ),
        Page(
            "chat",
            "forum",
            {"en": "Chat", "zh": "对话"},
            {"en": "Talk to a model that forgets"},
            "Talk to a model under several policies",
        ),
        Page(
            "heads",
            "grid_on",
            {"en": "Heads", "zh": "注意力头"},
            {"en": "Look into every head"},
            "Look into every head",
        ),
        Page(
            "recall",
            "target",
            {"en": "Recall", "zh": "回忆"},
            {"en": "Ask what a policy forgot"},
            "What each policy recalls",
        ),
        Page(
            "verdict",
            "balance",
            {"en": "Verdict", "zh": "结论"},
            {"en": "Choose the smallest cache that will do"},
            "Which cache to choose",
        ),
        Page(
            "figures",
            "image",
            {"en": "Figures", "zh": "图表"},
            {"en": "What goes into the paper"},
            "Figures for a paper",
        ),
        Page(
            "runs",
            "video_library",
            {"en": "Runs", "zh": "运行记录"},
            {"en": "What was found, kept", "zh": "留住所见"},
            "The library of runs",
            at_once=True,
        ),
        Page(
            "learn",
            "school",
            {"en": "Learn", "zh": "课程"},
            {"en": "Why softmax needs a sink", "zh": "softmax 为什么需要汇点"},
            at_once=True,
        ),
    )
}
