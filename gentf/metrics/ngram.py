"""N-gram models of token sequences: the likelihood that a neural sequence model must beat."""

from typing import NamedTuple

import numpy as np

SMOOTHINGS = ("kneser-ney", "witten-bell")


class Level(NamedTuple):
    """The k-grams of the training text, for one k.

    A k-gram's name is its row here. Its code is (name of its first k - 1 tokens) * vocabulary + its last token, so
    codes stay below 2**63 at any order, and the k-grams that continue one context lie side by side.

    Attributes:
        codes: (m,) int64, sorted.
        share: (m + 1,) float64, what the k-gram's own count gives it; the last entry is 0, for a k-gram not seen.
        weight: (contexts + 1,) float64, of the order below; the last entry is 1, for a context not seen.
    """

    codes: np.ndarray
    share: np.ndarray
    weight: np.ndarray


class NGram:
    """An interpolated n-gram model: p_k(w | context) = share_k(context, w) + weight_k(context) p_{k-1}(w | context).

    The context of p_k is the k - 1 tokens before w, and p_0 is uniform over the vocabulary: every token has positive
    probability, and the probabilities after any context sum to 1.

    Attributes:
        levels: one for each order, from 1.
        vocabulary: number of tokens there are, seen or not.
    """

    def __init__(self, levels: list[Level], vocabulary: int):
        self.levels = levels
        self.vocabulary = vocabulary

    @property
    def order(self) -> int:
        """Tokens of the longest n-gram: one more than the context that the model looks at."""
        return len(self.levels)

    @classmethod
    def fit(cls, tokens: np.ndarray, order: int, vocabulary: int, smoothing: str = "kneser-ney") -> "NGram":
        """Count the n-grams of a text.

        "kneser-ney" is the interpolated modified form: of counts 1, 2, and 3 or more, discounts D1, D2, D3 estimated
        from the text go to the order below, which counts the different tokens seen before a k-gram instead of its
        occurrences. Where the text is too small for the estimate, the discounts are 1/2, 1 and 3/2. "witten-bell"
        gives the order below the weight T / (N + T) after a context seen N times with T different continuations.

        Tinyshakespeare (characters, the last 10 % held out), order 5, nats a character: "kneser-ney" 1.561,
        "witten-bell" 1.669.

        Args:
            tokens: (n,) integers in 0..vocabulary-1, n >= order.
            order: tokens of the longest n-gram, >= 1.
            vocabulary: number of tokens there are.
            smoothing: one of `SMOOTHINGS`.
        Reference: Chen & Goodman (1999), An empirical study of smoothing techniques for language modeling; Kneser &
            Ney (1995); Witten & Bell (1991), method C.
        """
        if order < 1:
            raise ValueError(f"`order` must be positive. Received: order={order}")
        if smoothing not in SMOOTHINGS:
            raise ValueError(f"`smoothing` must be one of {', '.join(SMOOTHINGS)}. Received: smoothing={smoothing!r}")
        tokens = _in_vocabulary(tokens, vocabulary)
        if tokens.size < order:
            raise ValueError(f"`tokens` must hold at least `order` tokens. Received: {tokens.size} and order={order}")
        kneser_ney = smoothing == "kneser-ney"
        codes: list[np.ndarray] = []
        counts: list[np.ndarray] = []
        names = np.zeros(tokens.size + 1, np.int64)  # of the (k - 1)-grams, by the position where they end
        for k in range(1, order + 1):
            found, first, now, times = np.unique(
                names[:-1] * vocabulary + tokens[k - 1 :], return_index=True, return_inverse=True, return_counts=True
            )
            if kneser_ney and k > 1:
                # A different k-gram is a different token before the (k - 1)-gram that it ends with.
                counts[-1] = np.bincount(names[1:][first], minlength=codes[-1].size)
            codes.append(found)
            counts.append(times)
            names = now
        contexts = [1] + [level.size for level in codes[:-1]]
        smooth = [_smooth(*each, vocabulary, kneser_ney) for each in zip(codes, counts, contexts)]
        return cls(smooth, vocabulary)

    @classmethod
    def unigram(cls, tokens: np.ndarray, vocabulary: int, smoothing: str = "kneser-ney") -> "NGram":
        """Order 1: each token by its own frequency."""
        return cls.fit(tokens, 1, vocabulary, smoothing)

    @classmethod
    def markov(cls, tokens: np.ndarray, vocabulary: int, smoothing: str = "kneser-ney") -> "NGram":
        """Order 2: each token given the one before."""
        return cls.fit(tokens, 2, vocabulary, smoothing)

    def nats(self, tokens: np.ndarray) -> np.ndarray:
        """-log p of each token given those before it, at most order - 1 of them.

        Args:
            tokens: (n,) integers in 0..vocabulary-1. The first ones are given what context there is.
        Returns:
            (n,) float64, > 0 (0 for a vocabulary of one token).
        """
        tokens = _in_vocabulary(tokens, self.vocabulary)
        names = self._names(tokens)
        p = np.full(tokens.size, 1 / self.vocabulary)
        for k, level in enumerate(self.levels, start=1):
            p[k - 1 :] = level.share[names[k]] + level.weight[names[k - 1][:-1]] * p[k - 1 :]
        return -np.log(p)

    def probabilities(self, context: np.ndarray) -> np.ndarray:
        """Distribution of the token after `context`.

        Args:
            context: (n,) integers in 0..vocabulary-1, n >= 0; the last order - 1 of them count.
        Returns:
            (vocabulary,) float64, positive, with sum 1.
        """
        context = to_tokens(context, "context")
        if context.size:
            context = _in_vocabulary(context, self.vocabulary, "context")
        context = context[max(0, context.size - self.order + 1) :]
        p = np.full(self.vocabulary, 1 / self.vocabulary)
        for level, names in zip(self.levels[: context.size + 1], self._names(context)):
            name = names[-1]
            p *= level.weight[name]
            if name >= 0:
                start, stop = np.searchsorted(level.codes, [name * self.vocabulary, (name + 1) * self.vocabulary])
                p[level.codes[start:stop] - name * self.vocabulary] += level.share[start:stop]
        return p

    def _names(self, tokens):
        """The names of the k-grams that end at each position, for k = 0..order: (n - k + 1,) each, -1 if not seen."""
        names = [np.zeros(tokens.size + 1, np.int64)]
        for k, level in enumerate(self.levels, start=1):
            # A context not seen, -1, makes a negative code, which is not found either.
            codes = names[-1][:-1] * self.vocabulary + tokens[k - 1 :]
            rows = np.minimum(np.searchsorted(level.codes, codes), level.codes.size - 1)
            names.append(np.where(level.codes[rows] == codes, rows, -1))
        return names


