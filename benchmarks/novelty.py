"""Are copies caught, and do held-out images pass: `python benchmarks/novelty.py NAME|FOLDER... [--seeds 10]`.

For each seed, what `gentf evaluate` calls signs of copies is asked of three planted generators: one that replays the
train split, one half of whose images are replayed, and held-out images that the other half of the held-out images stand
beside. Features are those of the set's classifier.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import click
import numpy as np


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--seeds", default=10, show_default=True)
def main(names: tuple[str, ...], seeds: int) -> None:
    from gentf import evaluation
    from gentf.data import load
    from gentf.evaluation_features import COPIES, Novelty, copying
    from gentf.metrics.nearest import nearest_distances

    click.echo(f"| set | generator | called copies | {' | '.join(COPIES)} |")
    click.echo("|---|---|---|---|---|---|")
    for name in names:
        source = load(name)
        train, real = (split.arrays()[0] for split in (source.train, source.test))
        space = evaluation._judge(source, source.test, None, click.echo)
        features = {"train": space.features(train).astype(float), "real": space.features(real).astype(float)}
        distances = nearest_distances(real, train)
        counts: dict[str, list[list[str]]] = {"replays": [], "replays half": [], "held-out images": []}
        for seed in range(seeds):
            generator = np.random.default_rng(seed)
            order = generator.permutation(len(real))
            fresh, beside = np.array_split(order, 2)
            copies = generator.choice(len(train), len(fresh), replace=False)
            half = len(fresh) // 2
            planted = {
                "replays": (np.zeros(len(fresh)), features["train"][copies]),
                "replays half": (
                    np.concatenate([np.zeros(half), distances[fresh[half:]]]),
                    np.concatenate([features["train"][copies[:half]], features["real"][fresh[half:]]]),
                ),
                "held-out images": (distances[fresh], features["real"][fresh]),
            }
            novelty = Novelty(features["real"][beside], features["train"])
            for label, (near, points) in planted.items():
                shuffled = generator.permutation(len(points))
                metrics = evaluation.copy_metrics(near[shuffled], distances[beside])
                metrics |= novelty.metrics(points[shuffled])
                counts[label].append(copying(metrics))
        for label, found in counts.items():
            told = " | ".join(f"{sum(sign in one for one in found)} of {seeds}" for sign in COPIES)
            click.echo(f"| {os.path.basename(name)} | {label} | {sum(map(bool, found))} of {seeds} | {told} |")


if __name__ == "__main__":
    main()
