"""The study's five methods and its tests 1–5, as pure functions of Gram matrices.

Every statistic of the study depends on the unit vectors only through their cosines, so each function takes
`gram`, float [..., n, n]: the inner products of n unit vectors, with any leading axes (layers, draws). That
makes 1,000 null draws one call. Angles are in degrees, shares and reductions are fractions (1 = 100 %).
Where a statistic is undefined (0/0), its value is NaN. Sources: section numbers are those of the study;
"inferred" marks a definition that its text does not give.
"""

from collections.abc import Sequence

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.sparse.linalg import eigsh
from scipy.spatial.distance import squareform

Array = np.ndarray
_DENSE = 256  # up to this many vectors a batched dense eigen-decomposition is faster than Lanczos
_TOLERANCE = 1e-5  # of Lanczos; its eigenvalues are good to the square of it
_RIDGE = 1e-9  # keeps the span of parallel vectors defined; moves a projection by less than 1e-8


def gram_matrix(vectors: Array) -> Array:
    """[..., n, d] vectors (any length > 0) → [..., n, n] cosines."""
    vectors = np.asarray(vectors, dtype=np.float64)
    return normalize_gram(vectors @ vectors.swapaxes(-1, -2))


def normalize_gram(gram: Array) -> Array:
    """[..., n, n] inner products → cosines, unit diagonal; NaN for a vector of length 0."""
    square = np.diagonal(gram, axis1=-2, axis2=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        length = np.sqrt(np.where(square > 1e-12, square, np.nan))
    return gram / (length[..., :, None] * length[..., None, :])


def gather_submatrices(gram: Array, index: Array) -> Array:
    """[..., n, n] and index [m, k] → [..., m, k, k]: the Gram matrix of each of m tuples of k vectors."""
    return gram[..., index[:, :, None], index[:, None, :]]


def leading_eigenpairs(gram: Array, k: int) -> tuple[Array, Array]:
    """The k largest eigenvalues [..., k] (descending) and their eigenvectors [..., n, k]."""
    n = gram.shape[-1]
    if n <= max(_DENSE, k):
        values, vectors = np.linalg.eigh(gram)
        return values[..., ::-1][..., :k], vectors[..., ::-1][..., :k]
    flat = gram.reshape(-1, n, n)
    found = [eigsh(g, k=k, v0=np.ones(n), tol=_TOLERANCE) for g in flat]  # type: ignore[arg-type] (its stub says int)
    order = [np.argsort(values)[::-1] for values, _ in found]
    values = np.stack([pair[0][o] for pair, o in zip(found, order, strict=True)])
    vectors = np.stack([pair[1][:, o] for pair, o in zip(found, order, strict=True)])
    return values.reshape(*gram.shape[:-2], k), vectors.reshape(*gram.shape[:-2], n, k)


def _upper_entries(gram: Array) -> Array:
    """[..., n, n] → [..., n(n-1)/2]: what lies above the diagonal."""
    rows, columns = np.triu_indices(gram.shape[-1], k=1)
    return gram[..., rows, columns]


def _to_degrees(cosine: Array) -> Array:
    return np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))


# --- pairs and triplets: gram [..., 2, 2] or [..., 3, 3] → [...] ------------------------------------------


def cosine(gram: Array) -> Array:
    """Cosine of the first two vectors, [..., 2, 2] → [...] (section 2.4)."""
    return gram[..., 0, 1]


def angle_deg(gram: Array) -> Array:
    """Angle of the first two vectors in degrees, [..., 2, 2] → [...] (section 2.4)."""
    return _to_degrees(gram[..., 0, 1])


