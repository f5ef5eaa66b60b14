"""What latent variable models share: an objective over draws, bounds of the likelihood, and what their codes are worth.

A model gives two things: `infer`, what the posterior of a batch is made of, once; and `draw`, any number of latents
from it with their `Terms`. Losses, importance-sampled likelihoods and active units are made from those here.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from gentf.kernels import random
from gentf.models.base import Batch, GenerativeModel, Losses
from gentf.models.objectives import BetaTC, Gate, Look, Objective, Terms
from gentf.nn.posteriors import DiagonalGaussian, Posterior
from gentf.nn.priors import Prior

NOISE, PRIOR_NOISE, DROPOUT = 1, 2, 3  # streams of randomness inside a step
ACTIVE = 0.01  # variance of a latent's mean over the data, from which it counts as used: Burda et al. (2016), sec. 5.1
LEAST = -3.0e38


class Bound(NamedTuple):
    """Importance-sampled log-likelihoods, in nats, each a lower bound in expectation.

    Attributes:
        log_prob: (n,) float32.
        stderr: (n,) float32, the Monte Carlo standard error of each, to first order.
        elbo: (n,) float32, the mean of the same log-weights: the evidence lower bound.
        distortion: (n,) float32, minus the expected log-likelihood; elbo + distortion is minus the rate.
    """

    log_prob: np.ndarray
    stderr: np.ndarray
    elbo: np.ndarray
    distortion: np.ndarray


class Variational(GenerativeModel):
    """Base of latent variable models, to stand before the base of a modality.

    A subclass sets `objective`, and gives `infer`, `draw`, `prior_draws` and, for beta-TC, `log_pairs`.
    """

    objective: Objective
    posterior: Posterior
    #: How many latents an example of an exported `log_prob`.
    served_samples = 64

    def infer(self, batch: Batch, training: bool = False) -> Any:
        """Posteriors of a batch, and what else every draw needs: tensors in tuples."""
        raise NotImplementedError

    def draw(
        self,
        inferred: Any,
        batch: Batch,
        samples: int,
        seed: tf.Tensor,
        gate: Gate | None = None,
        training: bool = False,
    ) -> Terms:
        """`samples` latents an example.

        Args:
            inferred: what `infer` gave for `batch`.
            seed: (B, 2) int32 row seeds.
            gate: what the latents pass; the density of the posterior is then that of constant parameters.
        """
        raise NotImplementedError

    def codes(self, inferred: Any) -> tf.Tensor:
        """(B, D) float32: the mean of the posterior."""
        raise NotImplementedError

    def prior_draws(self, inferred: Any, seed: tf.Tensor) -> tf.Tensor:
        """(B, 2) row seeds -> (B, D) latents of the prior."""
        raise NotImplementedError

    def log_pairs(self, inferred: Any, z: tf.Tensor) -> tf.Tensor:
        """(B, D) latents -> (B, B, D), the log-density of each under the posterior of each example."""
        raise ValueError("`objective` must be another than beta_tc for this model")

    def losses_on(self, batch: Batch, training: bool) -> Losses:
        """Nats an example: "loss", and its "distortion" and "rate"; where it is measured also "nats", minus the bound
        of as many samples as the objective has."""
        rows = tf.shape(next(iter(batch.values())))[0]
        if training:
            seed, other = self.row_seeds(rows, NOISE), self.row_seeds(rows, PRIOR_NOISE)
        else:  # the same noise in each batch: what differs between epochs is the model
            seed, other = random.spread(self.seed, rows), random.spread(self.seed, rows, 2**30)
        gate = Gate() if training and getattr(self.objective, "doubly", False) else None
        inferred = self.infer(batch, training)
        terms = self.draw(inferred, batch, self.objective.samples, seed, gate, training)
        if gate is not None:
            gate.weights = tf.stop_gradient(tf.nn.softmax(terms.log_weights, axis=1))
        look = Look(
            self.step.value if training else None,
            lambda: self.log_pairs(inferred, terms.z[:, 0]),
            lambda: self.prior_draws(inferred, other),
        )
        found = {
            "loss": self.objective.loss(terms, look),
            "distortion": tf.reduce_mean(terms.distortion),
            "rate": tf.reduce_mean(terms.rate),
        }
        if not training:
            samples = math.log(self.objective.samples)
            found["nats"] = -tf.reduce_mean(tf.reduce_logsumexp(terms.log_weights, axis=1) - samples)
        return found

    def _check_objective(self) -> None:
        """ValueError for an objective that asks for more than the posterior gives."""
        if getattr(self.objective, "doubly", False) and not self.posterior.has_density:
            raise ValueError("`doubly` must be False with a posterior that is a flow: its density takes D steps")
        if isinstance(self.objective, BetaTC) and not isinstance(self.posterior, DiagonalGaussian):
            raise ValueError("`posterior` must be diagonal for the objective beta_tc")

    # Likelihoods

    def estimate(self, batch: Batch, seed: tf.Tensor, samples: int, block: int, inferred: Any = None) -> tf.Tensor:
        """The fields of a `Bound`, (B, 4) float32, from `samples` latents in blocks of `block`.

        The sums of weights are kept relative to the largest so far: no weight is held but for those of a block.
        """
        inferred = self.infer(batch) if inferred is None else inferred
        block = min(block, samples)
        blocks = -(-samples // block)
        spare = blocks * block - samples

        def step(number, top, total, squares, mean, likelihood):
            terms = self.draw(inferred, batch, block, random.fold_in(seed, number))
            weights, nats = terms.log_weights, terms.log_likelihood
            share = tf.ones_like(weights)
            if spare:  # the last block has latents over
                counted = tf.range(block) < tf.where(number == blocks - 1, block - spare, block)
                weights, share = tf.where(counted, weights, LEAST), share * tf.cast(counted, tf.float32)
            higher = tf.maximum(top, tf.reduce_max(weights, axis=1))
            part = tf.exp(weights - higher[:, None])
            keep = tf.exp(top - higher)
            total = total * keep + tf.reduce_sum(part, axis=1)
            squares = squares * tf.square(keep) + tf.reduce_sum(tf.square(part), axis=1)
            mean += tf.reduce_sum(share * weights, axis=1)
            return number + 1, higher, total, squares, mean, likelihood + tf.reduce_sum(share * nats, axis=1)

        zeros = tf.zeros_like(seed[:, 0], tf.float32)
        state = (0, zeros + LEAST, zeros, zeros, zeros, zeros)
        _, top, total, squares, mean, likelihood = tf.while_loop(
            lambda number, *_: number < blocks, step, state, parallel_iterations=1
        )
        log_prob = top + tf.math.log(total) - math.log(samples)
        variance = tf.maximum(squares / tf.square(total) - 1.0 / samples, 0.0)
        return tf.stack([log_prob, tf.sqrt(variance), mean / samples, -likelihood / samples], axis=1)

    # What codes are worth

    def summarize(self, batches: Iterable[Any]) -> dict[str, float]:
        """ "active_units": latents whose mean varies over the data by more than `ACTIVE`."""
        count, total, squares = 0, 0.0, 0.0
        for batch in batches:
            codes = self._codes_of(batch).numpy().astype(np.float64)
            count, total, squares = (
                count + len(codes),
                total + codes.sum(axis=0),
                squares + np.square(codes).sum(axis=0),
            )
        if not count:
            return {}
        variance = squares / count - np.square(total / count)
        return {"active_units": float(np.sum(variance > ACTIVE))}

    @property
    def _codes_of(self) -> Callable[[Any], tf.Tensor]:
        if getattr(self, "_codes_function", None) is None:
            self._codes_function = tf.function(
                lambda batch: self.codes(self.infer(self.prepare(batch))), reduce_retracing=True, autograph=False
            )
        return self._codes_function

    def remark(self, values: Mapping[str, float]) -> str | None:
        active = values.get("val_active_units")
        if active is None:
            return None
        if active == 0:
            return (
                "the posterior has collapsed: no latent varies with the data (val_active_units=0). Try "
                "model.anneal_steps, model.free_bits, a smaller model.beta or a weaker decoder"
            )
        width = self.latent_width
        if active < width / 2:
            return f"{active:.0f} of {width} latents are in use (val_active_units); fewer would do"
        return None

    @property
    def latent_width(self) -> int:
        """D, numbers of a code."""
        raise NotImplementedError


def draw_latents(
    posterior: Posterior,
    prior: Prior,
    parameters: tuple,
    density: tuple,
    samples: int,
    seed: tf.Tensor,
    gate: Gate | None,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor | None]:
    """Latents of a posterior beside its prior.

    Args:
        parameters, density: what `posterior` and `prior` made of a batch.
        samples: k latents an example.
        seed: (B, 2) int32 row seeds.
        gate: what the latents pass; their log-density is then that of constant parameters.
    Returns:
        z (B, k, D), log q(z | x) and log p(z) (B, k), and the parts (B, D) of the KL where it has a closed form.
    """
    z, log_posterior = posterior.draw(parameters, random.normal(seed, (samples, posterior.dim)))
    kl = None
    if gate is not None:
        z = gate(z)
        log_posterior = posterior.log_prob(tuple(tf.stop_gradient(part) for part in parameters), z)
    elif prior.standard:
        kl = posterior.kl(parameters)
    return z, log_posterior, prior.log_prob(density, z), kl
