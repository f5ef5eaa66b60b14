"""An encoder and a decoder of attention, from sequence to sequence.

Reference: Raffel et al. (2020), "Exploring the limits of transfer learning with a unified text-to-text transformer":
the architecture of section 2.1, and the span corruption of sections 3.1.4 and 3.3.4 as pretraining on plain text.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gentf.errors import UserError
from gentf.kernels import attention, random
from gentf.kernels.quantize import lookup
from gentf.kernels.tracing import size
from gentf.models.base import Batch
from gentf.models.prompts import Codec
from gentf.models.sequence import SequenceModel
from gentf.nn.dropout import dropout as drop
from gentf.nn.encoder_decoder import DecoderBlock, EncoderBlock, RelativeBias, RMSNormalization, rms_normalized
from gentf.nn.transformer import Linear
from gentf.sampling.decode import Decoder
from gentf.sampling.generate import ROWS, padded

CORRUPT = 1  # stream of randomness inside a step, beside that of dropout
START = 0  # stands before each target, and ends it
MARK = re.compile(r"<extra_id_(\d+)>")  # a sentinel in text, as T5 writes it


@keras.saving.register_keras_serializable("gentf")
class EncoderDecoder(SequenceModel):
    """T5: p(target | source), with attention to the whole source at each token of the target.

    A prompt is a source: it is read, not gone on from. A target ends with token 0, and so does what is generated.

    Args:
        vocabulary, tokenizer, start, seed: as of `SequenceModel`; `start` is the source where no prompt is given.
        boundary: taken for the sake of other models, and always true.
        layers: of the encoder, and of the decoder.
        width: numbers of a token; heads: of attention, dividing `width`.
        hidden: units of the feed-forward network; None: 4 * width.
        buckets: relative distances told apart, at least 4 and even; the encoder has half of them in each direction.
        max_distance: more than buckets / 2; distances from here on are one bucket.
        dropout: share left out after the embedding and of what each part adds.
        tied: the last layer has the embedding's weights.
        sentinels: tokens after the vocabulary that stand for what span corruption cuts out; needed for plain text.
        corrupt_share: of plain text, what is cut out; corrupt_span: the mean length of a piece.
    """

    separable = True
    prompt_is_source = True

    def __init__(
        self,
        vocabulary: int,
        layers: int = 2,
        width: int = 128,
        heads: int = 4,
        hidden: int | None = None,
        buckets: int = 32,
        max_distance: int = 128,
        dropout: float = 0.0,
        tied: bool = True,
        sentinels: int = 0,
        corrupt_share: float = 0.15,
        corrupt_span: float = 3.0,
        boundary: bool = True,
        **kwargs,
    ):
        super().__init__(vocabulary, boundary=True, **kwargs)
        hidden = hidden or 4 * width
        for name, value in (("vocabulary", vocabulary), ("layers", layers), ("width", width), ("heads", heads)):
            if value < 1:
                raise ValueError(f"`{name}` must be positive. Received: {name}={value}")
        if self.num_classes:
            raise ValueError(f"`num_classes` must be 0 here. Received: num_classes={self.num_classes}")
        if width % heads:
            raise ValueError(f"`heads` must divide `width`. Received: {width=}, {heads=}")
        if buckets < 4 or buckets % 2:
            raise ValueError(f"`buckets` must be an even number, at least 4. Received: buckets={buckets}")
        if max_distance <= buckets // 2:
            raise ValueError(f"`max_distance` must be more than buckets / 2. Received: {max_distance=}, {buckets=}")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"`dropout` must be in [0, 1). Received: dropout={dropout}")
        if sentinels < 0:
            raise ValueError(f"`sentinels` must be at least 0. Received: sentinels={sentinels}")
        if not 0.0 < corrupt_share < 1.0 or corrupt_span < 1.0:
            raise ValueError(
                "`corrupt_share` must be in (0, 1), and `corrupt_span` at least 1. "
                f"Received: {corrupt_share=}, {corrupt_span=}"
            )
        self.num_layers, self.width, self.heads, self.inner = layers, width, heads, hidden
        self.buckets, self.max_distance, self.dropout_rate, self.tied = buckets, max_distance, dropout, tied
        self.sentinels, self.corrupt_share, self.corrupt_span = int(sentinels), corrupt_share, corrupt_span
        policy = self.dtype_policy
        made = {"scale": width**-0.5, "dtype": policy}
        self.embedding = self.add_weight(
            shape=(self.outputs_size, width), name="embedding",
            initializer=keras.initializers.RandomNormal(stddev=1.0, seed=self.seed),
        )  # fmt: skip
        sizes = {"heads": heads, "buckets": buckets, "max_distance": max_distance}
        self.encoder_bias = RelativeBias(**sizes, both=True, seed=self.seed + 1, name="encoder_bias", **made)
        self.decoder_bias = RelativeBias(**sizes, both=False, seed=self.seed + 2, name="decoder_bias", **made)
        self.encoder_blocks = [
            EncoderBlock(width, heads, hidden, self.seed + 10 * (n + 1), dtype=policy, name=f"encoder_{n}")
            for n in range(layers)
        ]
        self.decoder_blocks = [
            DecoderBlock(width, heads, hidden, self.seed + 10 * (layers + n + 1), dtype=policy, name=f"decoder_{n}")
            for n in range(layers)
        ]
        self.encoder_last = RMSNormalization(width, dtype=policy, name="encoder_norm")
        self.decoder_last = RMSNormalization(width, dtype=policy, name="decoder_norm")
        self.head = None
        if not tied:
            self.head = Linear(width, self.outputs_size, bias=False, seed=self.seed + 3, name="head", **made)
        self.build()

    def build(self, input_shape=None) -> None:
        self.built = True

    @property
    def outputs_size(self) -> int:
        return self.vocabulary + self.sentinels

    # The network

    def _values(self) -> dict[str, Any]:
        blocks = {"encoder": self.encoder_blocks, "decoder": self.decoder_blocks}
        return {
            "embedding": tf.cast(self.embedding.value, self.compute_dtype),
            "encoder_bias": tf.cast(self.encoder_bias.table.value, tf.float32),
            "decoder_bias": tf.cast(self.decoder_bias.table.value, tf.float32),
            "encoder_last": self.encoder_last.values(),
            "decoder_last": self.decoder_last.values(),
        } | {name: [block.values() for block in stack] for name, stack in blocks.items()}

    def _embed(self, values, tokens, noise):
        x = lookup(values["embedding"], tokens)
        return x if noise is None else drop(x, noise[1], noise[0], noise[2])

    def _noise(self, seed, stream):
        return (seed, self.dropout_rate, stream) if seed is not None and self.dropout_rate else None

    def _encode(self, values, source, lengths, seed=None):
        """(B, S), (B,) -> keys and values of each decoder layer, and what hides the padding, (B, 1, 1, S)."""
        places = tf.range(size(source, 1))
        padding = tf.where(places < lengths[:, None], 0.0, attention.HIDDEN)[:, None, None, :]
        bias = self.encoder_bias.biases(values["encoder_bias"], places, places) + padding
        x = self._embed(values, source, self._noise(seed, 0))
        for number, (block, weights) in enumerate(zip(self.encoder_blocks, values["encoder"])):
            x = block.run(x, weights, bias, self._noise(seed, 1 + 2 * number))
        x = rms_normalized(x, values["encoder_last"])
        return [block.source(x, weights) for block, weights in zip(self.decoder_blocks, values["decoder"])], padding

    def _decode(self, values, tokens, sources, padding, caches=None, place=None, seed=None):
        """(B, T) tokens, from `place` (B,) on where there are caches -> (B, T, D), and the caches with them."""
        first = 1 + 2 * self.num_layers
        queries = tf.range(size(tokens, 1))
        keys = queries
        if caches is not None:
            queries, keys = place[:, None] + queries, tf.range(size(caches[0][0], 2))
        after = tf.where(keys > queries[..., None], attention.HIDDEN, 0.0)[..., None, :, :]
        bias = self.decoder_bias.biases(values["decoder_bias"], queries, keys) + after
        x, kept = self._embed(values, tokens, self._noise(seed, first)), []
        for number, (block, weights) in enumerate(zip(self.decoder_blocks, values["decoder"])):
            cache = None if caches is None else caches[number]
            noise = self._noise(seed, first + 1 + 3 * number)
            x, pair = block.decode(x, weights, bias, sources[number], padding, cache, place, noise)
            kept.append(pair)
        x = rms_normalized(x, values["decoder_last"])
        # the embedding has rows of norm sqrt(D), and a tied last layer is scaled down by as much
        return x * tf.cast(self.width**-0.5, x.dtype) if self.tied else x, kept

    def output_layer(self):
        if self.head is None:
            return tf.cast(self.embedding.value, self.compute_dtype), None, True
        return *self.head.values(), False

    def _hidden_of(self, batch, seed):
        values, source = self._values(), batch["source"]
        # a source holds no 0 but for padding, or ends with a sentinel
        places = tf.range(1, size(source, 1) + 1)
        lengths = tf.maximum(tf.reduce_max(tf.where(source != START, places, 0), axis=1), 1)
        sources, padding = self._encode(values, source, lengths, seed)
        return self._decode(values, batch["inputs"], sources, padding, seed=seed)[0]

    # The likelihood

    def prepare(self, data: Any) -> Batch:
        """{"source" (B, S), "inputs", "targets" (B, T), "weights" (B, T) float32} from what `fit` accepts.

        The inputs are the targets after a leading 0; weights are 1 up to the length of a target.

        Args:
            data: {"source": (B, S), zeros to the right; "target": (B, T), ended by 0; "target_length": (B,) with that
                0}, or a tuple of the three; or {"tokens": (B, T)} of plain text, which is corrupted by `corrupt_spans`
                with the numbers of this step, T static.
        Raises:
            ValueError: other data, or fewer sentinels than pieces are cut out.
        """
        if isinstance(data, (tuple, list)):
            data = dict(zip(("source", "target", "target_length"), data))
        data = data if isinstance(data, Mapping) else {"tokens": data}
        if "tokens" in data:
            tokens = _checked("tokens", data["tokens"])
            noise, spans = span_sizes(tokens.shape[1], self.corrupt_share, self.corrupt_span)
            if spans > self.sentinels:
                raise UserError(
                    f"`sentinels` must be at least {spans} to learn from {tokens.shape[1]} tokens of plain text. "
                    f"Received: sentinels={self.sentinels}"
                )
            seeds = self.row_seeds(tf.shape(tokens)[0], CORRUPT)
            source, target = corrupt_spans(tokens, seeds, noise, spans, self.vocabulary)
            weights = tf.ones_like(target, tf.float32)
        else:
            missing = {"source", "target", "target_length"} - set(data)
            if missing:
                raise ValueError(f"a batch must hold `{min(missing)}`, or `tokens`. Received: {', '.join(data)}")
            source, target = _checked("source", data["source"]), _checked("target", data["target"])
            lengths = tf.cast(data["target_length"], tf.int32)
            weights = tf.cast(tf.range(size(target, 1)) < lengths[:, None], tf.float32)
        inputs = tf.pad(target[:, :-1], [[0, 0], [1, 0]], constant_values=START)
        return {"source": source, "inputs": inputs, "targets": target, "weights": weights}

    def log_prob(self, targets: Sequence[Any], sources: Sequence[Any]) -> np.ndarray:  # type: ignore[override]
        """log p(target | source), exact: (n,) float32, in nats. That a target ends counts too.

        Args:
            targets, sources: n texts or arrays of tokens each.
        """
        if len(targets) != len(sources):
            raise ValueError(
                f"`targets` and `sources` must be equally many. Received: {len(targets)} and {len(sources)}"
            )
        codec, bare = self._codec(), self._codec()
        bare.start = ()  # an empty target is an empty one
        if self._scorer is None:
            self._scorer = tf.function(self._score, reduce_retracing=True, autograph=False)
        found = [np.zeros(0, np.float32)]
        for first in range(0, len(targets), ROWS):
            part = slice(first, first + ROWS)
            ends = [np.append(bare.encode(target), START) for target in targets[part]]
            read = [codec.encode(source) for source in sources[part]]
            whole, lengths = padded(ends, len(ends), max(map(len, ends)))
            batch = {
                "source": tf.constant(padded(read, len(read), max(map(len, read)))[0]),
                "target": tf.constant(whole),
                "target_length": tf.constant(lengths),
            }
            found.append(-self._scorer(batch).numpy())
        return np.concatenate(found)

    def _score(self, batch):
        prepared = self.prepare(batch)
        return tf.reduce_sum(self.nats(prepared) * prepared["weights"], axis=1)

    # Generation

    def decoder(self) -> Decoder:
        """The target, token by token. The state: keys and values of the target and of the source, a layer; and last
        the lengths of the sources, (B,) int32, which `position` counts too.

        `prefill` reads the sources, and the start of the targets.
        """
        values = self._values()
        kernel, _, transpose = self.output_layer()

        def logits_of(x):
            return tf.cast(tf.matmul(x, kernel, transpose_b=transpose), tf.float32)

        def init_state(rows, capacity, label=None):
            sizes = {"heads": self.heads, "width": self.width // self.heads, "dtype": self.compute_dtype}
            layer = (*attention.empty_cache(rows, capacity, **sizes), *attention.empty_cache(rows, 0, **sizes))
            return (layer,) * self.num_layers + (tf.zeros((rows,), tf.int32),)

        def run(tokens, place, sources, padding, state):
            caches = [layer[:2] for layer in state[:-1]]
            x, caches = self._decode(values, tokens, sources, padding, caches, place)
            return logits_of(x), tuple((*cache, *source) for cache, source in zip(caches, sources))

        def prefill(symbols, lengths, state):
            lengths = tf.maximum(tf.cast(lengths, tf.int32), 1)
            sources, padding = self._encode(values, symbols, lengths)
            start = tf.fill((size(symbols, 0), 1), START)
            logits, layers = run(start, tf.zeros_like(lengths), sources, padding, state)
            return logits[:, 0], (*layers, lengths)

        def extend(tokens, position, state):
            sources, lengths = [layer[2:] for layer in state[:-1]], state[-1]
            places = tf.range(size(sources[0][0], 2))
            padding = tf.where(places < lengths[:, None], 0.0, attention.HIDDEN)[:, None, None, :]
            logits, layers = run(tokens, position - lengths + 1, sources, padding, state)
            return logits, (*layers, lengths)

        def step(symbol, position, state):
            logits, state = extend(symbol[:, None], position, state)
            return logits[:, 0], state

        return Decoder(init_state, prefill, step, extend)

    def _codec(self) -> Codec:
        return _SentinelCodec(self.tokenizer, self.start, self.vocabulary, self.sentinels)

    def _rules(self, codec, stop, constraint):
        """As for any model of tokens; no rule allows a sentinel, and none is a part of a stop string."""
        rules = super()._rules(codec, stop, constraint)
        more = [[0, 0], [0, self.sentinels]]
        if rules.tables is not None:
            table = tf.pad(rules.tables.next_state, more, constant_values=-1)
            rules = rules._replace(tables=rules.tables._replace(next_state=table))
        return rules if rules.stops is None else rules._replace(stops=_stops_with(rules.stops, self.sentinels))

    def get_config(self) -> dict[str, Any]:
        config = super().get_config() | {
            "layers": self.num_layers,
            "width": self.width,
            "heads": self.heads,
            "hidden": self.inner,
            "buckets": self.buckets,
            "max_distance": self.max_distance,
            "dropout": self.dropout_rate,
            "tied": self.tied,
            "sentinels": self.sentinels,
            "corrupt_share": self.corrupt_share,
            "corrupt_span": self.corrupt_span,
        }
        del config["context"]
        return config


class _SentinelCodec(Codec):
    """A codec without a boundary before texts, in which <extra_id_N> is sentinel N."""

    def __init__(self, kind, start, vocabulary: int, sentinels: int):
        super().__init__(kind, start)
        self.vocabulary, self.sentinels = vocabulary, sentinels

    def encode(self, prompt):
        if not (self.text and self.sentinels and isinstance(prompt, str)):
            return super().encode(prompt)
        parts: list[Any] = MARK.split(prompt)  # text, number, text, ..., text
        for place in range(1, len(parts), 2):
            if int(parts[place]) >= self.sentinels:
                known = f"`prompt` must hold no sentinel beyond <extra_id_{self.sentinels - 1}>"
                raise UserError(f"{known}. Received: <extra_id_{parts[place]}>")
            parts[place] = [self.vocabulary + int(parts[place])]
        parts[::2] = [self.text.encode(part) for part in parts[::2]]
        tokens = np.concatenate(parts).astype(np.int32)
        return tokens if len(tokens) else np.asarray(self.start, np.int32)

    def decode(self, symbols):
        if self.text is None or not self.sentinels:
            return super().decode(symbols)
        symbols = np.asarray(symbols)
        marks = np.flatnonzero(symbols >= self.vocabulary)
        pieces = [self.text.decode(part[part < self.vocabulary]) for part in np.split(symbols, marks)]
        names = ["", *(f"<extra_id_{symbols[mark] - self.vocabulary}>" for mark in marks)]
        return "".join(name + piece for name, piece in zip(names, pieces))


def span_sizes(length: int, share: float, span: float) -> tuple[int, int]:
    """How many of `length` >= 2 tokens are cut out, and in how many pieces: at least 1 each, and 1 token stays."""
    if length < 2:
        raise UserError(f"`tokens` must be at least 2 to be corrupted. Received: {length}")
    noise = min(max(round(length * share), 1), length - 1)
    return noise, min(max(round(noise / span), 1), noise, length - noise)


def corrupt_spans(
    tokens: tf.Tensor, seeds: tf.Tensor, noise: int, spans: int, first_sentinel: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Cut pieces out of tokens: what is left, and what is missing.

    Kept and cut pieces follow one another, a kept one first; the lengths of each kind are a random partition, all as
    likely. Sentinel i, `first_sentinel` + i, stands for piece i in the source, and before it in the target.

    Args:
        tokens: (B, T) int32, T static.
        seeds: (B, 2) int32 row seeds.
        noise, spans: how many tokens are cut out, in how many pieces; see `span_sizes`.
        first_sentinel: the vocabulary's size.
    Returns:
        source (B, T - noise + spans) and target (B, noise + spans + 1) int32, which ends with 0.
    """
    length = tokens.shape[1]
    kept, cut = _partition(seeds, length - noise, spans, 0), _partition(seeds, noise, spans, 1)
    starts = tf.cumsum(kept + cut, axis=1, exclusive=True)  # of each kept piece, in the tokens

    def laid(sizes, places, total, mark_first):
        """Pieces of `sizes` from `places` in the tokens, each with its sentinel before or after."""
        begins = tf.cumsum(sizes + 1, axis=1, exclusive=True)
        at = tf.range(total)
        piece = tf.reduce_sum(tf.cast(begins[:, None, :] <= at[:, None], tf.int32), axis=2) - 1  # (B, total)
        offset = at - tf.gather(begins, piece, batch_dims=1)
        mark = tf.equal(offset, 0 if mark_first else tf.gather(sizes, piece, batch_dims=1))
        place = tf.gather(places, piece, batch_dims=1) + offset - int(mark_first)
        token = tf.gather(tokens, tf.clip_by_value(place, 0, length - 1), batch_dims=1)
        return tf.where(mark, first_sentinel + piece, token)

    source = laid(kept, starts, length - noise + spans, False)
    target = laid(cut, starts + kept, noise + spans, True)
    return source, tf.pad(target, [[0, 0], [0, 1]], constant_values=START)


