"""What a classifier of real data says of generated images: classes covered, their histogram, confidence,
agreement.

The classifier is taken as given: no standard error here includes its own mistakes. They show in the same
numbers for held-out real images.
"""

import numpy as np

from gentf.metrics.estimate import Estimate, mean_of, share_of


def class_counts(classes: np.ndarray, num_classes: int) -> np.ndarray:
    """Images of each class: (n,) integers in 0..num_classes-1 -> (num_classes,) int64."""
    classes = np.asarray(classes).reshape(-1)
    if num_classes < 1:
        raise ValueError(f"`num_classes` must be positive. Received: num_classes={num_classes}")
    if classes.size and (classes.min() < 0 or classes.max() >= num_classes):
        raise ValueError(f"`classes` must lie in 0..{num_classes - 1}. Received: {classes.min()}..{classes.max()}")
    return np.bincount(classes.astype(np.int64), minlength=num_classes)


def real_shares(real_counts: np.ndarray) -> np.ndarray:
    """Class shares of the real data, smoothed: (count + 1/2) / (total + K/2).

    The half keeps the divergence finite when a named class has no real image; where all classes have many, it
    changes nothing that can be seen.
    """
    counts = np.asarray(real_counts, np.float64)
    return (counts + 0.5) / (counts.sum() + 0.5 * counts.size)


def reverse_kl(counts: np.ndarray, real_counts: np.ndarray, *, seed: int = 0, draws: int = 1000) -> Estimate:
    """KL(generated || real) of the class histograms, in nats.

    sum_k g_k log(g_k / r_k), with g the shares of the generated images as counted (0 log 0 = 0) and r those
    of the real data, smoothed by `real_shares`. "Reverse" because the expectation is over the generator: it
    stays finite, and grows to -log r_k, when all images are of one class k.

    Args:
        counts: (K,) generated images of each class, by a classifier.
        real_counts: (K,) real images of each class, taken as the truth (no error of their own).
        seed, draws: of the multinomial bootstrap of `counts` that gives the standard error.
    Returns:
        The divergence as counted. With n images of a perfect generator it is (K - 1) / (2 n) on average, not
        0: compare with real images of the same count.
    Reference: Srivastava et al. (2017), VEEGAN; Lin et al. (2018), PacGAN.
    """
    counts, real_counts = _same_classes(counts, real_counts)
    resampled = _resample(counts, seed, draws)
    return Estimate(float(_kl(counts, real_counts)), float(_kl(resampled, real_counts).std(ddof=1)))


def expected_reverse_kl(
    counts: np.ndarray, real_counts: np.ndarray, num: int, *, seed: int = 0, draws: int = 1000
) -> float:
    """Mean `reverse_kl` of `num` images drawn with replacement from those of `counts`.

    This is what held-out real images score at the count of the samples, whatever their own count is, and also
    when their split was stratified, which makes their histogram fit better than any independent sample's.
    """
    counts, real_counts = _same_classes(counts, real_counts)
    return float(_kl(_resample(counts, seed, draws, num), real_counts).mean())


def worst_reverse_kl(real_counts: np.ndarray) -> float:
    """The largest reverse KL there is: -log min_k r_k, all images in the rarest real class.

    With balanced real classes it is log K.
    """
    return float(-np.log(real_shares(real_counts).min()))


def classes_covered(
    counts: np.ndarray, real_counts: np.ndarray, *, minimum: float = 0.01, seed: int = 0, draws: int = 1000
) -> Estimate:
    """Number of classes that the generator makes.

    A class counts when it has at least one image and at least `minimum` of the share it has among real
    images, so that a few images put in the wrong class by the classifier do not hide a missing one. With
    `minimum=0` it is the count used in the literature on mode collapse.

    Args:
        counts: (K,) generated images of each class, by a classifier.
        real_counts: (K,) real images of each class.
        minimum: share of the real share, >= 0.
        seed, draws: of the multinomial bootstrap that gives the standard error.
    """
    counts, real_counts = _same_classes(counts, real_counts)
    if minimum < 0:
        raise ValueError(f"`minimum` must not be negative. Received: minimum={minimum}")
    needed = np.maximum(1, minimum * counts.sum() * real_shares(real_counts))
    covered = (_resample(counts, seed, draws) >= needed).sum(axis=1)
    return Estimate(float((counts >= needed).sum()), float(covered.std(ddof=1)))


