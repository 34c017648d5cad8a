"""Our docstrings as Markdown for the guide: doctests become code blocks, roles such as :func: plain names."""

import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":\w+:`~?([^`]+)`")
DOCTEST = re.compile(r"(?:^>>> .*\n?(?:^(?!\n|>>> ).+\n?)*)+", re.MULTILINE)


class Markdown(Extension):
    """Rewrites each docstring before it is parsed."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called for every object that is loaded."""
        if obj.docstring:
            text = ROLE.sub(r"`\1`", obj.docstring.value)
            obj.docstring.value = DOCTEST.sub(lambda found: f"```pycon\n{found[0].rstrip()}\n```\n", text)