def to_tokens(tokens: np.ndarray, name: str = "tokens") -> np.ndarray:
    """Tokens as (n,) int64, n >= 0; `name` is what the error calls them."""
    tokens = np.asarray(tokens)
    if tokens.ndim == 1 and tokens.size == 0:
        return tokens.astype(np.int64)
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise ValueError(f"`{name}` must be (n,) integers. Received: shape={tokens.shape}, dtype={tokens.dtype}")
    return tokens.astype(np.int64)


def _in_vocabulary(tokens, vocabulary, name="tokens"):
    """At least one token, all in the vocabulary, as int64."""
    tokens = to_tokens(tokens, name)
    if vocabulary < 1:
        raise ValueError(f"`vocabulary` must be positive. Received: vocabulary={vocabulary}")
    if tokens.size == 0:
        raise ValueError(f"`{name}` must hold at least one token. Received: 0 tokens")
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        raise ValueError(f"`{name}` must lie in 0..{vocabulary - 1}. Received: {tokens.min()}..{tokens.max()}")
    return tokens


def _smooth(codes, counts, contexts, vocabulary, kneser_ney):
    """Counts of the k-grams, and the number of their contexts -> Level."""
    context = codes // vocabulary
    taken = _discounts(counts)[np.minimum(counts, 3)] if kneser_ney else np.zeros(counts.size)
    total = np.bincount(context, counts, contexts)
    freed = np.bincount(context, taken, contexts)
    if not kneser_ney:
        freed = np.bincount(context, minlength=contexts).astype(np.float64)
        total += freed
    # By Kneser and Ney, a context that was seen only at the start of the text has no counts: it is as if not seen.
    empty = total == 0
    weight = np.where(empty, 1.0, freed / np.where(empty, 1.0, total))
    share = (counts - taken) / np.where(empty, 1.0, total)[context]
    return Level(codes, np.append(share, 0.0), np.append(weight, 1.0))


def _discounts(counts):
    """What is taken of counts 0, 1, 2, and 3 or more: (4,), by Chen & Goodman (1999), section 3."""
    times = np.bincount(np.minimum(counts, 5), minlength=6).astype(np.float64)
    if times[1:5].all():
        y = times[1] / (times[1] + 2 * times[2])
        j = np.arange(1, 4)
        estimate = j - (j + 1) * y * times[2:5] / times[1:4]
        if (estimate > 0).all():
            return np.append(0.0, estimate)
    return np.array([0.0, 0.5, 1.0, 1.5])
