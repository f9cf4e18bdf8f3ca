"""Which path through the grafts a sample asks for, and the words of its question.

A sample says so in `meta["branch"]`; else one whose answer has boxes, or would have them if the thing were there, is
"grounding", and any other "image". A model takes "image" for a branch that none of its grafts tells apart.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

from tsugiki.errors import UnknownNameError
from tsugiki.types import BRANCHES, BoxPart, Sample


def branch_of(sample: Sample) -> str:
    """The branch that a sample asks for.

    Raises:
        UnknownNameError: `meta["branch"]` names none.
    """
    named = sample.meta.get("branch")
    if named is not None:
        if named not in BRANCHES:
            raise UnknownNameError("branch", str(named), BRANCHES, where=sample.where or f"sample {sample.id!r}")
        return str(named)
    answers = [m for m in sample.messages if m.role == "assistant"]
    boxed = any(isinstance(p, BoxPart) for m in answers for p in m.parts)
    return "grounding" if boxed or sample.meta.get("form") == "boxes" or is_absent(sample) else "image"


def is_absent(sample: Sample) -> bool:
    """Does the sample ask for the box of a thing that is not there?"""
    return sample.task == "absent" and sample.meta.get("form", "boxes") == "boxes"


def branch_in(sample: Sample, known: Container[str]) -> str:
    """The branch that a sample takes in a model that tells the `known` ones apart.

    Raises:
        UnknownNameError: as `branch_of`.
    """
    branch = branch_of(sample)
    return branch if branch in known else "image"


def number(branch: str, known: Container[str]) -> int:
    """The branch's number, that of "image" where a model does not tell it apart."""
    return BRANCHES[branch] if branch in known else BRANCHES["image"]


def question_span(text: str, plain: Sequence[dict[str, str]]) -> tuple[int, int]:
    """(start, end) in characters of the last user message in a rendered conversation; all of it where the template
    hides it."""
    last = max((i for i, m in enumerate(plain) if m["role"] == "user"), default=-1)
    at = 0
    for i, message in enumerate(plain[: last + 1]):
        content = message["content"].strip()
        start = text.find(content, at)
        if start < 0 and i == last:
            break
        if i == last:
            return start, start + len(content)
        at = start + len(content) if start >= 0 else at
    return 0, len(text)
