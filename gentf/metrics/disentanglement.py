"""Whether single numbers of a code stand for single factors of what was encoded, where the factors are known.

Codes are (n, D) float, factors (n, F) integers. Every score is 1 where each factor is in one number of the code and
each number holds one factor at most, and about 0 where the code knows nothing. None depends on the order, the sign or
the scale of the code's numbers.
"""

from collections.abc import Callable, Sequence

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.tree import DecisionTreeClassifier

from gentf.metrics.estimate import BLOCKS, Estimate, jackknife, mean_of, share_of, to_features

BINS = 20
TREES = 10
DEAD = 0.05  # standard deviation of a code's number, from which it takes part in the vote
VOTES, TESTS = 800, 800
GROUP = 64  # images that share a factor
LOOKED_AT = 5000


def mig(codes: np.ndarray, factors: np.ndarray, bins: int = BINS) -> Estimate:
    """Mutual information gap: of each factor, how much more the code's best number says of it than the second best, as
    a share of the factor's entropy; the mean over factors.

    References: Chen et al. (2018), "Isolating sources of disentanglement", equation 6; with the code's numbers in bins
    of one width, as in Locatello et al. (2019), "Challenging common assumptions", appendix C.

    Returns:
        the score, with a jackknife standard error.
    """
    codes, factors = _checked(codes, factors)
    binned = np.stack([_binned(column, bins) for column in codes.T], axis=1)

    def score(rows: np.ndarray) -> float:
        counts = _joint(binned[rows], factors[rows], bins)
        return float(np.mean([_gap(per_factor) for per_factor in counts]))

    return jackknife(score, len(codes))


def sap(codes: np.ndarray, factors: np.ndarray, categorical: Sequence[int] = ()) -> Estimate:
    """Separated attribute predictability: of each factor, how much better the code's best number tells it than the
    second best; the mean over factors.

    A number tells a factor whose values have an order by its squared correlation with it, and one in `categorical` by
    the balanced accuracy of thresholds on it, from 0 for chance to 1.

    Reference: Kumar, Sattigeri & Balakrishnan (2018), "Variational inference of disentangled latent concepts", section
    3.

    Returns:
        the score, with a jackknife standard error.
    """
    codes, factors = _checked(codes, factors)

    def told(column: np.ndarray, factor: np.ndarray, number: int) -> float:
        if column.std() == 0.0:
            return 0.0
        if number not in categorical:
            return float(np.corrcoef(column, factor)[0, 1] ** 2)
        values = len(np.unique(factor))
        tree = DecisionTreeClassifier(max_leaf_nodes=2 * values, class_weight="balanced", random_state=0)
        half = len(column) // 2
        tree.fit(column[:half, None], factor[:half])
        found = tree.predict(column[half:, None])
        recalls = [np.mean(found[factor[half:] == value] == value) for value in np.unique(factor[half:])]
        return max(0.0, (float(np.mean(recalls)) - 1 / values) / (1 - 1 / values))

    def score(rows: np.ndarray) -> float:
        gaps = []
        for number, factor in enumerate(factors[rows].T):
            best = sorted(told(column, factor, number) for column in codes[rows].T)
            gaps.append(best[-1] - (best[-2] if len(best) > 1 else 0.0))
        return float(np.mean(gaps))

    return jackknife(score, len(codes))


def dci(codes: np.ndarray, factors: np.ndarray, seed: int = 0) -> dict[str, Estimate]:
    """Disentanglement, completeness and informativeness, from how much a random forest relies on each number of the
    code to tell each factor.

    Reference: Eastwood & Williams (2018), "A framework for the quantitative evaluation of disentangled
    representations", section 2. Informativeness is the share of held-out factors that are told right, from 0 for the
    commonest value to 1.

    Returns:
        {"disentanglement": of each number, how few factors it is for; "completeness": of each factor, how few numbers
        it is in; "informativeness"}: one fit on half of the rows, measured on the others. The error is that of the
        mean over factors, or over test rows.
    """
    codes, factors = _checked(codes, factors)
    half = len(codes) // 2
    reliance, right = [], []
    for factor in factors.T:
        forest = RandomForestClassifier(TREES, max_features=None, min_samples_leaf=5, random_state=seed, n_jobs=1)
        forest.fit(codes[:half], factor[:half])
        reliance.append(forest.feature_importances_)
        commonest = np.bincount(factor[half:]).max() / len(factor[half:])
        hit = (forest.predict(codes[half:]) == factor[half:]).astype(float)
        right.append(np.maximum(0.0, hit.mean() - commonest) / (1 - commonest))
    importance = np.array(reliance).T  # (D, F)
    of_codes = 1 - _entropy(importance, 1)
    weights = importance.sum(axis=1) / importance.sum()
    return {
        "disentanglement": Estimate(float(of_codes @ weights), float("nan")),
        "completeness": mean_of(1 - _entropy(importance, 0)),
        "informativeness": mean_of(np.array(right)),
    }