def _partition(seeds: tf.Tensor, items: int, parts: int, stream: int) -> tf.Tensor:
    """(B, parts) int32, each at least 1, that add up to `items`: each such list is as likely."""
    if parts == 1:
        return tf.fill((size(seeds, 0), 1), items)
    places = tf.math.top_k(random.uniform(seeds, (items - 1,), stream), parts - 1).indices
    ends = tf.pad(tf.sort(places, axis=1) + 1, [[0, 0], [0, 1]], constant_values=items)
    return ends - tf.pad(ends[:, :-1], [[0, 0], [1, 0]])


def _stops_with(stops: tf.Tensor, sentinels: int) -> tf.Tensor:
    """The table of stop strings with columns for sentinels, after which the search starts again."""
    states = size(stops, 0)
    after = tf.where(tf.range(states) == states - 1, states - 1, 0)
    return tf.concat([stops, tf.repeat(after[:, None], sentinels, axis=1)], axis=1)


def _checked(name: str, tokens: Any) -> tf.Tensor:
    tokens = tf.cast(tf.convert_to_tensor(tokens), tf.int32)
    if tokens.shape.rank != 2 or (name == "tokens" and tokens.shape[1] is None):
        raise ValueError(f"`{name}` must be (B, T). Received: {name}.shape={tuple(tokens.shape)}")
    return tokens
