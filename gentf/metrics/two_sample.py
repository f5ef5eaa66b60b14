"""Whether a classifier can tell samples from real data."""

import numpy as np

from gentf.metrics.estimate import Estimate, share_of, to_one_space


def two_sample(real: np.ndarray, generated: np.ndarray, seed: int = 0) -> Estimate:
    """Accuracy of a classifier, trained on half of both sets, on the other halves: 1/2 where they are alike.

    A logistic regression on features and their squares: it sees what differs in means and in spreads.

    Args:
        real: (n, D) features, n at least 4; generated: (m, D). As many of the larger set are taken as the smaller has.
        seed: of the halves.
    Reference: Lopez-Paz & Oquab (2017), "Revisiting classifier two-sample tests", section 3.
    """
    from sklearn.linear_model import LogisticRegression  # a third of a second to import

    real, generated = to_one_space(real=real, generated=generated)
    number = min(len(real), len(generated))
    if number < 4:
        raise ValueError(
            "`real` and `generated` must be at least 4 points of one space each. "
            f"Received: {real.shape} and {generated.shape}"
        )
    generator = np.random.default_rng(seed)
    points = np.concatenate([part[generator.permutation(len(part))[:number]] for part in (real, generated)])
    labels = np.repeat([0, 1], number)
    half = np.tile(np.arange(number) < number // 2, 2)  # both sets are shuffled
    known = np.concatenate([points, np.square(points - points[half].mean(axis=0))], axis=1)
    scale = known[half].std(axis=0)
    known = (known - known[half].mean(axis=0)) / np.where(scale > 1e-9, scale, 1.0)
    judge = LogisticRegression(C=0.01, max_iter=200, tol=1e-3).fit(known[half], labels[half])
    return share_of(judge.predict(known[~half]) == labels[~half])
