"""The procedural coding benchmark: HumanEval-format documents and problems from a known distribution.

A document is a function ``f`` whose docstring names a pipeline of typed primitives ("keep even, square each, sum") and
whose body is the matching Python::

    primitives   which skills there are (the table primitives.txt)
    grammar      how documents are drawn, which pipelines are held out
    text         documents as text and tokens, the tokenizer
    information  the exact entropy of it all
    problem_set  held-out problems with tests (inputs: the values they use)
"""

from scalefed.data.micro.information import Entropy, entropy
from scalefed.data.micro.primitives import table
from scalefed.data.micro.problem_set import problems
from scalefed.data.micro.text import Corpus, Document, corpus, documents, tokenizer, validation

FAMILIES: tuple[str, ...] = table().families

__all__ = [
    "FAMILIES",
    "Corpus",
    "Document",
    "Entropy",
    "corpus",
    "documents",
    "entropy",
    "problems",
    "tokenizer",
    "validation",
]
