"""Importance-sampled likelihoods beside pythae's `get_nll`: `python benchmarks/importance.py [IMAGES] [SAMPLES]`.

Both score the same shape of model, 784-400-40, with untrained weights: their cost does not depend on them. gentf takes
all images in one compiled call; pythae goes image by image, so fewer are given to it and the time an image is told.
GENTF_BENCH_TORCH names a Python that has torch and pythae; without it gentf is timed alone.
"""

import os
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

HIDDEN, CODE, PEER_IMAGES, ROUNDS = 400, 40, 20, 3
PEER = f"""
import time, torch
from pythae.models import VAE, VAEConfig
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.models.base.base_utils import ModelOutput
nn = torch.nn

class Encoder(BaseEncoder):
    def __init__(self):
        super().__init__()
        self.hidden, self.mean = nn.Linear(784, {HIDDEN}), nn.Linear({HIDDEN}, {CODE})
        self.scale = nn.Linear({HIDDEN}, {CODE})
    def forward(self, x):
        h = torch.relu(self.hidden(x.reshape(len(x), -1)))
        return ModelOutput(embedding=self.mean(h), log_covariance=self.scale(h))

class Decoder(BaseDecoder):
    def __init__(self):
        super().__init__()
        self.stack = nn.Sequential(nn.Linear({CODE}, {HIDDEN}), nn.ReLU(), nn.Linear({HIDDEN}, 784), nn.Sigmoid())
    def forward(self, z):
        return ModelOutput(reconstruction=self.stack(z).reshape(-1, 1, 28, 28))

model = VAE(VAEConfig(input_dim=(1, 28, 28), latent_dim={CODE}, reconstruction_loss="bce"), Encoder(), Decoder()).eval()
images = (torch.rand({PEER_IMAGES}, 1, 28, 28) < 0.13).float()
samples = SAMPLES
with torch.no_grad():
    model.get_nll(images[:1], n_samples=samples, batch_size=min(samples, 1000))
    for _ in range({ROUNDS}):
        started = time.perf_counter()
        model.get_nll(images, n_samples=samples, batch_size=min(samples, 1000))
        print("ms", 1000 * (time.perf_counter() - started) / len(images), flush=True)
"""


def main(images: int = 10_000, samples: int = 5000) -> None:
    import numpy as np

    from gentf.models import VAE

    model = VAE((28, 28, 1), latent_dim=CODE, hidden_units=(HIDDEN,))
    drawn = (np.random.default_rng(0).random((images, 28, 28, 1)) < 0.13).astype(np.uint8) * 255
    started = time.perf_counter()
    model.bound(drawn, samples)
    first = time.perf_counter() - started
    peer = os.environ.get("GENTF_BENCH_TORCH")
    other: list[float] = []
    if peer:
        done = subprocess.run(
            [peer, "-c", PEER.replace("SAMPLES", str(samples))], capture_output=True, text=True, check=True
        )
        other = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("ms ")]
    started = time.perf_counter()
    found = model.bound(drawn, samples)
    seconds = time.perf_counter() - started
    ours = 1000 * seconds / images
    print(f"gentf: {images} images x {samples} codes in one call: {seconds:.1f} s ({ours:.2f} ms an image); "
          f"the first call, with compilation, {first:.1f} s; mean {found.log_prob.mean():.2f} nats")  # fmt: skip
    if other:
        middle = sorted(other)[len(other) // 2]
        print(f"pythae get_nll: {middle:.1f} ms an image (of {PEER_IMAGES}, median of {ROUNDS}); "
              f"{middle / ours:.2f} times gentf's")  # fmt: skip


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
