"""Variational autoencoders of sequences: a text, or a piece of music, as one vector.

References: Bowman et al. (2016), "Generating sentences from a continuous space"; Roberts et al. (2018), "A hierarchical
latent vector model for learning long-term structure in music", with its flat decoder.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gentf.kernels import random
from gentf.kernels.quantize import lookup
from gentf.kernels.tracing import size
from gentf.models import serving
from gentf.models.base import Batch
from gentf.models.objectives import OBJECTIVES, Gate, Terms, make_objective
from gentf.models.rnn import INPUT_DROPOUT, RNN
from gentf.models.sequence import KEYS
from gentf.models.variational import DROPOUT, Bound, Variational, draw_latents
from gentf.nn.posteriors import POSTERIORS
from gentf.nn.priors import PRIORS

PRIOR = 2**31 - 1  # folded into a sample's row seed, for its latents
WINDOW = 64
AT_ONCE = 1024  # sequences whose symbols are told together where likelihoods are estimated
STEP = 16  # lengths are filled up to multiples of it, so that few graphs serve them all
FIRST_STATE = 0.1  # of the weights from a code to the first state


@keras.saving.register_keras_serializable("gentf")
class SequenceVAE(Variational, RNN):
    """p(x) = E p(x | z) over latents z: a recurrent encoder that reads in both directions, and a recurrent decoder.

    z sets the decoder's first state and stands beside each symbol that it reads. A decoder that sees all symbols before
    the next can do without z: `input_dropout`, `anneal_steps` and `free_bits` keep it from that.

    The condition of `sample`, `generate` and `stream` is a code, (D,) or (n, D): without one it is drawn from the prior
    by each row's seed. A prompt is what a row begins with; `encode` of it gives a code that knows it.

    Args:
        vocabulary, tokenizer, start, boundary, seed: as of `SequenceModel`.
        context: symbols of the windows that a longer stream is cut into, where its likelihood is asked for.
        cell, layers, units, embedding, dropout: of the decoder, see `RNN`.
        input_dropout: share of what the decoder reads that is hidden in training: keys of frames; whole tokens.
        encoder_units: of the encoder, in each direction; None: `units`.
        latent_dim: D.
        posterior: "diagonal", "full" or "iaf".
        prior: "normal", "mixture" or "flow".
        prior_components: of "mixture".
        flow_steps, flow_hidden: of an "iaf" posterior and of a "flow" prior.
        objective: "elbo", "iwae", "beta_tc" or "info".
        samples, beta, anneal_steps, capacity, capacity_steps, free_bits, doubly, info_alpha, info_weight: of the
            objective; see `gentf.models.objectives`.
    """

    folded = False
    exact_likelihood = False
    separable = False

    def __init__(
        self,
        vocabulary: int = 0,
        context: int = WINDOW,
        cell: str = "lstm",
        layers: int = 1,
        units: int = 256,
        embedding: int | None = None,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        encoder_units: int | None = None,
        latent_dim: int = 32,
        posterior: str = "diagonal",
        prior: str = "normal",
        prior_components: int = 100,
        flow_steps: int = 4,
        flow_hidden: int = 128,
        objective: str = "elbo",
        samples: int | None = None,
        beta: float | None = None,
        anneal_steps: int = 0,
        capacity: float = 0.0,
        capacity_steps: int = 0,
        free_bits: float = 0.0,
        doubly: bool = True,
        info_alpha: float = 0.0,
        info_weight: float = 1000.0,
        num_classes: int = 0,
        **kwargs,
    ):
        priors = tuple(name for name in PRIORS if name != "vamp")  # pseudo-inputs would be sequences
        for name, value, known in (
            ("posterior", posterior, tuple(POSTERIORS)),
            ("prior", prior, priors),
            ("objective", objective, OBJECTIVES),
        ):
            if value not in known:
                raise ValueError(f"`{name}` must be one of {', '.join(known)}. Received: {name}={value!r}")
        if num_classes:
            raise ValueError(f"`num_classes` must be 0: the condition is a code. Received: num_classes={num_classes}")
        sizes = {"latent_dim": latent_dim, "encoder_units": encoder_units or units, "context": context}
        for name, number in sizes.items():
            if number < 1:
                raise ValueError(f"`{name}` must be at least 1. Received: {name}={number}")
        self._options: dict[str, Any] = {
            "posterior": posterior, "prior": prior, "prior_components": prior_components, "flow_steps": flow_steps,
            "flow_hidden": flow_hidden, "objective": objective, "samples": samples, "beta": beta,
            "anneal_steps": anneal_steps, "capacity": capacity, "capacity_steps": capacity_steps,
            "free_bits": free_bits, "doubly": doubly, "info_alpha": info_alpha, "info_weight": info_weight,
        }  # fmt: skip
        self.beside = self.condition_dim = latent_dim
        self.encoder_units = encoder_units or units
        super().__init__(
            vocabulary, cell=cell, layers=layers, units=units, embedding=embedding, dropout=dropout,
            input_dropout=input_dropout, context=context, **kwargs,
        )  # fmt: skip
        self.objective = make_objective(objective, self._options)
        self._check_objective()
        self._functions: dict[Any, Any] = {}

    def build(self, input_shape=None) -> None:
        """Adds encoder, posterior and prior to the decoder's weights."""
        options, dim = self._options, self.latent_width
        width = self.embedding_size if self.vocabulary else KEYS
        self.readers = [self._layer(name, width, self.encoder_units) for name in ("forward", "backward")]
        states = self.num_layers * self.units * (2 if self.cell == "lstm" else 1)
        self.first_kernel = self._weight("first_kernel", (dim, states), "uniform", scale=FIRST_STATE)
        self.first_bias = self._weight("first_bias", (states,), "zeros")
        flow = {"steps": options["flow_steps"], "hidden": options["flow_hidden"]}
        kind, own = options["posterior"], flow if options["posterior"] == "iaf" else {}
        self.posterior = POSTERIORS[kind](dim, seed=self.seed + 3000, dtype=self.dtype_policy, name="posterior", **own)
        kind = options["prior"]
        own = {"mixture": {"components": options["prior_components"]}, "flow": flow}.get(kind, {})
        self.prior = PRIORS[kind](dim, seed=self.seed + 4000, dtype=self.dtype_policy, name="prior", **own)
        self.posterior.build((None, 2 * self.encoder_units))
        self.prior.build()
        self.built = True

    @property
    def latent_width(self) -> int:
        return self.beside

    # The decoder

    def _kept(self, label):
        return (label,)

    def _entered(self, x, kept):
        (z,) = kept
        x, z = self._vectors(x), tf.cast(z, self.compute_dtype)
        if x.shape.rank > z.shape.rank:  # beside every step
            z = tf.broadcast_to(z, (tf.shape(x)[0], size(z, 0), self.beside))
        return tf.concat([x, z], axis=-1)

    def _vectors(self, symbols):
        """Tokens as what they are embedded in; frames, and what is embedded already, as they are."""
        if symbols.dtype.is_integer:
            return lookup(tf.cast(self.embedding.value, self.compute_dtype), symbols)
        return tf.cast(symbols, self.compute_dtype)

    def _by_time(self, symbols, seed=None):
        if not self.vocabulary or seed is None or not self.input_dropout:
            return super()._by_time(symbols, seed)
        vectors = self._vectors(tf.transpose(symbols))
        hidden = random.uniform(seed, (symbols.shape[1],), INPUT_DROPOUT) < self.input_dropout
        return tf.where(tf.transpose(hidden)[..., None], tf.zeros_like(vectors), vectors)

    def _first(self, rows, label):
        product = tf.matmul(tf.cast(label, tf.float32), self.first_kernel.value) + self.first_bias.value
        return self._states(tf.tanh(product))

    # The variational model

    def weigh(self, batch: Batch) -> tf.Tensor:
        return tf.cast(tf.shape(batch["inputs"])[0], tf.float32)

    def infer(self, batch: Batch, training: bool = False) -> tuple:
        """Parameters of the posterior, and those of the prior."""
        x = self._vectors(self._by_time(batch["targets"]))
        mask = tf.transpose(batch["weights"]) > 0.0
        first = self._zeros(tf.shape(batch["targets"])[0], self.encoder_units)
        ends = [
            self._along(x, self._cast(layer), first, mask, reverse)[1][0]
            for layer, reverse in zip(self.readers, (False, True))
        ]
        return self.posterior(tf.concat(ends, axis=-1)), self.prior.density()

    def draw(
        self,
        inferred: Any,
        batch: Batch,
        samples: int,
        seed: tf.Tensor,
        gate: Gate | None = None,
        training: bool = False,
    ) -> Terms:
        parameters, density = inferred
        z, log_posterior, log_prior, kl = draw_latents(
            self.posterior, self.prior, parameters, density, samples, seed, gate
        )
        inputs, targets = (tf.repeat(batch[name], samples, axis=0) for name in ("inputs", "targets"))
        hide = None
        if training:
            hide = tf.repeat(self.row_seeds(tf.shape(batch["inputs"])[0], DROPOUT), samples, axis=0)
        hidden = self.hidden(inputs, tf.reshape(z, (-1, self.latent_width)), hide)
        nats = tf.reshape(self._nats_of(hidden, targets), (-1, samples, tf.shape(targets)[1]))
        likelihood = -tf.reduce_sum(nats * batch["weights"][:, None], axis=-1)
        return Terms(likelihood, log_prior, log_posterior, z, kl)

    def codes(self, inferred: Any) -> tf.Tensor:
        return self.posterior.mean(inferred[0])

    def prior_draws(self, inferred: Any, seed: tf.Tensor) -> tf.Tensor:
        return self.prior.draw(inferred[1], seed)

    def log_pairs(self, inferred: Any, z: tf.Tensor) -> tf.Tensor:
        return self.posterior.log_parts(inferred[0], z)

    # Likelihoods

    def bound(self, sequences: Sequence[Any], samples: int = 100, *, seed: int = 0) -> Bound:
        """Importance-sampled log p(x) of whole sequences, a lower bound in expectation, each with its standard error.

        Args:
            sequences: n texts, rolls or arrays of tokens, as of `log_prob`.
            samples: k, latents a sequence. The bound rises to log p(x) with k.
            seed: of the latents; sequence i has the row seed [seed, i].
        """
        if samples < 1:
            raise ValueError(f"`samples` must be at least 1. Received: samples={samples}")
        return self._bounds(self._whole(sequences), samples, seed)

    def _bounds(self, batch: dict[str, np.ndarray], samples: int, seed: int) -> Bound:
        rows = max(1, min(64, AT_ONCE // samples))

        def estimate(batch, seed):
            return self.estimate(batch, seed, samples, AT_ONCE // rows)

        function = self._function(("bound", samples), estimate)
        seeds = random.spread(seed, len(batch["inputs"])).numpy()
        parts = [function(part, own).numpy()[:count] for part, own, count in _blocks(batch, seeds, rows)]
        return Bound(*np.concatenate(parts).T)

    def log_prob(self, sequences: Sequence[Any], condition: Any = None, samples: int = 100) -> np.ndarray:
        """`bound(sequences, samples).log_prob`: (n,) float32 nats. With a `condition`, codes (D,) or (n, D), it is
        log p(x | z) itself."""
        if condition is None:
            return self.bound(sequences, samples).log_prob
        batch = self._whole(sequences)
        codes = np.asarray(self.check_condition(condition, len(batch["inputs"])))

        def nats(batch, z):
            found = self._nats_of(self.hidden(batch["inputs"], z, None), batch["targets"])
            return tf.reduce_sum(found * batch["weights"], axis=1)

        function = self._function("nats", nats)
        parts = [function(part, own).numpy()[:count] for part, own, count in _blocks(batch, codes, 64)]
        return -np.concatenate(parts)

    def nats_of_stream(self, stream: np.ndarray, samples: int = 100) -> np.ndarray:
        """Minus a bound of the log-likelihood of one long sequence, cut into windows of `context` symbols that are told
        apart from each other, each with a code of its own: in a window its share is the same for each symbol.

        Arguments but `samples`, latents a window, shape and errors as of `SequenceModel.nats_of_stream`.
        """
        inputs, targets = self._told(stream)
        window = int(self.context or WINDOW)
        count = -(-len(targets) // window)
        spare = count * window - len(targets)

        def windows(values):
            filled = np.pad(values, [(0, spare)] + [(0, 0)] * (values.ndim - 1))
            return filled.reshape(count, window, *values.shape[1:])

        batch = {"inputs": windows(inputs), "targets": windows(targets)}
        if not self.vocabulary:  # in training a window begins after silence
            batch["inputs"] = np.pad(batch["targets"], [(0, 0), (1, 0), (0, 0)])[:, :-1]
        batch["weights"] = windows(np.ones(len(targets), np.float32))
        bounds = self._bounds(batch, samples, 0).log_prob
        lengths = batch["weights"].sum(axis=1)
        return np.repeat(-bounds / lengths, lengths.astype(int)).astype(np.float32)

    def _whole(self, sequences: Sequence[Any]) -> dict[str, np.ndarray]:
        """Whole sequences as one batch, with weights of 0 after the end of each."""
        codec = self._codec()
        symbols = [codec.encode(sequence) for sequence in sequences]
        if not symbols:
            raise ValueError("`sequences` must be at least one. Received: none")
        if self.vocabulary:
            first = [] if self.boundary else list(codec.start)
            symbols = [np.concatenate([first, row, [0] if self.boundary else []]).astype(np.int32) for row in symbols]
        shift = 1 if self.vocabulary else 0
        lengths = np.array([len(row) - shift for row in symbols])
        if lengths.min() < 1:
            raise ValueError("`sequences` must have at least one symbol each. Received: an empty one")
        steps = -(-int(lengths.max()) // STEP) * STEP
        wide = [np.pad(row, [(0, steps + shift - len(row))] + [(0, 0)] * (row.ndim - 1)) for row in symbols]
        rows = np.stack(wide)
        batch = {"inputs": rows[:, :-1], "targets": rows[:, 1:]}
        if not self.vocabulary:
            rows = rows.astype(np.float32)
            batch = {"inputs": np.pad(rows, [(0, 0), (1, 0), (0, 0)])[:, :-1], "targets": rows}
        return batch | {"weights": (np.arange(steps) < lengths[:, None]).astype(np.float32)}

    def _function(self, name: Any, function: Any) -> Any:
        if name not in self._functions:
            self._functions[name] = tf.function(function, reduce_retracing=True, autograph=False)
        return self._functions[name]

    # Codes and sequences

    def encode(self, sequences: Sequence[Any]) -> np.ndarray:
        """Means of the posterior: n texts, rolls or arrays of tokens, not empty -> (n, D) float32."""
        function = self._function("encode", lambda batch: self.codes(self.infer(batch)))
        batch = self._whole(sequences)
        parts = [function(part).numpy()[:count] for part, _, count in _blocks(batch, batch["weights"], 64)]
        return np.concatenate(parts)

    def decode(self, z: np.ndarray, *, seed: int = 0, max_length: int | None = None, **options: Any) -> list[Any]:
        """A sequence for each code: (n, D) -> n texts, rolls or arrays of tokens.

        Args:
            seed, options: as of `sample`.
            max_length: symbols at most; None: `context`.
        """
        z = np.asarray(z, np.float32)
        if z.ndim != 2 or z.shape[1] != self.latent_width:
            raise ValueError(f"`z` must be (n, {self.latent_width}). Received: z.shape={z.shape}")
        return self.sample(len(z), condition=z, seed=seed, max_length=max_length or self.context or WINDOW, **options)

    def reconstruct(self, sequences: Sequence[Any], **options: Any) -> list[Any]:
        """`decode` of `encode`; options as of `decode`."""
        return self.decode(self.encode(sequences), **options)

    def check_condition(self, condition: Any, num: int) -> np.ndarray | None:
        return None if condition is None else super().check_condition(condition, num)

    def _conditions(self, given, seeds):
        if given is not None:
            return given
        if seeds is None:
            raise ValueError("`condition` must be given where nothing is drawn. Received: condition=None")
        return self._prior_of(tf.constant(seeds)).numpy()

    def _prior_of(self, seeds: tf.Tensor) -> tf.Tensor:
        """(B, 2) row seeds -> (B, D), apart from the numbers that draw the symbols."""
        return self.prior.draw(self.prior.density(), random.fold_in(seeds, PRIOR))

    def _prompt_room(self, max_length: int) -> None:
        return None  # `context` bounds nothing that is generated

    def served_conditions(self, given):
        return given["z"] if "z" in given else self._prior_of(given["seed"])

    def signatures(self, max_length: int = serving.MAX_LENGTH, constraints: Mapping[str, Any] | None = None):
        """What an export answers: see `gentf.models.serving.signatures`, arguments as there; and `encode`, `decode` and
        `log_prob`."""
        return serving.signatures(self, max_length, constraints)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        for name in ("tied", "skip", "num_classes"):
            config.pop(name)
        own = {"context": self.context, "encoder_units": self.encoder_units, "latent_dim": self.latent_width}
        return config | own | self._options


def _blocks(batch: Mapping[str, np.ndarray], beside: np.ndarray, rows: int):
    """(batch, rows of `beside`, how many count) in blocks of `rows`; the last is filled up with rows from the start."""
    count = len(beside)
    for start in range(0, count, rows):
        chosen = np.arange(start, start + rows) % count if count > rows else np.arange(count)
        yield {name: values[chosen] for name, values in batch.items()}, beside[chosen], min(rows, count - start)
