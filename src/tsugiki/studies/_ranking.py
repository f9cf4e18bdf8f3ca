"""Which unlabelled pictures are worth a label: three figures of each, one ranking, and a choice that is spread out.

Shapes: n pictures, c options, V width of the features.
Sources: margin sampling (Scheffer et al. 2001, doi:10.1007/3-540-44816-0_31); a committee's disagreement (Seung et al.
1992, doi:10.1145/130385.130417); reciprocal rank fusion (Cormack et al. 2009, doi:10.1145/1571941.1572114); the most
informative ones in clusters (Zhdanov 2019, arXiv:1901.05954).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tsugiki.extras import require

Floats = npt.NDArray[np.float64]

FUSION = 60.0
"""The constant of reciprocal rank fusion, the published value: how little it matters who is first of a list."""
SHORTLIST = 4
"""So many times as many pictures as are wanted are clustered, the best ones."""


def nearness(p: Floats) -> Floats:
    """How near each picture is to the decision: 1 minus the lead of the likeliest option over the second, [n, c] -> [n]
    in [0, 1]."""
    top = np.sort(p, axis=1)
    return np.asarray(1 - (top[:, -1] - top[:, -2]))


def class_weights(counts: Mapping[str, int], options: Sequence[str], severe: Collection[str] = ()) -> Floats:
    """1 / (1 + labels) of each option [c]; a severe one counts as if it had none."""
    return np.asarray([1.0 if o in severe else 1 / (1 + counts.get(o, 0)) for o in options])


def rarity(p: Floats, weights: Floats) -> Floats:
    """The weight that each picture's class is expected to have: [n, c], [c] -> [n]."""
    return np.asarray(p @ weights)


def disagreement(p: Floats, q: Floats) -> Floats:
    """What two learners lose in probability by taking each other's answer, the mean of both, [n, c] each -> [n] in
    [0, 1]; 0 where they choose the same option, however sure each of them is."""
    rows, mine, theirs = np.arange(len(p)), p.argmax(1), q.argmax(1)
    return np.asarray((p[rows, mine] - p[rows, theirs] + q[rows, theirs] - q[rows, mine]) / 2)


def ranks(values: Floats) -> Floats:
    """1 for the highest; equal ones share the mean of their ranks, [n] -> [n]; differences below 1e-9 are none."""
    return np.asarray(require("scipy.stats", extra="eval").rankdata(-np.round(values, 9), method="average"))


def fused(lists: Sequence[Floats]) -> Floats:
    """One score from several rankings, the sum of 1 / (60 + rank): high where a picture is near the top of any list,
    higher where it is of several; [n] each -> [n]."""
    return np.asarray(sum(1 / (FUSION + r) for r in lists))


def spread(scores: Floats, features: npt.NDArray[Any], n: int, seed: int = 0) -> dict[int, int]:
    """The n best pictures that do not stand for the same thing, best first, and how many others each stands for.

    The 4 n best by score are clustered into n (k-means on standardised features), and each cluster gives its best.

    Args:
        scores: [m], the higher the better; the first one of equals.
        features: [m, V].
    """
    order = [int(i) for i in np.argsort(-scores, kind="stable")]
    if n >= len(order):
        return dict.fromkeys(order, 0)
    few = order[: SHORTLIST * n]
    x = require("sklearn.preprocessing", extra="eval").StandardScaler().fit_transform(features[few].astype(np.float64))
    # Pictures that the tower can't tell apart make fewer clusters than were asked for.
    clusters = min(n, len(np.unique(x, axis=0)))
    cluster = require("sklearn.cluster", extra="eval").KMeans(clusters, n_init=4, random_state=seed).fit_predict(x)
    members = {int(c): [i for i, own in zip(few, cluster, strict=True) if own == c] for c in dict.fromkeys(cluster)}
    chosen = {own[0]: len(own) - 1 for own in members.values()}
    rest = (i for i in order if i not in chosen)
    chosen |= {i: 0 for i, _ in zip(rest, range(n - len(chosen)), strict=False)}
    return {i: chosen[i] for i in order if i in chosen}
