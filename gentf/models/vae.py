"""Variational autoencoders of images: a likelihood, a posterior, a prior and an objective, in any combination.

References: Kingma & Welling (2014); Rezende, Mohamed & Wierstra (2014); for each part see where it is defined.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gentf.kernels import random
from gentf.models.base import Batch
from gentf.models.latent_images import ROWS_AT_ONCE, LatentImageModel
from gentf.models.objectives import OBJECTIVES, Gate, Objective, Terms, make_objective
from gentf.models.variational import DROPOUT, draw_latents
from gentf.nn.likelihoods import LIKELIHOODS, Likelihood
from gentf.nn.posteriors import POSTERIORS, DiagonalGaussian, Posterior
from gentf.nn.priors import PRIORS, FlowPrior, MixturePrior, Prior, VampPrior, fit_mixture
from gentf.nn.vae import ConvDecoder, ConvEncoder, DenseDecoder, DenseEncoder


@keras.saving.register_keras_serializable("gentf")
class VAE(LatentImageModel):
    """p(x) = E p(x | z) over latents z of the prior, learned with an approximate posterior q(z | x).

    Args:
        image_shape, num_classes, seed: as of `ImageModel`. A class enters encoder and decoder as a one-hot vector.
        condition_dim: numbers of a vector that the model is conditioned on instead of a class; 0 for none.
        latent_dim: D.
        network: "mlp" or "conv"; or give `encoder` and `decoder`.
        hidden_units, activation: of "mlp", see `DenseStack`; the decoder mirrors the encoder.
        width, units: of "conv", see `ConvEncoder`.
        likelihood: "bernoulli", "categorical", "gaussian" or "mixture"; or a `Likelihood`.
        scale: of "gaussian"; None learns it.
        components: of "mixture".
        posterior: "diagonal", "full" or "iaf"; or a `Posterior`.
        flow_steps, flow_hidden: of an "iaf" posterior and of a "flow" prior.
        prior: "normal", "mixture", "vamp" or "flow"; or a `Prior`.
        prior_components: of "mixture" and "vamp".
        objective: "elbo", "iwae", "beta_tc" or "info"; or an object of `gentf.models.objectives`.
        samples, beta, anneal_steps, capacity, capacity_steps, free_bits, doubly, info_alpha, info_weight: of the
            objective; see `ELBO`, `IWAE`, `BetaTC` and `InfoVAE`.
        input_dropout: share of pixels that are hidden from the encoder in training, which keeps it from learning the
            training images by heart: Shu et al. (2018), "Amortized inference regularization".
        shown: what a sample shows of p(x | z): its "mean", or a "sample" of it.
        encoder: a Keras model (B, H, W, C) -> (B, F), or of a list of that and the condition (B, V).
        decoder: a Keras model (B, D) -> (B, H, W, P), or of a list of that and the condition; P as the
            likelihood has it.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        num_classes: int = 0,
        condition_dim: int = 0,
        latent_dim: int = 40,
        network: str = "mlp",
        hidden_units: Sequence[int] = (400,),
        activation: str = "relu",
        width: int = 32,
        units: int = 256,
        likelihood: str | Likelihood = "bernoulli",
        scale: float | None = None,
        components: int = 10,
        posterior: str | Posterior = "diagonal",
        flow_steps: int = 2,
        flow_hidden: int = 320,
        prior: str | Prior = "normal",
        prior_components: int = 500,
        objective: str | Objective = "elbo",
        samples: int | None = None,
        beta: float | None = None,
        anneal_steps: int = 0,
        capacity: float = 0.0,
        capacity_steps: int = 0,
        free_bits: float = 0.0,
        doubly: bool = True,
        info_alpha: float = 0.0,
        info_weight: float = 1000.0,
        input_dropout: float = 0.0,
        shown: str = "mean",
        encoder: keras.Model | None = None,
        decoder: keras.Model | None = None,
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(image_shape, num_classes, seed, **kwargs)
        _positive(latent_dim=latent_dim, width=width, units=units, flow_steps=flow_steps, flow_hidden=flow_hidden)
        for name, value, known in (
            ("network", network, ("mlp", "conv")),
            ("likelihood", likelihood, tuple(LIKELIHOODS)),
            ("posterior", posterior, tuple(POSTERIORS)),
            ("prior", prior, tuple(PRIORS)),
            ("objective", objective, OBJECTIVES),
            ("shown", shown, ("mean", "sample")),
        ):
            if isinstance(value, str) and value not in known:
                raise ValueError(f"`{name}` must be one of {', '.join(known)}. Received: {name}={value!r}")
        if num_classes and condition_dim:
            raise ValueError("`condition_dim` must be 0 for a model that is conditioned on classes")
        self.condition_dim = condition_dim
        if not 0.0 <= input_dropout < 1.0:
            raise ValueError(f"`input_dropout` must be in [0, 1). Received: input_dropout={input_dropout}")
        self.latent_dim, self.shown, self.input_dropout = latent_dim, shown, input_dropout
        options: dict[str, Any] = dict(
            network=network, hidden_units=tuple(hidden_units), activation=activation, width=width, units=units,
            scale=scale, components=components, flow_steps=flow_steps, flow_hidden=flow_hidden,
            prior_components=prior_components, samples=samples, beta=beta, anneal_steps=anneal_steps,
            capacity=capacity, capacity_steps=capacity_steps, free_bits=free_bits, doubly=doubly,
            info_alpha=info_alpha, info_weight=info_weight,
        )  # fmt: skip
        self._options = options
        self._given: dict[str, Any] = {
            "likelihood": likelihood,
            "posterior": posterior,
            "prior": prior,
            "objective": objective,
        }
        self.likelihood = self._make_likelihood(likelihood)
        self.objective = make_objective(objective, options)
        self._own_networks = encoder is None, decoder is None
        self._make_parts(encoder, decoder)
        self._check_objective()
        if isinstance(self.prior, VampPrior) and (
            self._condition_size or not isinstance(self.posterior, DiagonalGaussian)
        ):
            raise ValueError("`prior` may be vamp with a diagonal posterior and without a condition only")
        self._estimators: dict[tuple[int, bool], Any] = {}
        self.build()

    # Parts

    @property
    def latent_width(self) -> int:
        return self.latent_dim

    def _make_likelihood(self, given: str | Likelihood) -> Likelihood:
        if isinstance(given, Likelihood):
            return given
        options = {
            "gaussian": {"scale": self._options["scale"]},
            "mixture": {"components": self._options["components"]},
        }
        return LIKELIHOODS[given](self.image_shape[2], **options.get(given, {}))

    def _make_parts(self, encoder: keras.Model | None, decoder: keras.Model | None) -> None:
        self.encoder_network = encoder if encoder is not None else self._make_encoder()
        self.decoder_network = decoder if decoder is not None else self._make_decoder()
        self.posterior = self._make_posterior(self._given["posterior"])
        self.prior = self._make_prior(self._given["prior"])

    def _make_encoder(self) -> keras.layers.Layer:
        options = self._options
        common = {"condition": self._condition_size, "seed": self.seed + 1000, "dtype": self.dtype_policy}
        if options["network"] == "mlp":
            return DenseEncoder(
                self.image_shape, options["hidden_units"], options["activation"], name="encoder", **common
            )
        return ConvEncoder(self.image_shape, options["width"], options["units"], name="encoder", **common)

    def _make_decoder(self) -> keras.layers.Layer:
        options = self._options
        outputs = (*self.image_shape[:2], self.likelihood.outputs)
        common = {"condition": self._condition_size, "seed": self.seed + 2000, "dtype": self.dtype_policy}
        if options["network"] == "mlp":
            units = options["hidden_units"][::-1]
            return DenseDecoder(self.latent_dim, outputs, units, options["activation"], name="decoder", **common)
        return ConvDecoder(self.latent_dim, outputs, options["width"], options["units"], name="decoder", **common)

    def _make_posterior(self, given: str | Posterior) -> Posterior:
        if isinstance(given, Posterior):
            return given
        flow = {"steps": self._options["flow_steps"], "hidden": self._options["flow_hidden"]} if given == "iaf" else {}
        return POSTERIORS[given](
            self.latent_dim, seed=self.seed + 3000, dtype=self.dtype_policy, name="posterior", **flow
        )

    def _make_prior(self, given: str | Prior) -> Prior:
        if isinstance(given, Prior):
            return given
        options = self._options
        own: dict[str, Any] = {
            "mixture": {"components": options["prior_components"]},
            "vamp": {"components": options["prior_components"], "data_shape": self.image_shape},
            "flow": {"steps": options["flow_steps"], "hidden": options["flow_hidden"]},
        }.get(given, {})
        return PRIORS[given](self.latent_dim, seed=self.seed + 4000, dtype=self.dtype_policy, name="prior", **own)

    def build(self, input_shape=None) -> None:
        image = tf.zeros((1, *self.image_shape))
        condition = tf.zeros((1, self._condition_size)) if self._condition_size else None
        features = _run(self.encoder_network, image, condition)
        z = self.posterior.mean(self.posterior(features))
        if z.shape != (1, self.latent_dim):
            raise ValueError(f"`posterior` must be over {self.latent_dim} latents. Received: {z.shape[1:]}")
        if self.prior.dim != self.latent_dim:
            raise ValueError(f"`prior` must be over {self.latent_dim} latents. Received: {self.prior.dim}")
        self.prior.build()
        self.decode_outputs(z, condition)
        self.built = True

    # The model

    def infer(self, batch: Batch, training: bool = False, density: tuple | None = None) -> tuple:
        """Parameters of the posterior, those of the prior, and the condition."""
        condition = self._condition(batch.get("label"), batch.get("condition"))
        image = self.hide(batch["image"]) if training else batch["image"]
        posterior = self.posterior(_run(self.encoder_network, image, condition))
        return posterior, self.density() if density is None else density, condition

    def hide(self, image: tf.Tensor) -> tf.Tensor:
        """What the encoder sees of an image in training: a share `input_dropout` of its pixels turned black."""
        if not self.input_dropout:
            return image
        u = random.uniform(self.row_seeds(tf.shape(image)[0], DROPOUT), (*self.image_shape[:2], 1))
        light = (image + 1.0) / (1.0 - self.input_dropout)  # as much of it in the mean as there was
        return tf.where(u < self.input_dropout, 0.0, light) - 1.0

    def density(self) -> tuple:
        """Parameters of the prior."""
        return self.prior.density(lambda image: self.posterior(_run(self.encoder_network, image, None)))

    def draw(
        self,
        inferred: Any,
        batch: Batch,
        samples: int,
        seed: tf.Tensor,
        gate: Gate | None = None,
        training: bool = False,
    ) -> Terms:
        posterior, density, condition = inferred
        z, log_posterior, log_prior, kl = draw_latents(
            self.posterior, self.prior, posterior, density, samples, seed, gate
        )
        repeated = None if condition is None else tf.repeat(condition, samples, axis=0)
        outputs = self.decode_outputs(tf.reshape(z, (-1, self.latent_dim)), repeated)
        outputs = tf.reshape(outputs, (-1, samples, *outputs.shape[1:]))
        nats = self.likelihood.image_log_prob(outputs, batch["image"])
        return Terms(nats, log_prior, log_posterior, z, kl)

    def decode_outputs(self, z: tf.Tensor, condition: tf.Tensor | None) -> tf.Tensor:
        """(B, D) -> (B, H, W, P), parameters of the likelihood."""
        outputs = _run(self.decoder_network, z, condition)
        wanted = (*self.image_shape[:2], self.likelihood.outputs)
        if outputs.shape[1:] != wanted:
            found = tuple(outputs.shape[1:])
            raise ValueError(f"`decoder` must give (B, {', '.join(map(str, wanted))}). Received: (B, *{found})")
        return outputs

    def codes(self, inferred: Any) -> tf.Tensor:
        return self.posterior.mean(inferred[0])

    def prior_draws(self, inferred: Any, seed: tf.Tensor) -> tf.Tensor:
        return self.prior.draw(inferred[1], seed)

    def log_pairs(self, inferred: Any, z: tf.Tensor) -> tf.Tensor:
        return self.posterior.log_parts(inferred[0], z)

    def sample_latents(self, density: tuple, seed: tf.Tensor) -> tf.Tensor:
        """(B, 2) row seeds -> (B, D), what the decoder takes."""
        return self.prior.draw(density, seed)

    def with_fitted_prior(
        self, images: np.ndarray, kind: str = "mixture", components: int = 10, steps: int = 2000, seed: int = 0
    ) -> "VAE":
        """A model with the same encoder and decoder, and a prior fitted to the codes of `images`.

        Its samples come from where codes are; its likelihoods and exports are those of the new prior.

        Args:
            images: (n, H, W, C), of training.
            kind: "mixture" of normals, by expectation maximization, or a "flow", by maximum likelihood.
            components: of the mixture.
            steps: of the flow's training, 256 latents each.
            seed: of the latents (one draw of the posterior an image) and the fit.
        Reference: Ghosh et al. (2020), "From variational to deterministic autoencoders", section 4.
        """
        if kind not in ("mixture", "flow"):
            raise ValueError(f"`kind` must be mixture or flow. Received: kind={kind!r}")
        if self._condition_size:
            raise ValueError("`with_fitted_prior` needs a model without a condition")
        parts = []
        for start in range(0, len(images), ROWS_AT_ONCE):
            batch = self.prepare(images[start : start + ROWS_AT_ONCE])
            noise = random.normal(random.spread(seed, len(batch["image"]), start), (1, self.latent_dim))
            parts.append(self.posterior.draw(self.infer(batch, density=())[0], noise)[0][:, 0].numpy())
        latents = np.concatenate(parts)
        common = {"seed": seed, "dtype": self.dtype_policy, "name": "prior"}
        if kind == "mixture":
            prior: Prior = MixturePrior(self.latent_dim, components, **common)
            for name, value in fit_mixture(latents, components, seed).items():
                getattr(prior, name).assign(value)
        else:
            options = {"steps": self._options["flow_steps"] + 4, "hidden": self._options["flow_hidden"]}
            prior = FlowPrior(self.latent_dim, **options, **common)
            prior.fit(latents, steps, seed)
        fitted = type(self).from_config(self.get_config() | {"prior": prior})
        for part in ("encoder_network", "decoder_network", "posterior"):
            for weight, own in zip(getattr(fitted, part).weights, getattr(self, part).weights, strict=True):
                weight.assign(own)
        return fitted

    def get_config(self) -> dict[str, Any]:
        given = {
            name: value if isinstance(value, str) else keras.saving.serialize_keras_object(value)
            for name, value in self._given.items()
        }
        networks = {
            name: keras.saving.serialize_keras_object(network)
            for name, network, own in zip(
                ("encoder", "decoder"), (self.encoder_network, self.decoder_network), self._own_networks
            )
            if not own
        }
        own = {
            "image_shape": self.image_shape,
            "num_classes": self.num_classes,
            "condition_dim": self.condition_dim,
            "latent_dim": self.latent_dim,
            "input_dropout": self.input_dropout,
            "shown": self.shown,
            "seed": self.seed,
        }
        return super().get_config() | own | self._options | given | networks

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects=None):
        return cls(**{
            name: keras.saving.deserialize_keras_object(value, custom_objects)
            if isinstance(value, Mapping) and "class_name" in value and name != "dtype" else value
            for name, value in config.items()
        })  # fmt: skip


def _run(network: keras.layers.Layer, x: tf.Tensor, condition: tf.Tensor | None) -> tf.Tensor:
    """A network of ours takes the condition beside its input, a Keras model of the user in a list."""
    if isinstance(network, keras.Model):
        return network(x if condition is None else [x, condition])
    return network(x, condition)


def _positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1. Received: {name}={value}")
