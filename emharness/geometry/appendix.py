"""The study's Appendix A: five tests of whether two clusters of vectors are independent mechanisms.

It counts how many pass a threshold that unrelated vectors pass too, so it calls random directions independent.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from emharness.geometry import statistics as st
from emharness.geometry.analysis_result import StudyTest, StudyVerdict

SHARED_ANGLE_DEG = 45.0  # "angles < 45° would suggest shared structure" (section 3.3)

Clusters = Mapping[str, Sequence[int]]


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
        reduction = st.residual_reduction(st.gather_submatrices(gram, np.array([triplet])))[..., 0]
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
) -> tuple[StudyVerdict, ...]:
    """Appendix A for pairs of clusters, and how often unrelated vectors (`null` [draws, n, n]) pass each test.

    `informative` is false where they pass it in more than one draw of twenty.
    """
    out, change, null_change = [], pc1_changes(gram, clusters), pc1_changes(null, clusters)
    for x, y in pairs:
        triplet = crossed_triplet(gram, clusters[x], clusters[y])
        seen = appendix_tests(gram, clusters[x], clusters[y], change, triplet)
        random = appendix_tests(null, clusters[x], clusters[y], null_change, triplet)
        tests: list[StudyTest] = []
        for test, result in seen.items():
            chance = random[test]
            if isinstance(result, str) or isinstance(chance, str):
                tests.append(StudyTest(test=test, skipped=str(result)))
                continue
            criterion, value, passes = result
            rate = float(chance[2].mean())
            tests.append(
                StudyTest(
                    test=test,
                    value=float(value),
                    criterion=criterion,
                    independent=bool(passes),
                    passed_by_unrelated=rate,
                    informative=rate <= 0.05,
                )
            )
        done = [t for t in tests if t.skipped is None]
        score = f"{sum(bool(t.independent) for t in done)}/{len(done)}"
        out.append(StudyVerdict((x, y), tuple(tests), score, sum(bool(t.informative) for t in done)))
    return tuple(out)
