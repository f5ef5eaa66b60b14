"""What a latent variable model minimises: small objects over the terms of the evidence lower bound.

A model draws `samples` latents an example and gives their `Terms`; an objective makes them into a scalar.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from gentf import losses


class Terms(NamedTuple):
    """Of B examples with k latents each; float32, in nats.

    Attributes:
        log_likelihood: (B, k) log p(x | z).
        log_prior: (B, k) log p(z).
        log_posterior: (B, k) log q(z | x).
        z: (B, k, D) latents; of several layers side by side.
        kl: (B, D) parts of KL(q(z | x) | p(z)) in closed form, or None.
    """

    log_likelihood: tf.Tensor
    log_prior: tf.Tensor
    log_posterior: tf.Tensor
    z: tf.Tensor
    kl: tf.Tensor | None

    @property
    def log_weights(self) -> tf.Tensor:
        """(B, k) log p(x, z) / q(z | x)."""
        return self.log_likelihood + self.log_prior - self.log_posterior

    @property
    def rate(self) -> tf.Tensor:
        """(B,) KL from the prior, in closed form where there is one."""
        if self.kl is not None:
            return tf.reduce_sum(self.kl, axis=1)
        return tf.reduce_mean(self.log_posterior - self.log_prior, axis=1)

    @property
    def distortion(self) -> tf.Tensor:
        """(B,) minus the expected log-likelihood."""
        return -tf.reduce_mean(self.log_likelihood, axis=1)


class Look(NamedTuple):
    """What an objective may ask of the model beside the terms.

    Attributes:
        progress: scalar, steps taken; None where a model is measured, and every course is at its end.
        pairs: () -> (B, B, D) log q(z_j of example i | example k) of the first latents.
        prior: () -> (B, D) draws from the prior.
    """

    progress: tf.Tensor | None
    pairs: Callable[[], tf.Tensor]
    prior: Callable[[], tf.Tensor]


class Gate:
    """The identity, whose gradient is multiplied by weights that are known only when all of the forward pass is.

    Assign `weights`, (B, k), before the gradient is taken.
    """

    def __init__(self) -> None:
        self.weights: tf.Tensor | None = None

    def __call__(self, z: tf.Tensor) -> tf.Tensor:
        """z: (B, k, D)."""

        @tf.custom_gradient
        def through(z: tf.Tensor) -> tuple:
            return tf.identity(z), self._weighted

        return through(z)

    def _weighted(self, dz: tf.Tensor) -> tf.Tensor:
        assert self.weights is not None
        return dz * self.weights[..., None]


class _Saved:
    """What lets an objective be part of a model's file."""

    def get_config(self) -> dict[str, Any]:
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_config(cls, config: dict[str, Any]):
        return cls(**config)


@keras.saving.register_keras_serializable("gentf")
@dataclass(frozen=True)
class ELBO(_Saved):
    """Distortion and rate: -E log p(x | z) + beta KL(q(z | x) | p(z)).

    Attributes:
        samples: latents an example, k.
        beta: price of the rate; Higgins et al. (2017), equation 4.
        anneal_steps: steps over which the price rises from 0 to beta; Bowman et al. (2016), section 3.1. 0: never.
        capacity: nats. Above 0 the price is on the distance of the rate from it: beta |KL - capacity|; Burgess et al.
            (2018), equation 8.
        capacity_steps: steps over which the capacity rises from 0.
        free_bits: nats of each latent that cost nothing; see `losses.free_bits`.
    """

    samples: int = 1
    beta: float = 1.0
    anneal_steps: int = 0
    capacity: float = 0.0
    capacity_steps: int = 0
    free_bits: float = 0.0

    doubly = False

    def __post_init__(self) -> None:
        _check("samples", self.samples, 1)
        for name in ("beta", "anneal_steps", "capacity", "capacity_steps", "free_bits"):
            _check(name, getattr(self, name), 0)
        if self.capacity and self.free_bits:
            raise ValueError("`free_bits` must be 0 with a capacity: both say what the rate may be for nothing")

    def loss(self, terms: Terms, look: Look) -> tf.Tensor:
        """Scalar float32."""
        return tf.reduce_mean(terms.distortion) + self.price(look) * self.rate(terms, look)

    def price(self, look: Look) -> float | tf.Tensor:
        return self.beta * _course(look, self.anneal_steps)

    def rate(self, terms: Terms, look: Look) -> tf.Tensor:
        if self.capacity:
            return tf.abs(tf.reduce_mean(terms.rate) - self.capacity * _course(look, self.capacity_steps))
        if self.free_bits:
            if terms.kl is None:
                raise ValueError("`free_bits` must be 0 where the rate has no closed form for each latent")
            return losses.free_bits(terms.kl, self.free_bits)
        return tf.reduce_mean(terms.rate)