def confidence(probabilities: np.ndarray) -> Estimate:
    """Mean of the classifier's highest class probability: (n, K) -> in [1 / K, 1]."""
    return mean_of(_probabilities(probabilities).max(axis=1))


def class_agreement(probabilities: np.ndarray, labels: np.ndarray) -> Estimate:
    """Share of images that the classifier puts in the class they were asked for.

    Args:
        probabilities: (n, K) of the classifier.
        labels: (n,) integers, the class asked for.
    """
    return share_of(_agrees(probabilities, labels))


def agreement_by_class(probabilities: np.ndarray, labels: np.ndarray) -> list[Estimate | None]:
    """`class_agreement` for each of the K classes asked for; None for a class that was not asked for."""
    agrees, labels = _agrees(probabilities, labels), np.asarray(labels)
    return [share_of(agrees[labels == k]) if (labels == k).any() else None for k in range(np.shape(probabilities)[1])]


def labels_in_proportion(real_counts: np.ndarray, num: int) -> np.ndarray:
    """`num` labels in the proportions of `real_counts`, without randomness.

    Counts are rounded by largest remainder (ties to the lower class), and each class is spread evenly over
    the sequence, so that any stretch of it is close to the same proportions.

    Args:
        real_counts: (K,) real images of each class, not all 0.
    Returns:
        (num,) int32.
    """
    real_counts = np.asarray(real_counts, np.float64)
    if real_counts.ndim != 1 or not real_counts.sum() > 0 or real_counts.min() < 0:
        raise ValueError(f"`real_counts` must be counts, not all 0. Received: real_counts={real_counts.tolist()}")
    exact = real_counts / real_counts.sum() * num
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: num - counts.sum()]] += 1
    labels = np.repeat(np.arange(real_counts.size), counts)
    positions = np.concatenate([(np.arange(count) + 0.5) / max(count, 1) for count in counts])
    return labels[np.argsort(positions, kind="stable")].astype(np.int32)


def _kl(counts, real_counts):
    """KL of (..., K) counts to the smoothed real shares, over the last axis."""
    shares = counts / counts.sum(axis=-1, keepdims=True)
    logs = np.log(np.where(shares > 0, shares, 1)) - np.log(real_shares(real_counts))
    # Rounding can leave -1e-17 where the histograms are equal.
    return np.maximum((shares * logs).sum(axis=-1), 0.0)


def _resample(counts, seed, draws, num=None):
    """Multinomial bootstrap: (draws, K) counts of `num` images; of as many as there are by default."""
    total = counts.sum()
    return np.random.default_rng(seed).multinomial(total if num is None else num, counts / total, size=draws)


def _same_classes(counts, real_counts):
    counts, real_counts = np.asarray(counts, np.int64), np.asarray(real_counts, np.int64)
    if counts.ndim != 1 or counts.shape != real_counts.shape:
        raise ValueError(
            f"`counts` and `real_counts` must be (K,) both. Received: shapes {counts.shape} and {real_counts.shape}"
        )
    for name, value in (("counts", counts), ("real_counts", real_counts)):
        if value.min(initial=0) < 0 or not value.sum() > 0:
            raise ValueError(f"`{name}` must be counts, not all 0. Received: {name}={value.tolist()}")
    return counts, real_counts


def _probabilities(probabilities):
    probabilities = np.asarray(probabilities)
    if probabilities.ndim != 2 or 0 in probabilities.shape:
        raise ValueError(f"`probabilities` must be (n, K), n >= 1. Received: shape={probabilities.shape}")
    return probabilities


def _agrees(probabilities, labels):
    probabilities, labels = _probabilities(probabilities), np.asarray(labels)
    if labels.shape != probabilities.shape[:1]:
        raise ValueError(f"`labels` must be ({len(probabilities)},). Received: shape={labels.shape}")
    return probabilities.argmax(axis=1) == labels
