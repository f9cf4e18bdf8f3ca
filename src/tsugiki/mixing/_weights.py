"""How much of each parent goes where: weights for all tensors, and others for the parts that patterns name.

A tensor's place is written with dots: `frontend.projector.0.weight`, `grafts.0.gate`, and in the LLM
`llm.layers.7.mlp.up_proj.weight` for what belongs to a layer, `llm.model.embed_tokens.weight` for what does not. A
pattern names the first words of a place: `llm` is all of the LLM, `llm.layers.0-9` its first ten layers,
`llm.layers.*.self_attn` every attention, `grafts.lynx` the graft of that name. Of several that match, the last counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from tsugiki.errors import InputError, UnknownNameError

Parts = Mapping[str, float | Sequence[float]]
"""Pattern -> a weight for each parent; of two parents the first one's is enough."""

LLM = "language_model."
TOLERANCE = 1e-6
"""How far from 1 the sum of weights may be: they are written with few decimals."""


@dataclass(frozen=True)
class Rules:
    """Weights that were checked, one a parent."""

    weights: tuple[float, ...]
    parts: tuple[tuple[str, tuple[float, ...]], ...] = ()

    @classmethod
    def of(
        cls,
        weights: Sequence[float],
        parts: Parts | None = None,
        *,
        parents: int,
        normalise: bool = False,
        extrapolate: bool = False,
    ) -> Rules:
        """Check weights and those of parts.

        Args:
            normalise: divide them by their sum.
            extrapolate: let them leave [0, 1].

        Raises:
            InputError: too few or too many, not finite, outside [0, 1], or not of sum 1.
        """

        def checked(values: Sequence[float], where: str) -> tuple[float, ...]:
            return _checked(values, where, parents=parents, normalise=normalise, extrapolate=extrapolate)

        found = []
        for pattern, given in (parts or {}).items():
            where = f"mix(parts), {pattern}"
            if isinstance(given, int | float):
                if parents != 2:
                    raise InputError(f"one weight for {parents} parents", expected="one for each", where=where)
                given = (given, 1.0 - given)
            found.append((pattern, checked(given, where)))
        return cls(checked(weights, "mix(weights)"), tuple(found))

    def at(self, name: str) -> tuple[float, ...]:
        """The weights for a tensor, given by its name in a saved graft."""
        where = place(name)
        return next((w for pattern, w in reversed(self.parts) if matches(pattern, where)), self.weights)

    def named(self, grafts: Sequence[str], names: Iterable[str]) -> Rules:
        """With `grafts.lynx` as the number of that graft.

        Args:
            grafts: their names, in order.
            names: of all tensors.

        Raises:
            UnknownNameError: a pattern that matches none of them.
        """
        places = [place(name) for name in names]
        parts = tuple((_numbered(pattern, grafts), weights) for pattern, weights in self.parts)
        for (given, _), (pattern, _) in zip(self.parts, parts, strict=True):
            if not any(matches(pattern, where) for where in places):
                known = {".".join(where.split(".")[:depth]) for where in places for depth in (1, 2, 3)}
                raise UnknownNameError("part", given, _short(known), where="mix(parts)")
        return Rules(self.weights, parts)


def place(name: str) -> str:
    """Where a tensor of a saved graft is: `language_model.model.layers.7.x` is at `llm.layers.7.x`, others as named."""
    if not name.startswith(LLM):
        return name
    words = name.removeprefix(LLM).split(".")
    number = next((i for i, word in enumerate(words) if word.isdigit()), None)
    return ".".join(["llm", *words] if number is None else ["llm", "layers", *words[number:]])


def matches(pattern: str, where: str) -> bool:
    """Does a pattern name the first words of a place?"""
    wanted, there = pattern.split("."), where.split(".")
    return len(wanted) <= len(there) and all(_fits(w, t) for w, t in zip(wanted, there, strict=False))


def _fits(wanted: str, word: str) -> bool:
    low, dash, high = wanted.partition("-")
    if dash and low.isdigit() and high.isdigit():
        return word.isdigit() and int(low) <= int(word) <= int(high)
    return fnmatchcase(word, wanted)


def _numbered(pattern: str, grafts: Sequence[str]) -> str:
    words = pattern.split(".")
    if words[0] == "grafts" and len(words) > 1 and words[1] in grafts:
        words[1] = str(grafts.index(words[1]))
    return ".".join(words)


def _short(places: Iterable[str], most: int = 12) -> list[str]:
    """The parts with the fewest words: an error has room for some."""
    return sorted(places, key=lambda where: (where.count("."), where))[:most]


def _checked(
    values: Sequence[float], where: str, *, parents: int, normalise: bool, extrapolate: bool
) -> tuple[float, ...]:
    shown = ", ".join(f"{v:g}" for v in values)
    if len(values) != parents:
        raise InputError(f"{len(values)} weights for {parents} parents", expected="one for each", where=where)
    if not all(math.isfinite(v) for v in values):
        raise InputError(f"weights {shown}", expected="finite numbers", where=where)
    total = math.fsum(values)
    if normalise:
        if abs(total) < TOLERANCE:
            raise InputError(f"weights {shown}, which sum to 0", expected="another sum, to divide by", where=where)
        values = [v / total for v in values]
    elif abs(total - 1.0) > TOLERANCE:
        raise InputError(
            f"weights {shown}, which sum to {total:g}",
            expected="a sum of 1",
            fix="Divide them by their sum: normalise=True, --normalise.",
            where=where,
        )
    if not extrapolate and not all(0.0 <= v <= 1.0 for v in values):
        raise InputError(
            f"weights {shown}",
            expected="each in [0, 1]",
            fix="To leave the line between the parents: extrapolate=True, --extrapolate.",
            where=where,
        )
    return tuple(float(v) for v in values)
