"""One mechanism or several? The study's Appendix A, and a verdict with a known false-positive rate.

The study counts how many of five tests pass a threshold that unrelated vectors pass too, so it calls random
directions independent mechanisms. The calibrated verdict asks three questions in a fixed order, each at the
stated level, and goes on only while the answer allows it (so the levels do not add up):

1. Is there anything? Is each vector's contrast longer than permuted labels make it (where per-prompt means
   are at hand), and are vectors of one cluster closer than unrelated ones? If not: "nothing to tell".
2. Are clusters related? The sum of squared cosines between the clusters' mean vectors. If the clusters are
   independent, whatever they are inside, these means are independent directions, so the null is exact.
3. If related: "shared core" needs every cluster to be close to the others on average (an intersection-union
   test: one stranger is enough to refuse it), else "partly related", and the pairs say how; a negative
   cosine is a relation too. If not related: "independent mechanisms" is claimed only when even the upper
   bound of every cosine is below that of the angle at which the study speaks of shared structure (45°), else
   "inconclusive". A missing difference is never by itself called independence.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from emharness.geometry import statistics as st
from emharness.geometry.nulls import false_discovery_q, interval, p_two_sided, p_upper

SHARED_CORE = "shared core"
INDEPENDENT = "independent mechanisms"
PARTLY = "partly related"
NOTHING = "nothing to tell"
INCONCLUSIVE = "inconclusive"
SHARED_ANGLE_DEG = 45.0  # "angles < 45° would suggest shared structure" (section 3.3)

Clusters = Mapping[str, Sequence[int]]


# --- Appendix A -------------------------------------------------------------------------------------------


def appendix_tests(
    gram: np.ndarray,
    a: Sequence[int],
    b: Sequence[int],
    change: np.ndarray | None,
    triplet: Sequence[int] | None,
) -> dict[str, tuple[str, np.ndarray, np.ndarray] | str]:
    """The five tests of one pair of clusters, [..., n, n] → test → (criterion, value [...], passes [...]), or
    why the test is not possible.

    Test 2 takes the longest projection either way, test 3 the `triplet` (see `crossed_triplet`), test 4 the
    mean of `change`, all clusters' absolute changes (see `pc1_changes`). Its criterion is inferred: the study
    speaks of a differential, not proportional, effect.
    """
    out: dict[str, tuple[str, np.ndarray, np.ndarray] | str] = {}
    angle = st.cluster_angle_deg(gram, a, b)
    out["1 cluster angle (degrees)"] = ("≥ 45", angle, angle >= SHARED_ANGLE_DEG)
    spans = [st.span_projection(gram, a, b), st.span_projection(gram, b, a)]
    longest = np.concatenate(spans, axis=-1).max(-1)
    out["2 span projection"] = ("< 0.3", longest, longest < 0.3)
    test3, test4, test5 = "3 cross-cluster residual reduction", "4 PC1 ablation", "5 cross-explained variance"
    if triplet:
        reduction = st.residual_reduction(st.gather(gram, np.array([triplet])))[..., 0]
        out[test3] = ("< 0", reduction, reduction < 0)
    else:
        out[test3] = "neither cluster has two members"
    if change is not None:
        out[test4] = ("smallest < half of the largest", change.mean(-1), change.min(-1) < change.max(-1) / 2)
    else:
        out[test4] = "needs two clusters of two members"
    pairs = [(x, y) for x, y in ((a, b), (b, a)) if len(x) > 1]
    if pairs:
        explained = np.stack([st.cross_explained_variance(gram, x, y) for x, y in pairs]).max(0)
        out[test5] = ("< 0.2", explained, explained < 0.2)
    else:
        out[test5] = "neither cluster has two members"
    return out


def pc1_changes(gram: np.ndarray, clusters: Clusters) -> np.ndarray | None:
    """Absolute changes of test 4, [..., n, n] → [..., n_clusters]; None below two clusters of two members."""
    plural = [c for c in clusters.values() if len(c) > 1]
    return np.abs(st.pc1_ablation_change(gram, plural)) if len(plural) > 1 else None


def crossed_triplet(gram: np.ndarray, a: Sequence[int], b: Sequence[int]) -> tuple[int, ...] | None:
    """The triplet of test 3 in [n, n]: two of one cluster and one of the other; None for two single vectors.

    The two least alike of the looser cluster, with the vector of the other that is least like them: this
    picks the study's own triplet (profanity, malicious, medical), whatever the order of the vectors.
    """
    plural = [(x, y) for x, y in ((a, b), (b, a)) if len(x) > 1]
    if not plural:
        return None
    loose, other = min(plural, key=lambda xy: float(st.within_cosine(gram, xy[0])))
    inside = gram[np.ix_(loose, loose)]
    i, j = (loose[int(k)] for k in np.unravel_index(inside.argmin(), inside.shape))
    return i, j, min(other, key=lambda k: gram[i, k] + gram[j, k])


def published_verdict(
    gram: np.ndarray, clusters: Clusters, null: np.ndarray, pairs: Sequence[tuple[str, str]]
) -> list[dict]:
    """Appendix A for pairs of clusters, and how often unrelated vectors (`null` [draws, n, n]) pass each test.

    `informative` is false where they pass it in more than one draw of twenty.
    """
    out, change, null_change = [], pc1_changes(gram, clusters), pc1_changes(null, clusters)
    for x, y in pairs:
        triplet = crossed_triplet(gram, clusters[x], clusters[y])
        seen = appendix_tests(gram, clusters[x], clusters[y], change, triplet)
        random = appendix_tests(null, clusters[x], clusters[y], null_change, triplet)
        tests = []
        for test, result in seen.items():
            chance = random[test]
            if isinstance(result, str) or isinstance(chance, str):
                tests.append({"test": test, "skipped": result})
                continue
            criterion, value, passes = result
            rate = float(chance[2].mean())
            tests.append(
                {"test": test, "value": float(value), "criterion": criterion, "independent": bool(passes),
                 "passed_by_unrelated": rate, "informative": rate <= 0.05}
            )  # fmt: skip
        done = [t for t in tests if "skipped" not in t]
        score = f"{sum(t['independent'] for t in done)}/{len(done)}"
        out.append({"of": [x, y], "tests": tests, "score": score,
                    "informative_tests": sum(t["informative"] for t in done)})  # fmt: skip
    return out


# --- calibrated -------------------------------------------------------------------------------------------


def within(gram: np.ndarray, clusters: Sequence[Sequence[int]]) -> np.ndarray:
    """Mean over clusters of two members or more of the mean cosine inside, [..., n, n] → [...]."""
    plural = [c for c in clusters if len(c) > 1]
    return np.mean([st.within_cosine(gram, c) for c in plural], axis=0)


def calibrated_verdict(
    gram: np.ndarray,
    clusters: Clusters,
    nulls: Mapping[str, np.ndarray],
    *,
    level: float = 0.01,
    resampled: np.ndarray | None = None,
    contrast_p: Mapping[str, float] | None = None,
    regroup: Callable[[np.ndarray], Sequence[Sequence[int]]] | None = None,
) -> dict:
    """The calibrated verdict on [n, n] cosines; see the module's docstring.

    `nulls`: kind → cosines of unrelated vectors [draws, n, n]; with several kinds a claim must hold under
    each. `resampled`: [draws, n, n] from bootstrapped prompts. `contrast_p`: p-value of each vector's own
    contrast. `regroup`: how the clusters were found in `gram`, if they were; the null then searches too.

    `level` bounds P(not "nothing to tell" | unrelated vectors) and P("shared core" or "partly related" |
    independent clusters); at 0.01 planted truths are recovered in well over 95 % of runs.
    """
    groups = [tuple(c) for c in clusters.values()]
    result: dict = {
        "level": level,
        "p": {},
        "within": {},
        "between": [],
        "shared_angle_deg": SHARED_ANGLE_DEG,
    }

    def answer(verdict: str, because: str) -> dict:
        return {"verdict": verdict, "because": because} | result

    if len(groups) < 2:
        return answer(INCONCLUSIVE, "there is one cluster: nothing to compare it with")
    if 1 / (1 + min(len(null) for null in nulls.values())) > level:
        return answer(INCONCLUSIVE, f"too few null draws for level {level:g}")
    if contrast_p:
        result["p"]["contrast"] = max(contrast_p.values())
        faint = [name for name, p in contrast_p.items() if p > level]
        if faint:
            return answer(NOTHING, f"permuted labels give as long a vector as {', '.join(faint)}")

    plural = [c for c in groups if len(c) > 1]
    cosines = st.cluster_cosines(gram, groups)
    null_cosines = {kind: st.cluster_cosines(null, groups) for kind, null in nulls.items()}
    result["between"] = _between(list(clusters), cosines, null_cosines, groups, resampled)
    if plural:
        p_within = 0.0
        for null in nulls.values():
            draws = within(null, groups) if regroup is None else np.array([_searched(g, regroup) for g in null])
            p_within = max(p_within, float(p_upper(within(gram, groups), draws)))
        result["p"]["within"] = p_within
        result["within"] = {k: float(st.within_cosine(gram, c)) for k, c in clusters.items() if len(c) > 1}
        if p_within > level:
            return answer(NOTHING, "vectors of one cluster are no closer than unrelated ones")

    upper = np.triu_indices(len(groups), 1)
    squares = float((cosines[upper] ** 2).sum())
    p_related = max(float(p_upper(squares, (c[:, upper[0], upper[1]] ** 2).sum(-1))) for c in null_cosines.values())
    p_core = max(float(p_upper(_company(cosines), _company(c)).max()) for c in null_cosines.values())
    result["p"] |= {"related": p_related, "core": p_core}
    if p_related <= level and p_core <= level:
        return answer(SHARED_CORE, "every cluster is closer to the others than unrelated directions are")
    if p_related <= level:
        return answer(PARTLY, "some clusters are closer or further apart than unrelated directions, not all alike")
    if not plural:
        return answer(INCONCLUSIVE, "no cluster has two members, so none is known to be more than noise")
    bound = max(_bound(b, null_cosines, level) for b in result["between"])
    result["bound"] = bound
    if bound < np.cos(np.radians(SHARED_ANGLE_DEG)):
        return answer(INDEPENDENT, f"clusters hold together, and no two share a cosine above {bound:.2f}")
    return answer(INCONCLUSIVE, f"two clusters may share a cosine up to {bound:.2f}: too few dimensions or prompts")


def _searched(gram: np.ndarray, regroup: Callable[[np.ndarray], Sequence[Sequence[int]]]) -> float:
    return float(within(gram, regroup(gram)))


def _company(cosines: np.ndarray) -> np.ndarray:
    """Mean cosine of each cluster with the others, [..., k, k] → [..., k]."""
    return (cosines.sum(-1) - 1) / (cosines.shape[-1] - 1)


def _between(
    names: list[str],
    cosines: np.ndarray,
    nulls: Mapping[str, np.ndarray],
    groups: list[tuple[int, ...]],
    resampled: np.ndarray | None,
) -> list[dict]:
    """Each pair of clusters: cosine of the means, its share of variance, two-sided p, q, interval, relation."""
    again = st.cluster_cosines(resampled, groups) if resampled is not None else None
    out = []
    for i, j in zip(*np.triu_indices(len(names), 1), strict=True):
        value = float(cosines[i, j])
        ci = None
        if again is not None:
            low, high = interval(cosines[i, j], again[:, i, j])
            ci = [max(float(low), -1.0), min(float(high), 1.0)]
        p = max(float(p_two_sided(value, null[:, i, j])) for null in nulls.values())
        out.append({"of": [names[i], names[j]], "cosine": value, "shared_variance": value**2, "p": p, "ci95": ci})
    for entry, q in zip(out, false_discovery_q(np.array([entry["p"] for entry in out])), strict=True):
        side = "closer" if entry["cosine"] > 0 else "opposed"
        entry |= {"q": float(q), "relation": side if q <= 0.05 else "as unrelated directions"}
    return out


def _bound(entry: dict, nulls: Mapping[str, np.ndarray], level: float) -> float:
    """Upper bound of |cosine|: the value or the far end of its interval, plus what chance alignment hides.

    Chance is one-sided at `level`; all pairs must stay below the margin, so no correction for their number.
    """
    furthest = max(abs(c) for c in (entry["cosine"], *(entry["ci95"] or ())))
    upper = np.triu_indices(next(iter(nulls.values())).shape[-1], 1)
    hidden = max(float(np.quantile(null[:, upper[0], upper[1]], 1 - level)) for null in nulls.values())
    return furthest + hidden