def low_rank_r(gram: Array, ranks: int) -> Array:
    """Method 1: [..., n, n] → [..., ranks], for rank k = 1 … ranks.

    Pearson r between the off-diagonal cosines and those of the best rank-k reconstruction of the similarity
    matrix (inner products of the truncated SVD of the stacked vectors, not normalised again: at rank 1 the
    normalised ones would all be ±1). NaN where the cosines are all equal.
    """
    values, vectors = leading_eigenpairs(gram, ranks)
    original = _upper_entries(gram)
    rebuilt = np.zeros_like(gram)
    out = []
    for k in range(ranks):
        u = vectors[..., k]
        rebuilt = rebuilt + values[..., k, None, None] * u[..., :, None] * u[..., None, :]
        out.append(_pearson_r(original, _upper_entries(rebuilt)))
    return np.stack(out, axis=-1)


def _pearson_r(x: Array, y: Array) -> Array:
    x = x - x.mean(-1, keepdims=True)
    y = y - y.mean(-1, keepdims=True)
    square = (x * x).sum(-1) * (y * y).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y).sum(-1) / np.sqrt(np.where(square > 1e-24, square, np.nan))


def triangle_error_deg(gram: Array) -> Array:
    """Method 2: [..., 3, 3] → [...] degrees.

    Distance of θ23 from |θ12 − θ13| or θ12 + θ13, whichever is nearer; 0 in a plane. The first vector of the
    triplet is the apex, as in the study, so the order of the triplet matters.
    """
    t12, t13, t23 = (_to_degrees(gram[..., i, j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    return np.minimum(np.abs(t23 - np.abs(t12 - t13)), np.abs(t23 - (t12 + t13)))


def planar_error_deg(gram: Array) -> Array:
    """Degrees off a plane, [..., 3, 3] → [...]: the study's error and, because three directions that point apart lie in
    a plane as well, the distance of the three angles' sum from 360°."""
    t12, t13, t23 = (_to_degrees(gram[..., i, j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    return np.minimum(triangle_error_deg(gram), np.abs(360 - (t12 + t13 + t23)))


def pair_projection(gram: Array) -> Array:
    """Method 4: [..., 3, 3] of (reference, reference, vector) → [...].

    Signed length of the third vector on the normalised mean of the first two (section 2.2).
    """
    length = np.sqrt(np.maximum(2 + 2 * gram[..., 0, 1], 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (gram[..., 2, 0] + gram[..., 2, 1]) / np.where(length > 1e-6, length, np.nan)


def residual_cosines(gram: Array) -> Array:
    """Method 5: cosines [..., n, n] after removing each vector's part along the mean direction."""
    along = gram.sum(-1)
    square = along.sum(-1)[..., None, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        shared = along[..., :, None] * along[..., None, :] / np.where(square > 1e-12, square, np.nan)
    return normalize_gram(gram - shared)


def residual_reduction(gram: Array) -> Array:
    """Method 5 and test 3: [..., n, n] → [...], mean over pairs of (|c| − |c′|)/|c| (inferred).

    A triplet's residuals sum to zero, so their |c′| sum to 1 or more and its reduction is 2/3 at most; it goes
    to −∞ as the cosines go to 0.
    """
    before, after = np.abs(_upper_entries(gram)), np.abs(_upper_entries(residual_cosines(gram)))
    with np.errstate(invalid="ignore", divide="ignore"):
        return ((before - after) / np.where(before > 1e-12, before, np.nan)).mean(-1)


# --- all vectors: gram [..., n, n] ------------------------------------------------------------------------


def center_gram(gram: Array) -> Array:
    """Inner products [..., n, n] after subtracting the mean of the n vectors."""
    row = gram.mean(-1, keepdims=True)
    return gram - row - row.swapaxes(-1, -2) + row.mean(-2, keepdims=True)


def centered_pca(gram: Array, k: int) -> tuple[Array, Array]:
    """Method 3: centred PCA over the n vectors → explained variance [..., k] and loadings [..., n, k].

    A loading is a vector's signed distance along the component (its score). A component has no sign of its
    own: the largest loading is made positive.
    """
    middle = center_gram(gram)
    values, vectors = leading_eigenpairs(middle, k)
    values = np.maximum(values, 0)
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(-2)[..., None, :], axis=-2)
    total = np.trace(middle, axis1=-2, axis2=-1)
    return values / total[..., None], vectors * np.sign(largest) * np.sqrt(values)[..., None, :]


def pc1_removed(gram: Array) -> Array:
    """Cosines [..., n, n] of the vectors (not centred) after removing the direction of PC1 (test 4)."""
    values, vectors = leading_eigenpairs(center_gram(gram), 1)
    u = vectors[..., 0] - vectors[..., 0].mean(-1, keepdims=True)
    along = (gram @ u[..., None])[..., 0] / np.sqrt(np.maximum(values, 1e-12))
    return normalize_gram(gram - along[..., :, None] * along[..., None, :])


def within_cosine(gram: Array, members: Sequence[int]) -> Array:
    """Mean cosine over the pairs inside one cluster of two members or more, [..., n, n] → [...]."""
    return _upper_entries(gather_submatrices(gram, np.asarray([members]))[..., 0, :, :]).mean(-1)


def pc1_ablation_change(gram: Array, clusters: Sequence[Sequence[int]]) -> Array:
    """Test 4: change of each cluster's mean within-cosine when PC1 is removed → [..., n_clusters]."""
    after = pc1_removed(gram)
    return np.stack([within_cosine(after, c) - within_cosine(gram, c) for c in clusters], axis=-1)


def cluster_cosines(gram: Array, clusters: Sequence[Sequence[int]]) -> Array:
    """Cosines between the clusters' mean vectors, [..., n, n] → [..., n_clusters, n_clusters]."""
    weights = np.zeros((len(clusters), gram.shape[-1]))
    for row, members in zip(weights, clusters, strict=True):
        row[list(members)] = 1 / len(members)
    return normalize_gram(weights @ gram @ weights.T)


def cluster_angle_deg(gram: Array, a: Sequence[int], b: Sequence[int]) -> Array:
    """Test 1: angle in degrees between the mean vectors of two clusters, [..., n, n] → [...]."""
    part = gather_submatrices(gram, np.array([[*a, *b]]))[..., 0, :, :]  # of a thousand vectors most are in neither
    return _to_degrees(cluster_cosines(part, (range(len(a)), range(len(a), len(a) + len(b))))[..., 0, 1])


def span_projection(gram: Array, vectors: Sequence[int], span: Sequence[int]) -> Array:
    """Test 2: length of each vector's projection on the span of a cluster → [..., len(vectors)].

    Its square is the shared variance.
    """
    inner = gram[..., np.asarray(span)[:, None], np.asarray(span)[None, :]] + _RIDGE * np.eye(len(span))
    cross = gram[..., np.asarray(span)[:, None], np.asarray(vectors)[None, :]]
    return np.sqrt(np.clip((cross * np.linalg.solve(inner, cross)).sum(-2), 0, 1))


def cross_explained_variance(gram: Array, a: Sequence[int], b: Sequence[int]) -> Array:
    """Test 5: share of cluster b's squared length along cluster a's first component → [...].

    The component is the first right singular vector of a's stacked vectors, not centred (inferred: with two
    members a centred component is only their difference).
    """
    values, vectors = leading_eigenpairs(gram[..., np.asarray(a)[:, None], np.asarray(a)[None, :]], 1)
    cross = gram[..., np.asarray(b)[:, None], np.asarray(a)[None, :]]
    along = (cross @ vectors)[..., 0] / np.sqrt(values)
    return (along**2).mean(-1)


def linkage_matrix(gram: Array) -> Array:
    """scipy's average linkage on 1 − cosine, one [n, n] → [n − 1, 4] (section 3.6)."""
    distance = np.clip(1 - gram, 0, None)
    return linkage(squareform(distance, checks=False), method="average")


def linkage_heights(gram: Array) -> Array:
    """Ascending merge heights of the average linkage, [..., n, n] → [..., n − 1]."""
    n = gram.shape[-1]
    heights = [linkage_matrix(g)[:, 2] for g in gram.reshape(-1, n, n)]
    return np.stack(heights).reshape(*gram.shape[:-2], n - 1)
