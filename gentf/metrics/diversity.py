"""Diversity of generated sequences, by their n-grams: between the samples, and within each."""

from collections.abc import Sequence

import numpy as np

from gentf.metrics.estimate import Estimate, mean_of
from gentf.metrics.ngram import to_tokens

NO_MATCH = 0.1  # n-grams that a sample without a match of that length is taken to match


def distinct_n(samples: Sequence[np.ndarray], n: int) -> float:
    """Different n-grams of all samples together, as a share of all their n-grams: in (0, 1].

    It falls as more or longer samples are drawn: compare at the same number and length.

    Args:
        samples: token arrays, (T,) integers each; those shorter than `n` have no n-gram.
        n: tokens of an n-gram, >= 1.
    Raises:
        ValueError: no sample has an n-gram.
    Reference: Li et al. (2016), A diversity-promoting objective function for neural conversation models; the share
        here is of n-grams, not of tokens.
    """
    names, _ = _grams(_samples(samples), n)[-1]
    _some_grams(names, n)
    return (int(names.max()) + 1) / names.size


def self_bleu(samples: Sequence[np.ndarray], n: int = 4, max_samples: int = 500, seed: int = 0) -> Estimate:
    """Mean BLEU of each sample against all the others: in [0, 1], and the higher, the more alike they are.

    A sample's BLEU is the geometric mean over k = 1..n of the share of its k-grams found in others (each at most as
    often as in that other which has it most often), times exp(1 - r / c) if its length c is below the closest length
    r of the others (of two equally close, the shorter). For a k without any match, or with no k-gram in the sample,
    0.1 match is counted; a sample that shares not one token has BLEU 0.

    It rises with the number of samples: compare at the same number and length, and with real text.

    Args:
        samples: at least 2 token arrays, (T,) integers each.
        n: longest k-gram, >= 1.
        max_samples: at least 2; of more samples, as many are drawn without replacement, and stand for all.
        seed: of that draw.
    Returns:
        The standard error is by the jackknife: each sample left out in turn, as a sample and as one of the others
        (the length r stays). It is not too small on average (Efron & Stein, 1981), but can be twice the true one
        where the samples have little in common. It is NaN for 2 samples, and takes memory of 8 * max_samples**2
        bytes a few times over.
    Reference: Papineni et al. (2002), BLEU; Zhu et al. (2018), Texygen; Chen & Cherry (2014), smoothing 1.
    """
    if max_samples < 2:
        raise ValueError(f"`max_samples` must be at least 2. Received: max_samples={max_samples}")
    arrays = _samples(samples)
    if len(arrays) < 2:
        raise ValueError("`samples` must be at least 2 samples. Received: 1 sample")
    if len(arrays) > max_samples:
        drawn = np.random.default_rng(seed).choice(len(arrays), max_samples, replace=False)
        arrays = [arrays[index] for index in drawn]
    num = len(arrays)
    lengths = np.array([sample.size for sample in arrays])
    logs = np.zeros((num, num + 1))  # of each sample's score: against the others without the j-th, and against all
    shares_token = np.zeros((num, num + 1), bool)
    for k, (names, owners) in enumerate(_grams(arrays, n), start=1):
        matched = _matches(names, owners, num)
        if k == 1:
            shares_token = matched > 0
        total = np.maximum(lengths - k + 1, 1)[:, None]
        logs += np.log(np.where(matched > 0, matched, NO_MATCH) / total) / n
    brevity = np.minimum(0.0, 1 - _closest_lengths(lengths) / np.maximum(lengths, 1))[:, None]
    scores = np.where(shares_token, np.exp(logs + brevity), 0.0)
    return Estimate(float(scores[:, num].mean()), _jackknife(scores[:, :num]))


