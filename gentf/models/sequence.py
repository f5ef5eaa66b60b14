"""What models of sequences share: the form of a batch, the likelihood, decoding, and text in and out.

A model reads symbols, tokens or frames of 88 keys, and predicts the next. It gives one thing twice: `hidden`, all
positions of known sequences at once, to learn and to score; and `decoder`, one position after the other, to
generate. `gentf.sampling.decode` knows the latter alone.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from gentf.data.sequences import codec_of
from gentf.kernels import random
from gentf.kernels.cross_entropy import linear_cross_entropy, weighted_linear_cross_entropy
from gentf.models import serving
from gentf.models.base import Batch, GenerativeModel, Losses
from gentf.models.prompts import KEYS, Codec, controls_of, cut_before, fit
from gentf.models.search import Searches
from gentf.sampling.constraints import Constraint
from gentf.sampling.decode import Controls, Decoder, Rules
from gentf.sampling.generate import Generator
from gentf.sampling.stops import stop_table

DROPOUT = 0  # stream of randomness inside a step
LABEL_STREAM = 2**31 - 1  # of a sample's row seed: beyond those of its symbols
CONTROLS = ("temperature", "top_k", "top_p", "min_p", "repetition")


class SequenceModel(Searches, GenerativeModel):
    """Base of autoregressive models: p(x) is the product of p(x_t | x_1 .. x_{t-1}).

    Args:
        vocabulary: number of tokens; 0 for frames of 88 keys, each an independent sigmoid given the frames before.
        tokenizer: what stands for what, as `DataSpec.tokenizer`; None leaves text to the caller.
        start: tokens that stand before a text where no prompt is given.
        boundary: whether token 0 ends what is generated.
        context: tokens that a prediction may see; None: all before it.
        num_classes, seed: as of `GenerativeModel`. A class may only be given with frames or tokens that are labelled.
    """

    def __init__(
        self,
        vocabulary: int = 0,
        tokenizer: Mapping[str, Any] | None = None,
        start: Sequence[int] = (),
        boundary: bool = False,
        context: int | None = None,
        num_classes: int = 0,
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(num_classes, seed, **kwargs)
        if vocabulary < 0 or vocabulary == 1:
            raise ValueError(f"`vocabulary` must be at least 2, or 0 for frames. Received: vocabulary={vocabulary}")
        if context is not None and context < 1:
            raise ValueError(f"`context` must be positive. Received: context={context}")
        self.vocabulary = int(vocabulary)
        self.tokenizer = _plain(tokenizer)
        self.start = tuple(int(token) for token in start)
        self.boundary = bool(boundary)
        self.context = context
        codec = codec_of(self.tokenizer)
        if codec is not None and codec.size != self.vocabulary:
            raise ValueError(f"`vocabulary` must be the tokenizer's {codec.size}. Received: vocabulary={vocabulary}")
        self._generators: dict[bool, Generator] = {}
        self._scorer: Any = None
        self._streamer: Any = None

    @property
    def outputs_size(self) -> int:
        return self.vocabulary or KEYS

    # What a family gives

    def hidden(self, symbols: tf.Tensor, label: tf.Tensor | None, seed: tf.Tensor | None) -> tf.Tensor:
        """What each prediction is made from.

        Args:
            symbols: (B, T) int32, or frames (B, T, 88) float: what stands before each prediction.
            label: (B,) int32, or None.
            seed: (B, 2) int32 row seeds of dropout; None for none.
        Returns:
            (B, T, D), or time-major (T, B, D) where `time_major`.
        """
        raise NotImplementedError

    time_major = False
    exact_likelihood = True
    #: Whether a prompt is the source of an encoder, and not the beginning of the sequence.
    prompt_is_source = False

    def output_layer(self) -> tuple[tf.Tensor, tf.Tensor | None, bool]:
        """Kernel, bias or None, and whether the kernel is (outputs, D), of the layer from `hidden` to logits."""
        raise NotImplementedError

    def decoder(self) -> Decoder:
        """The model as `gentf.sampling.decode` takes it. Weights are read once, where this is called."""
        raise NotImplementedError

    # The likelihood

    def prepare(self, data: Any) -> Batch:
        """{"inputs", "targets", "weights" (B, T) float32, "label"?} from what `fit` accepts.

        Args:
            data: {"tokens": (B, T + 1)} or {"frames": (B, T, 88), "length"?: (B,)}, with "label" where the model is
                conditional; or the tokens or frames alone, or a tuple of them and the label.
        """
        name = "tokens" if self.vocabulary else "frames"
        if isinstance(data, (tuple, list)):
            named = dict(zip((name, "label"), data))
        else:
            named = dict(data) if isinstance(data, Mapping) else {name: data}
        if name not in named:
            raise ValueError(f"a batch must hold `{name}`. Received: {', '.join(named)}")
        whole = tf.convert_to_tensor(named[name])
        if whole.shape.rank != (2 if self.vocabulary else 3) or (not self.vocabulary and whole.shape[2] != KEYS):
            expected = "(B, T + 1)" if self.vocabulary else f"(B, T, {KEYS})"
            raise ValueError(f"`{name}` must be {expected}. Received: {name}.shape={tuple(whole.shape)}")
        if self.vocabulary:
            whole = tf.cast(whole, tf.int32)
            batch = {"inputs": whole[:, :-1], "targets": whole[:, 1:]}
            batch["weights"] = tf.ones_like(batch["targets"], tf.float32)
        else:
            frames = tf.cast(whole, tf.float32)
            batch = {"inputs": tf.pad(frames, [[0, 0], [1, 0], [0, 0]])[:, :-1], "targets": frames}
            steps = tf.range(tf.shape(frames)[1])[None, :]
            length = named.get("length")
            seen = steps < (tf.shape(frames)[1] if length is None else tf.cast(length, tf.int32)[:, None])
            batch["weights"] = tf.cast(tf.broadcast_to(seen, tf.shape(frames)[:2]), tf.float32)
        if self.num_classes:
            if named.get("label") is None:
                raise ValueError("`label` must be given to a conditional model. Received: label=None")
            batch["label"] = tf.cast(named["label"], tf.int32)
        return batch

    def weigh(self, batch: Batch) -> tf.Tensor:
        return tf.reduce_sum(batch["weights"])

    def nats(self, batch: Batch) -> tf.Tensor:
        """Minus the log-likelihood of each symbol given those before it: (B, T) float32, exact."""
        hidden = self._hidden_of(batch, None)
        return self._nats_of(hidden, batch["targets"])

    def _hidden_of(self, batch: Batch, seed: tf.Tensor | None) -> tf.Tensor:
        """`hidden` of what `prepare` gave."""
        return self.hidden(batch["inputs"], batch.get("label"), seed)

    def _nats_of(self, hidden: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        kernel, bias, transpose = self.output_layer()
        if self.vocabulary:
            targets = tf.transpose(targets) if self.time_major else targets
            nats = linear_cross_entropy(hidden, kernel, bias, targets, transpose=transpose)
            return tf.transpose(nats) if self.time_major else nats
        hidden = tf.transpose(hidden, (1, 0, 2)) if self.time_major else hidden
        logits = tf.cast(tf.matmul(hidden, kernel), tf.float32) + tf.cast(bias, tf.float32)
        return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(labels=targets, logits=logits), axis=-1)

    def losses_on(self, batch: Batch, training: bool) -> Losses:
        """Nats a token, or a frame: the mean over those that count."""
        weights = batch["weights"] / self._counted(batch["weights"], training)
        if training and self.vocabulary:
            seed = self.row_seeds(tf.shape(batch["inputs"])[0], DROPOUT)
            hidden = self._hidden_of(batch, seed)
            targets, weights = (tf.transpose(x) if self.time_major else x for x in (batch["targets"], weights))
            kernel, bias, transpose = self.output_layer()
            loss = weighted_linear_cross_entropy(hidden, kernel, bias, targets, weights, transpose=transpose)
            return {"loss": loss}
        seed = self.row_seeds(tf.shape(batch["inputs"])[0], DROPOUT) if training else None
        hidden = self._hidden_of(batch, seed)
        loss = tf.reduce_sum(weights * self._nats_of(hidden, batch["targets"]))
        return {"loss": loss} if training else {"loss": loss, "bits": loss / math.log(2.0)}

    @staticmethod
    def _counted(weights: tf.Tensor, training: bool) -> tf.Tensor:
        """How many symbols count. Of several replicas the mean, so that each symbol of the whole batch weighs the same;
        their gradients are averaged."""
        count = tf.reduce_sum(weights)
        replica = tf.distribute.get_replica_context()
        if training and replica is not None and replica.num_replicas_in_sync > 1:
            count = replica.all_reduce(tf.distribute.ReduceOp.MEAN, count)
        return tf.maximum(count, 1.0)

    # Generation

    def generator(self, jit: bool = False) -> Generator:
        """Made once: it keeps the graphs that were traced."""
        if jit not in self._generators:
            width = 0 if self.vocabulary else KEYS
            self._generators[jit] = Generator(self.decoder, width, jit)
        return self._generators[jit]

    def generate(
        self,
        prompts: Sequence[Any],
        *,
        seeds: np.ndarray,
        max_length: int = 256,
        condition: Any = None,
        stop: Sequence[str] = (),
        constraint: Constraint | np.ndarray | None = None,
        jit: bool = False,
        block: int | None = None,
        **controls: Any,
    ) -> Any:
        """Symbols that go on from prompts, with their likelihood.

        Args:
            prompts: n texts, rolls, or arrays of tokens.
            seeds: (n, 2) int32, one a row.
            max_length, condition, stop, constraint, jit, controls: as of `sample`.
            block: give blocks of so many symbols as they are made; None gives all at once.
        Returns:
            `gentf.sampling.generate.Generated`, or an iterator of them.
        """
        room = self._prompt_room(max_length)
        symbols, labels, rules, chosen = self._request(
            prompts, seeds, room, max_length, condition, stop, constraint, controls
        )
        generator = self.generator(jit)
        if block is not None:
            return generator.stream(symbols, seeds, max_length, block, chosen, rules, labels)
        return generator(symbols, seeds, max_length, chosen, rules, labels)

    def _request(self, prompts, seeds, room, max_length, condition, stop, constraint, controls):
        """What is asked, as symbols, classes or None, rules and controls. Without seeds no class is drawn."""
        num = len(prompts)
        if max_length < 1:
            raise ValueError(f"`max_length` must be positive. Received: max_length={max_length}")
        unknown = set(controls) - set(CONTROLS)
        if unknown or (not self.vocabulary and set(controls) - {"temperature"}):
            known = CONTROLS if self.vocabulary else ("temperature",)
            raise ValueError(f"`controls` must be of {', '.join(known)}. Received: {', '.join(sorted(controls))}")
        codec = self._codec()
        symbols = [codec.encode(prompt) for prompt in prompts]
        if not self.vocabulary:  # the first frame is predicted from one of silence, as in `prepare`
            symbols = [np.concatenate([np.zeros((1, KEYS), np.float32), frames]) for frames in symbols]
        symbols = fit(symbols, room)
        labels = self._conditions(self.check_condition(condition, num), seeds)
        chosen = Controls(**controls_of(num, **controls))
        return symbols, labels, self._rules(codec, stop, constraint), chosen

    def _codec(self) -> Codec:
        """Between people's form and the model's symbols."""
        return Codec(self.tokenizer, self.start, self.boundary)

    def _prompt_room(self, max_length: int) -> int | None:
        """Symbols of a prompt that are read."""
        return self.context

    def _conditions(self, given: np.ndarray | None, seeds: np.ndarray | None) -> np.ndarray | None:
        """What rows are generated under, (n, ...): as given, and drawn by their seeds where it is not."""
        if given is None or seeds is None:
            return given
        return self._drawn_labels(tf.constant(seeds), tf.constant(given)).numpy()

    def served_conditions(self, given: Mapping[str, tf.Tensor]) -> tf.Tensor | None:
        """The same of a request to an exported model."""
        return self._drawn_labels(given["seed"], given["label"]) if self.num_classes else None

    def _drawn_labels(self, seeds: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """(B,) int32 classes; what is none is drawn by the row's seed."""
        drawn = random.categorical(seeds, tf.zeros((tf.shape(seeds)[0], self.num_classes)), LABEL_STREAM)
        return tf.where((labels < 0) | (labels >= self.num_classes), drawn, labels)

    def _rules(self, codec: Codec, stop: Sequence[str], constraint: Any) -> Rules:
        end = 0 if self.boundary and self.vocabulary else None
        if not self.vocabulary:
            if stop:
                raise ValueError("`stop` must be empty for frames. Received: stop strings")
            if constraint is None:
                return Rules()
            keys = np.asarray(constraint)
            if keys.dtype != bool or keys.shape != (KEYS,) or not keys.any():
                raise ValueError(
                    f"`constraint` must be ({KEYS},) bool for frames. Received: {type(constraint).__name__}"
                )
            return Rules(keys=tf.constant(keys))
        tables = stops = None
        if constraint is not None:
            if not isinstance(constraint, Constraint) or constraint.vocabulary != self.vocabulary:
                found = getattr(constraint, "vocabulary", type(constraint).__name__)
                raise ValueError(f"`constraint` must be a Constraint over {self.vocabulary} tokens. Received: {found}")
            tables, end = constraint.tables(), constraint.stop
        if stop:
            if codec.text is None:
                raise ValueError("`stop` needs a model of text. Received: stop strings for tokens without a text")
            stops = tf.constant(stop_table(stop, codec.text.pieces))
        return Rules(end=end, tables=tables, stops=stops)

    def sample(
        self,
        num: int,
        *,
        prompt: Any = None,
        condition: Any = None,
        seed: int | None = None,
        max_length: int = 256,
        stop: Sequence[str] = (),
        constraint: Constraint | np.ndarray | None = None,
        jit: bool = False,
        **controls: Any,
    ) -> list[Any]:
        """Draw `num` sequences. Row i is made from the row seed [seed, i] alone.

        Args:
            num: at least 1.
            prompt: what they go on from: a text, a roll or tokens; or a list of `num` of them. Of a prompt longer than
                the context the end is read, with a warning. A character that the tokenizer does not know is an error.
            condition: classes, as of other models.
            seed: 0 <= seed < 2**31; None takes a fresh one.
            max_length: symbols generated a row, at most.
            stop: strings at the first of which a text ends; they are not a part of it.
            constraint: a `gentf.sampling.constraints.Constraint`, or for frames the keys that may sound, (88,) bool.
            jit: compile with XLA. Tokens can differ from the uncompiled ones where two are as likely but for rounding.
            controls: `temperature` >= 0 (0: the likeliest), `top_k` (0: all), `top_p` in (0, 1], `min_p` in [0, 1],
                `repetition` > 0 (1: none); a number, or one a row. See `gentf.kernels.filters`.
        Returns:
            texts, rolls uint8 (T, 88), or arrays of tokens: without the prompt.
        """
        seed = self.check_draw(num, seed)
        several = isinstance(prompt, (list, tuple))
        if several and len(prompt) != num:
            raise ValueError(f"`prompt` must be one or a list of {num}. Received: {len(prompt)}")
        prompts = list(prompt) if several else [prompt] * num
        found = self.generate(
            prompts, seeds=random.spread(seed, num).numpy(), max_length=max_length, condition=condition, stop=stop,
            constraint=constraint, jit=jit, **controls,
        )  # fmt: skip
        codec = self._codec()
        rows = [codec.decode(row[:length]) for row, length in zip(found.symbols, found.lengths)]
        return [cut_before(row, stop) for row in rows] if stop else rows

    def log_prob(self, sequences: Sequence[Any], condition: Any = None) -> np.ndarray:
        """The log-likelihood of whole sequences, exact: (n,) float32, in nats.

        Args:
            sequences: n texts, rolls or arrays of tokens. Where texts have boundaries, that a text ends counts too.
            condition: as of `sample`, with a class for each.
        """
        codec = self._codec()
        labels = self.check_condition(condition, len(sequences))
        if self._scorer is None:
            self._scorer = tf.function(self._score, reduce_retracing=True, autograph=False)
        found = []
        for number, sequence in enumerate(sequences):
            symbols = codec.encode(sequence)
            if self.vocabulary and isinstance(sequence, str) and not sequence and not self.boundary:
                found.append(0.0)  # nothing that could be told
                continue
            if self.vocabulary:
                first = [] if self.boundary else list(codec.start)
                symbols = np.concatenate([first, symbols, [0] if self.boundary else []]).astype(np.int32)
            batch = {"tokens" if self.vocabulary else "frames": tf.constant(symbols[None])}
            batch |= {} if labels is None else {"label": tf.constant(labels[number : number + 1])}
            found.append(self._scorer(batch))
        return -np.array(found, np.float32)

    def _score(self, batch: Any) -> tf.Tensor:
        return tf.reduce_sum(self.nats(self.prepare(batch)))

    def nats_of_stream(self, stream: np.ndarray) -> np.ndarray:
        """Minus the log-likelihood of each symbol of one sequence, of any length, given those before it.

        Which of them a symbol sees: in an RNN all. In a Transformer with rotary positions, `context` in each layer, and
        of those further back what the layers below took from them, down to `context` to 2 * `context` symbols away.
        With learned positions, half of `context` at least. At the start of the sequence, all there are.

        Args:
            stream: tokens (n,), n >= 2, of which the first is only seen; or frames (n, 88), n >= 1.
        Returns:
            float32 in nats: (n - 1,) for tokens, (n,) for frames, whose first is told from silence.
        Raises:
            ValueError: another shape or token, or a model that is conditional.
        """
        return self._nats_along(*self._told(stream))

    def _told(self, stream: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A stream as inputs and targets (n, ...), checked as `nats_of_stream` says."""
        symbols = np.asarray(stream)
        if self.num_classes:
            raise ValueError(f"`num_classes` must be 0 to score a stream. Received: num_classes={self.num_classes}")
        if not self.vocabulary:
            if symbols.ndim != 2 or symbols.shape[1] != KEYS or not len(symbols):
                raise ValueError(f"`stream` must be frames (n, {KEYS}), n >= 1. Received: shape {symbols.shape}")
            frames = symbols.astype(np.float32)
            return np.pad(frames, [(1, 0), (0, 0)])[:-1], frames
        if symbols.ndim != 1 or len(symbols) < 2 or symbols.dtype.kind not in "iu":
            raise ValueError(
                f"`stream` must be (n,) integers, n >= 2. Received: shape {symbols.shape}, dtype {symbols.dtype}"
            )
        if symbols.min() < 0 or symbols.max() >= self.vocabulary:
            raise ValueError(
                f"`stream` must lie in 0..{self.vocabulary - 1}. Received: {symbols.min()}..{symbols.max()}"
            )
        tokens = symbols.astype(np.int32)
        return tokens[:-1], tokens[1:]

    def _nats_along(self, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """(n, ...) and (n, ...) -> (n,), all at once: each target sees all inputs up to its own place."""
        return self._window_nats(inputs[None], targets[None])[0]

    def _window_nats(self, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """`nats` of (B, T, ...) windows: (B, T)."""
        if self._streamer is None:
            specs = [tf.TensorSpec((None, None, *part.shape[2:]), part.dtype) for part in (inputs, targets)]
            self._streamer = tf.function(self._nats_between, input_signature=specs, autograph=False)
        return self._streamer(tf.constant(inputs), tf.constant(targets)).numpy()

    def _nats_between(self, inputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        return self.nats({"inputs": inputs, "targets": targets})

    def signatures(
        self, max_length: int = serving.MAX_LENGTH, constraints: Mapping[str, Constraint | np.ndarray] | None = None
    ) -> dict[str, Any]:
        """What an export answers: see `gentf.models.serving.signatures`, arguments as there."""
        return serving.signatures(self, max_length, constraints)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "vocabulary": self.vocabulary,
            "tokenizer": self.tokenizer,
            "start": list(self.start),
            "boundary": self.boundary,
            "context": self.context,
            "num_classes": self.num_classes,
            "seed": self.seed,
        }


def _plain(value: Any) -> Any:
    """`value` without the wrappers that Keras puts around what a model holds."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