def factor_vae(
    encode: Callable[[np.ndarray], np.ndarray],
    draw: Callable[[int, int, int, int], np.ndarray],
    factors: int,
    seed: int = 0,
) -> Estimate:
    """Share of groups with a common factor of which the code's number that varies least says which factor that is.

    Each number is measured by its standard deviation over all groups; those that hardly vary take no part. Which number
    stands for which factor is decided by vote over `VOTES` groups, and held to `TESTS` others.

    Reference: Kim & Mnih (2018), "Disentangling by factorising", section 4.

    Args:
        encode: images (n, ...) -> codes (n, D).
        draw: factor, number of groups, images of each, seed -> (groups, images, ...), the factor the same in a group.
        factors: how many there are.
        seed: of the groups.
    Returns:
        the share, 1 / `factors` for a code that knows nothing, with its standard error.
    """
    per_factor = -(-(VOTES + TESTS) // factors)
    variances, truth, everything = [], [], []
    for factor in range(factors):
        images = draw(factor, per_factor, GROUP, seed)
        codes = np.asarray(encode(images.reshape(-1, *images.shape[2:])), np.float64).reshape(per_factor, GROUP, -1)
        variances.append(codes.var(axis=1, ddof=1))
        everything.append(codes.reshape(-1, codes.shape[-1]))
        truth += [factor] * per_factor
    spread = np.concatenate(everything).std(axis=0)
    alive = spread > DEAD * max(1.0, float(spread.max()))
    labels = np.array(truth)
    if not alive.any():
        return share_of(np.arange(len(labels)) % factors == 0)  # every number is dead: a guess
    relative = np.concatenate(variances)[:, alive] / np.square(spread[alive])
    least = np.argmin(relative, axis=1)
    order = np.random.default_rng(seed).permutation(len(labels))
    votes, tests = order[: len(order) // 2], order[len(order) // 2 :]
    table = np.zeros((alive.sum(), factors))
    np.add.at(table, (least[votes], labels[votes]), 1)
    return share_of(np.argmax(table, axis=1)[least[tests]] == labels[tests])


def scores(
    encode: Callable[[np.ndarray], np.ndarray],
    sample: Callable[[int, int], tuple[np.ndarray, np.ndarray]],
    draw: Callable[[int, int, int, int], np.ndarray],
    categorical: Sequence[int] = (),
    num: int = LOOKED_AT,
    seed: int = 0,
) -> dict[str, Estimate]:
    """All of the above.

    Args:
        encode: images (n, ...) -> codes (n, D).
        sample: number, seed -> images and their factors (n, F).
        draw, categorical: as of `factor_vae` and `sap`.
        num: images that the codes are looked at on.
        seed: of the images, votes and forests.
    Returns:
        "mig", "sap", "dci_disentanglement", "dci_completeness", "dci_informativeness", "factor_vae".
    """
    images, factors = sample(num, seed)
    codes = np.asarray(encode(images))
    found = {"mig": mig(codes, factors), "sap": sap(codes, factors, categorical)}
    found |= {f"dci_{name}": value for name, value in dci(codes, factors, seed).items()}
    return found | {"factor_vae": factor_vae(encode, draw, factors.shape[1], seed + 1)}


def _checked(codes: np.ndarray, factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    codes, factors = to_features(codes, "codes"), np.asarray(factors)
    if factors.ndim != 2 or factors.dtype.kind not in "iu" or len(factors) != len(codes):
        raise ValueError(
            f"`factors` must be ({len(codes)}, F) integers. Received: {factors.dtype} of shape {factors.shape}"
        )
    if len(codes) < 2 * BLOCKS:
        raise ValueError(f"`codes` must be at least {2 * BLOCKS}. Received: {len(codes)}")
    constant = [number for number, column in enumerate(factors.T) if column.min() == column.max()]
    if constant:
        raise ValueError(f"`factors` must each have several values. Received: one alone in column {constant[0]}")
    whole = np.stack([np.unique(column, return_inverse=True)[1] for column in factors.T], axis=1)
    return codes, whole


def _binned(column: np.ndarray, bins: int) -> np.ndarray:
    low, high = column.min(), column.max()
    if high <= low:
        return np.zeros(len(column), np.int64)
    return np.minimum((column - low) / (high - low) * bins, bins - 1).astype(np.int64)


def _joint(binned: np.ndarray, factors: np.ndarray, bins: int) -> list[np.ndarray]:
    """Of each factor, how often each of its values meets each bin of each number: (D, bins, values)."""
    found = []
    for factor in factors.T:
        values = int(factors.max()) + 1
        pairs = binned * values + factor[:, None]
        counts = [np.bincount(pair, minlength=bins * values).reshape(bins, values) for pair in pairs.T]
        found.append(np.stack(counts))
    return found


def _gap(counts: np.ndarray) -> float:
    """(D, bins, values) -> the mutual information of the best number less that of the second, over the entropy."""
    joint = counts / counts.sum(axis=(1, 2), keepdims=True)
    bins, values = joint.sum(axis=2), joint.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = joint * np.log(joint / (bins[:, :, None] * values[:, None, :]))
        entropy = -np.nansum(values[0] * np.log(values[0]))
    information = np.sort(np.nansum(terms, axis=(1, 2)))
    return float((information[-1] - (information[-2] if len(information) > 1 else 0.0)) / entropy)


def _entropy(importance: np.ndarray, axis: int) -> np.ndarray:
    """Entropy of shares along an axis, from 0 to 1; 1 where there is nothing to share."""
    count = importance.shape[axis]
    total = importance.sum(axis=axis, keepdims=True)
    share = np.divide(importance, total, out=np.full_like(importance, 1 / count), where=total > 0)
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    return -(share * logs).sum(axis=axis) / np.log(max(count, 2))