def repetition(samples: Sequence[np.ndarray], n: int) -> Estimate:
    """Share of a sample's n-grams that occurred in it before, 1 - different / all, as the mean over samples.

    Args:
        samples: token arrays, (T,) integers each; those shorter than `n` are left out.
        n: tokens of an n-gram, >= 1.
    Raises:
        ValueError: no sample has an n-gram.
    Reference: Welleck et al. (2020), Neural text generation with unlikelihood training ("seq-rep-n").
    """
    arrays = _samples(samples)
    names, owners = _grams(arrays, n)[-1]
    _some_grams(names, n)
    total = np.bincount(owners, minlength=len(arrays))
    different = np.bincount(np.unique(names * len(arrays) + owners) % len(arrays), minlength=len(arrays))
    return mean_of(1 - different[total > 0] / total[total > 0])


def _samples(samples):
    arrays = [to_tokens(sample, f"samples[{index}]") for index, sample in enumerate(samples)]
    if not arrays:
        raise ValueError("`samples` must hold at least one sample. Received: 0 samples")
    return arrays


def _some_grams(names, n):
    if not names.size:
        raise ValueError(f"`samples` must hold one of at least n tokens. Received: all shorter than n={n}")


def _grams(arrays, n):
    """For k = 1..n, the name of each k-gram and its sample: (m,) int64 in 0..different-1, and (m,)."""
    if n < 1:
        raise ValueError(f"`n` must be positive. Received: n={n}")
    tokens = np.unique(np.concatenate(arrays), return_inverse=True)[1]
    owners = np.repeat(np.arange(len(arrays)), [sample.size for sample in arrays])
    goes_on = np.append(owners[1:] == owners[:-1], False)[: owners.size]
    ends = np.arange(tokens.size)
    names = tokens
    found = [(names, owners)]
    for _ in range(1, n):
        longer = goes_on[ends]
        ends = ends[longer] + 1
        # A k-gram is named by the name of its first k - 1 tokens and its last token: no overflow at any k.
        codes = names[longer] * (tokens.max(initial=0) + 1) + tokens[ends]
        names = np.unique(codes, return_inverse=True)[1]
        found.append((names, owners[ends]))
    return found


def _matches(names, owners, num):
    """K-grams of sample i that are found in others: (num, num + 1), in column j without sample j, at last in all.

    A count is clipped at the largest count in another sample. That is the largest of all, or, for the sample that
    has the largest itself, the second largest: one pass serves all samples. Leaving out one more changes this only
    for the two samples with the largest counts, each when the other goes: they are left with the third largest.
    """
    pairs, counts = np.unique(names * num + owners, return_counts=True)
    name, owner = pairs // num, pairs % num
    order = np.lexsort((-counts, name))
    start = np.flatnonzero(np.diff(name, prepend=-1))
    size = np.diff(np.append(start, name.size))
    rows = [order[np.minimum(start + place, name.size - 1)] for place in range(3)]
    largest, second, third = (np.where(size > place, counts[rows[place]], 0) for place in range(3))
    others = np.where(counts == largest[name], second[name], largest[name])
    matched = np.bincount(owner, np.minimum(counts, others), num)
    lost = second - third
    one, two, lost = owner[rows[0]][lost > 0], owner[rows[1]][lost > 0], lost[lost > 0]
    without = np.bincount(one * num + two, lost, num * num).reshape(num, num)
    return np.append(matched[:, None] - without - without.T, matched[:, None], axis=1)


def _jackknife(scores):
    """Standard error of the mean score, from (num, num): the score of sample i when sample j is left out."""
    num = len(scores)
    if num < 3:
        return float("nan")
    means = (scores.sum(axis=0) - np.diag(scores)) / (num - 1)
    return float(np.sqrt((num - 1) * means.var()))


def _closest_lengths(lengths):
    """For each sample the length of another that is closest to its own; the shorter of two equally close."""
    order = np.argsort(lengths, kind="stable")
    ordered = lengths[order].astype(np.float64)
    below = np.append(-np.inf, ordered[:-1])
    above = np.append(ordered[1:], np.inf)
    closest = np.empty(lengths.size)
    closest[order] = np.where(ordered - below <= above - ordered, below, above)
    return closest
