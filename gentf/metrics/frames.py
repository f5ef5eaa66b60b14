"""Baselines of piano rolls: how well the frames of held-out pieces are told by the means and by the frame before."""

from collections.abc import Sequence

import numpy as np

from gentf.metrics.estimate import Estimate, ratio_of


def bernoulli_nats(train: Sequence[np.ndarray], test: Sequence[np.ndarray]) -> Estimate:
    """Nats a frame of independent notes, each on as often as in the training pieces.

    A note that is on in k of n training frames has probability (k + 1/2) / (n + 1) (Krichevsky & Trofimov, 1981), so
    that one never heard in training costs much, but not infinitely much.

    Args:
        train, test: pieces, each (T, P) of 0 and 1, T >= 1 (P = 88 keys of a piano, the same in all).
    Returns:
        The mean over all frames of `test`: 11.06 on the test pieces of JSB Chorales (quarter grid), 10.25 on
        Nottingham. The standard error is that of other pieces being drawn: frames of one piece are not independent.
    Reference: the splits are those of Boulanger-Lewandowski, Bengio & Vincent (2012).
    """
    train, test = _pieces(train, test)
    p = _share(np.concatenate(train))
    return _per_frame([_nats(p, piece) for piece in test])


def markov_nats(train: Sequence[np.ndarray], test: Sequence[np.ndarray], *, first: bool = False) -> Estimate:
    """Nats a frame of independent notes, each given whether it was on in the frame before.

    Both shares of a note, after it was on and after it was off, are smoothed as in `bernoulli_nats`.

    Args:
        train, test: pieces, each (T, P) of 0 and 1, T >= 1.
        first: also count the first frame of each piece, told by `bernoulli_nats`. Networks that predict the next
            frame are published without it.
    Returns:
        The mean over the frames of `test`, by default those with a frame before: 10.49 on the test pieces of JSB
        Chorales (quarter grid), 5.15 on Nottingham; with the first frames, 10.47 and 5.16. The standard error is
        that of other pieces being drawn.
    """
    train, test = _pieces(train, test)
    before = np.concatenate([piece[:-1] for piece in train])
    after = np.concatenate([piece[1:] for piece in train])
    on = before.sum(axis=0)
    both = (before & after).sum(axis=0)
    p_on = (both + 0.5) / (on + 1)
    p_off = (after.sum(axis=0) - both + 0.5) / (len(before) - on + 1)
    nats = [_nats(np.where(piece[:-1], p_on, p_off), piece[1:]) for piece in test]
    if first:
        p = _share(np.concatenate(train))
        nats = [np.append(_nats(p, piece[:1]), rest) for piece, rest in zip(test, nats)]
    return _per_frame(nats)


def _share(frames):
    return (frames.sum(axis=0) + 0.5) / (len(frames) + 1)


def _nats(p, frames):
    """-log probability of (T, P) bool under independent probabilities, (P,) or (T, P): (T,)."""
    return -np.log(np.where(frames, p, 1 - p)).sum(axis=1)


def _per_frame(nats):
    """Mean over all frames of all pieces."""
    lengths = [piece.size for piece in nats]
    if not sum(lengths):
        raise ValueError("`test` must hold a frame with one before it. Received: pieces of one frame")
    return ratio_of([piece.sum() for piece in nats], lengths)


def _pieces(train, test):
    """Both as lists of bool arrays, checked."""
    checked = []
    width = None
    for name, pieces in (("train", train), ("test", test)):
        arrays = [np.asarray(piece) for piece in pieces]
        if not arrays:
            raise ValueError(f"`{name}` must hold at least one piece. Received: 0 pieces")
        for number, piece in enumerate(arrays):
            if piece.ndim != 2 or 0 in piece.shape or piece.shape[1] != (width or piece.shape[1]):
                raise ValueError(
                    f"`{name}` must be pieces of shape (T, {width or 'P'}), T >= 1. "
                    f"Received: {name}[{number}] of shape {piece.shape}"
                )
            width = piece.shape[1]
            if piece.dtype.kind not in "biuf" or not ((piece == 0) | (piece == 1)).all():
                raise ValueError(f"`{name}` must be 0 or 1 everywhere. Received: {name}[{number}] with other values")
        checked.append([piece.astype(bool) for piece in arrays])
    return checked