@keras.saving.register_keras_serializable("gentf")
@dataclass(frozen=True)
class IWAE(_Saved):
    """Minus the importance-weighted bound of `samples` latents: Burda, Grosse & Salakhutdinov (2016), equation 8.

    Attributes:
        samples: k; with 1 it is the evidence lower bound.
        doubly: doubly reparameterized gradients of the posterior, whose signal does not fade as k grows: Tucker et al.
            (2019), equation 8. The posterior must have a density.
    """

    samples: int = 50
    doubly: bool = True

    def __post_init__(self) -> None:
        _check("samples", self.samples, 1)

    def loss(self, terms: Terms, look: Look) -> tf.Tensor:
        return -tf.reduce_mean(losses.importance_bound(terms.log_weights))


@keras.saving.register_keras_serializable("gentf")
@dataclass(frozen=True)
class BetaTC(ELBO):
    """The evidence lower bound with the price beta on total correlation alone: Chen et al. (2018), equation 5.

    Attributes: those of `ELBO`; the batch stands for the data.
    """

    beta: float = 6.0

    def loss(self, terms: Terms, look: Look) -> tf.Tensor:
        correlation = tf.reduce_mean(losses.total_correlation(look.pairs()))
        anneal = _course(look, self.anneal_steps)
        rate = self.rate(terms, look) + (self.beta - 1.0) * correlation
        return tf.reduce_mean(terms.distortion) + anneal * rate


@keras.saving.register_keras_serializable("gentf")
@dataclass(frozen=True)
class InfoVAE(ELBO):
    """Distortion, (1 - alpha) of the rate, and (alpha + weight - 1) of the distance of all codes from the prior.

    Attributes:
        alpha: 0 keeps the rate, 1 leaves it out: then codes may say all they can.
        weight: lambda; of maximum mean discrepancy, which is small: hundreds and more.
    Reference: Zhao, Song & Ermon (2019), equation 6.
    """

    alpha: float = 0.0
    weight: float = 1000.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha + self.weight < 1.0 or self.alpha > 1.0:
            raise ValueError(
                f"`alpha` must be at most 1, and with `weight` at least 1. "
                f"Received: alpha={self.alpha}, weight={self.weight}"
            )

    def loss(self, terms: Terms, look: Look) -> tf.Tensor:
        distance = losses.maximum_mean_discrepancy(terms.z[:, 0], look.prior())
        rate = (1.0 - self.alpha) * self.rate(terms, look)
        regular = rate + (self.alpha + self.weight - 1.0) * distance
        return tf.reduce_mean(terms.distortion) + self.price(look) * regular


Objective = ELBO | IWAE


def _course(look: Look, steps: int) -> float | tf.Tensor:
    """How far a course of `steps` steps is: from 0 to 1."""
    if look.progress is None or not steps:
        return 1.0
    return tf.minimum(1.0, tf.cast(look.progress, tf.float32) / steps)


def _check(name: str, value: float, least: int) -> None:
    if not value >= least:
        raise ValueError(f"`{name}` must be at least {least}. Received: {name}={value}")


OBJECTIVES = ("elbo", "iwae", "beta_tc", "info")


def make_objective(given: str | Objective, options: Mapping[str, Any]) -> Objective:
    """The objective of a name in `OBJECTIVES`, with `options` that are the arguments of models; or itself."""
    if not isinstance(given, str):
        return given
    if given == "iwae":
        return IWAE(50 if options["samples"] is None else options["samples"], options["doubly"])
    common = {name: options[name] for name in ("anneal_steps", "capacity", "capacity_steps", "free_bits")}
    common |= {name: options[name] for name in ("samples", "beta") if options[name] is not None}
    if given == "info":
        return InfoVAE(alpha=options["info_alpha"], weight=options["info_weight"], **common)
    return (BetaTC if given == "beta_tc" else ELBO)(**common)
