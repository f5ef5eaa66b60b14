"""What an exported model of sequences answers: prompts in, text out, in one graph of TensorFlow's own operations.

A signature takes a batch of rows, each with a prompt, seed and settings of its own. Tokenizer, decode loop and
constraints are in the graph, so that a client needs none of them. What is drawn is what `SequenceModel.sample` draws
without XLA: the same decoder, in the same loop, with the same row seeds. Rows are padded to the longest of their batch,
and sums over more zeros may round a logit differently in its last bits: that moves a token only where two are as likely
but for that.

Policies, where Python would refuse a request and with it all rows of a batch:

- A prompt's characters that the tokenizer does not know are left out; a prompt without any is an empty one.
- Of a prompt longer than the context the end is read.
- `max_length` is clipped to what the signature can do, 1 at least.
- `temperature` of 0 or less takes the likeliest token; one that is no finite number is 1. `top_p` outside (0, 1] is 1.
- A `label` that is no class is drawn by the row seed.
"""

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tensorflow as tf

from gentf.kernels.tracing import size
from gentf.models.prompts import KEYS
from gentf.models.variational import Variational
from gentf.sampling import decode
from gentf.sampling.decode import Controls, Decoding, Rules

if TYPE_CHECKING:
    from gentf.models.sequence import SequenceModel
    from gentf.sampling.constraints import Constraint

MAX_LENGTH = 1024
EXAMPLE_LENGTH = 16  # symbols that an example request asks for, at most
EXAMPLE = "The 3 quick brown foxes, née in 1984"
UNKNOWN = "\N{SNOWMAN}"

Tensors = dict[str, tf.Tensor]
Rows = tuple[tf.Tensor, tf.Tensor]  # (B, T) padded to the right, and lengths (B,)


class SequenceSignature(NamedTuple):
    """A `gentf.models.base.Signature` with what else there is to say.

    Attributes:
        function, inputs: as there.
        examples: rows -> valid inputs, name -> array, the same at every call.
        max_length: symbols that a row may ask for; None where none are generated.
    """

    function: Callable[..., Tensors]
    inputs: dict[str, tf.TensorSpec]
    examples: Callable[[int], dict[str, np.ndarray]]
    max_length: int | None = None


def signatures(
    model: "SequenceModel",
    max_length: int = MAX_LENGTH,
    constraints: "Mapping[str, Constraint | np.ndarray] | None" = None,
) -> dict[str, SequenceSignature]:
    """The signatures of a model of sequences.

    Models of text:

    - `generate`, and the same as `serving_default`: `prompt` string, `seed` (B, 2) int32, `temperature`, `top_p`
      float32, `max_length` int32 -> `text` string, without the prompt; `length` int32, its tokens; `nats` float32,
      minus their log-likelihood, that of an end token included.
    - `step`, one block of a text for a client that shows it as it is made. The server keeps nothing: the client sends
      what `generate` takes, and besides `block` int32, `tokens` (B, G) int32 and `length` int32, those generated so
      far. It gets `tokens` (B, G') and `length` to send the next time, `text`, what the block adds, and `done` bool.
      The texts joined are that of one `generate`. Bytes that begin a character wait for the block that ends it.
    - `score`: `text` string -> `nats` float32 of the whole text, as `-log_prob` counts it; `tokens` int32, how many
      that are. With learned positions it is the first tokens that the context holds.

    Models of music: `seed`, `temperature`, `max_length` -> `roll` (B, T, 88) int32 and `length`, `nats`; for chord and
    event tokens `top_p` too, and `tokens` (B, T) int32 instead of a roll. Models of tokens without a text: these, and
    `prompt` (B, P) int32 with `prompt_length` int32. Conditional models: `label` int32 besides.

    Latent variable models have no `score`, and besides:

    - `encode`: `text`; or `roll` (B, T, 88) int32, or `tokens` (B, T) int32, with `length` int32 -> `z` (B, D) float32,
      means of the posterior.
    - `decode`: `z`, and what `generate` takes -> as `generate`, whose codes are drawn from the prior by `seed`.
    - `log_prob`: what `encode` takes and `seed` -> `log_prob`, `stderr` and `elbo` float32, as of `bound` with the
      model's `served_samples`.

    All have the batch first: (B,) where no shape is given. Where a prompt is the source of an encoder there is
    `generate` alone.

    Args:
        model: whose weights are read.
        max_length: symbols a row at most. With learned positions less than the context, whatever is given.
        constraints: name -> rule of a signature `generate_NAME` like `generate`, as `SequenceModel.sample` takes it.
            Its table is a part of the graph. `max_length` must leave room for the shortest sequence and its end.
    Raises:
        ValueError: `max_length` below 1, a name that is not of letters, digits and underscores, or a rule that is not
            one for this model.
    """
    served = _Served(model, max_length)
    found = {"generate": served.generate(None)}
    for name, constraint in (constraints or {}).items():
        if not re.fullmatch(r"[A-Za-z0-9_]+", name):
            raise ValueError(f"`constraints` must have names of letters, digits and '_'. Received: {name!r}")
        model._rules(served.codec, (), constraint)  # a rule that does not fit is told of here
        found[f"generate_{name}"] = served.generate(constraint)
    if served.text is not None and not model.prompt_is_source:
        found["step"] = served.step()
        if model.exact_likelihood:
            found["score"] = served.score()
    if isinstance(model, Variational):
        codes = {"z": _floats(None, model.latent_width)}
        found |= {"encode": served.encode(), "decode": served.generate(None, codes), "log_prob": served.log_prob()}
    return {"serving_default": found["generate"]} | found


class _Served:
    """A model, and how prompts become its symbols."""

    def __init__(self, model: "SequenceModel", max_length: int):
        if max_length < 1:
            raise ValueError(f"`max_length` must be positive. Received: max_length={max_length}")
        self.model, self.codec = model, model._codec()
        self.text: Any = self.codec.text  # None for music
        self.rooms = _rooms(model, max_length)
        self.max_length = len(self.rooms)
        # symbols of a sequence at most: where prompt and what is generated share the context, a longer one leaves less
        self.bound = model.context if _rooms(model, 2)[1:] != self.rooms[:1] else None
        prompts: dict[str, tf.TensorSpec] = {}
        if self.text is not None:
            prompts["prompt"] = tf.TensorSpec((None,), tf.string)
        elif self.codec.kind is None and model.vocabulary:
            prompts = {"prompt": _integers(None, None), "prompt_length": _integers(None)}
        controls = {"temperature": _floats(None)} | ({"top_p": _floats(None)} if model.vocabulary else {})
        labels = {"label": _integers(None)} if model.num_classes else {}
        self.inputs = {**prompts, "seed": _integers(None, 2), **controls, "max_length": _integers(None), **labels}

    # Signatures

    def generate(self, constraint: Any, beside: Mapping[str, tf.TensorSpec] | None = None) -> SequenceSignature:
        inputs = self.inputs | dict(beside or {})

        def generate(**given):
            limit = self._limit(given)
            prompt = self._prompt(given, limit)
            rules = self.model._rules(self.codec, (), constraint)
            symbols, end = self._advance(given, prompt, limit, rules)
            symbols = symbols[:, : tf.reduce_max(end.lengths)]
            answer = {"length": end.lengths, "nats": end.nats}
            if self.text is not None:
                return {"text": self.text.decode_tensor(symbols, end.lengths)} | answer
            return {"tokens" if self.model.vocabulary else "roll": tf.cast(symbols, tf.int32)} | answer

        return SequenceSignature(generate, inputs, self._examples(inputs), self.max_length)

    def step(self) -> SequenceSignature:
        inputs = self.inputs | {"tokens": _integers(None, None), "length": _integers(None), "block": _integers(None)}

        def step(tokens, length, block, **given):
            limit = self._limit(given)
            length = tf.clip_by_value(length, 0, tf.minimum(limit, tf.shape(tokens)[1]))
            block = tf.clip_by_value(block, 1, self.max_length)
            before = (tf.clip_by_value(tokens, 0, self.model.vocabulary - 1), length)
            prompt = _joined(self._prompt(given, limit), before)
            now = tf.minimum(limit, length + block)
            symbols, end = self._advance(given, prompt, now, self.model._rules(self.codec, (), None), length)
            done = (end.lengths >= limit) | (end.lengths < now)
            after = _joined(before, (symbols, end.lengths - length))
            told, text = self._complete(before, length >= limit), self._complete(after, done)
            start = tf.strings.length(told)
            added = tf.strings.substr(text, start, tf.strings.length(text) - start)
            return {"text": added, "tokens": after[0], "length": after[1], "done": done}

        return SequenceSignature(step, inputs, self._examples(inputs), self.max_length)

    def score(self) -> SequenceSignature:
        labels = {"label": _integers(None)} if self.model.num_classes else {}
        inputs = {"text": tf.TensorSpec((None,), tf.string)} | labels

        def score(text, label=None):
            batch, counted = self._whole(*self.text.encode_tensor(text))
            if label is not None:
                batch["label"] = tf.clip_by_value(label, 0, self.model.num_classes - 1)
            nats = self.model.nats(batch)
            return {"nats": tf.reduce_sum(tf.where(batch["weights"] > 0.0, nats, 0.0), axis=1), "tokens": counted}

        return SequenceSignature(score, inputs, self._examples(inputs))

    def encode(self) -> SequenceSignature:
        model: Any = self.model

        def encode(**given):
            return {"z": model.codes(model.infer(self._known(given)))}

        inputs = self._sequences()
        return SequenceSignature(encode, inputs, self._examples(inputs))

    def log_prob(self) -> SequenceSignature:
        model: Any = self.model

        def log_prob(seed, **given):
            found = model.estimate(self._known(given), seed, model.served_samples, model.served_samples)
            return {"log_prob": found[:, 0], "stderr": found[:, 1], "elbo": found[:, 2]}

        inputs = self._sequences() | {"seed": _integers(None, 2)}
        return SequenceSignature(log_prob, inputs, self._examples(inputs))

    # Parts of them

    def _sequences(self) -> dict[str, tf.TensorSpec]:
        """Inputs that are whole sequences."""
        if self.text is not None:
            return {"text": tf.TensorSpec((None,), tf.string)}
        name, shape = ("tokens", (None, None)) if self.model.vocabulary else ("roll", (None, None, KEYS))
        return {name: _integers(*shape), "length": _integers(None)}

    def _known(self, given: Tensors) -> Tensors:
        """The batch that whole sequences are."""
        if self.text is not None:
            return self._whole(*self.text.encode_tensor(given["text"]))[0]
        name = "tokens" if self.model.vocabulary else "roll"
        lengths = tf.clip_by_value(given["length"], 0, tf.shape(given[name])[1])
        if self.model.vocabulary:
            return self._whole(tf.clip_by_value(given[name], 0, self.model.vocabulary - 1), lengths)[0]
        return self.model.prepare({"frames": given[name], "length": lengths})

    def _whole(self, tokens: tf.Tensor, lengths: tf.Tensor) -> tuple[Tensors, tf.Tensor]:
        """Texts of tokens as a batch, from their start to their end where they have one; and how many count."""
        boundary = self.codec.boundary
        first = [0] if boundary else list(self.codec.start)
        seen = tf.range(tf.shape(tokens)[1])[None, :] < lengths[:, None]
        before = tf.tile([first], (tf.shape(tokens)[0], 1))
        # the end token is a padding's 0
        whole = tf.concat([before, tf.pad(tf.where(seen, tokens, 0), [[0, 0], [0, 1]])], axis=1)
        counted = lengths + len(first) - 1 + boundary
        if self.bound is not None:
            whole, counted = whole[:, : self.bound + 1], tf.minimum(counted, self.bound)
        inputs, targets = whole[:, :-1], whole[:, 1:]
        weights = tf.cast(tf.range(tf.shape(targets)[1])[None, :] < counted[:, None], tf.float32)
        return {"inputs": inputs, "targets": targets, "weights": weights}, counted

    def _limit(self, given: Tensors) -> tf.Tensor:
        return tf.clip_by_value(given["max_length"], 1, self.max_length)

    def _prompt(self, given: Tensors, limit: tf.Tensor) -> Rows:
        """Prompts as symbols, as `Codec.encode` and `fit` make them."""
        if not self.model.vocabulary:
            rows = tf.shape(given["seed"])[0]
            return tf.zeros((rows, 1, self.model.outputs_size)), tf.ones((rows,), tf.int32)
        if self.text is not None:
            tokens, lengths = self.text.encode_tensor(given["prompt"])
        elif "prompt" in given:
            tokens = tf.clip_by_value(given["prompt"], 0, self.model.vocabulary - 1)
            lengths = tf.clip_by_value(given["prompt_length"], 0, tf.shape(tokens)[1])
        else:
            tokens = tf.zeros((tf.shape(given["seed"])[0], 0), tf.int32)
            lengths = tf.zeros_like(given["seed"][:, 0])
        rows = tf.shape(tokens)[0]
        start = [0] if self.codec.boundary else list(self.codec.start)
        # before each text where it has boundaries, else in place of an empty one
        prefix = tf.fill([rows], len(start)) if self.codec.boundary else tf.where(lengths == 0, len(start), 0)
        tokens, lengths = _joined((tf.tile([start], (rows, 1)), prefix), (tokens, lengths))
        if self.rooms[0] is None:
            return tokens, lengths
        left_out = tf.maximum(lengths - tf.gather(tf.constant(self.rooms), limit - 1), 0)
        return _shifted(tokens, left_out, lengths - left_out)

    def _advance(
        self, given: Tensors, prompt: Rows, limit: tf.Tensor, rules: Rules, length: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, Decoding]:
        """What goes on from prompts, up to `limit` symbols, of which `length` are in the prompt already."""
        model, decoder = self.model, self.model.decoder()
        if self.bound is not None:  # a row that has ended waits for others, maybe at a position beyond the last
            step, last = decoder.step, self.bound - 1
            decoder = decoder._replace(step=lambda symbol, place, state: step(symbol, tf.minimum(place, last), state))
        label = model.served_conditions(given)
        steps = tf.reduce_max(limit if length is None else limit - length)
        capacity = tf.shape(prompt[0])[1] + steps
        begun = decode.begin(decoder, *prompt, capacity, rules, label=label)
        if length is not None:  # the streams of the row seeds go on where the block before ended
            begun = begun._replace(count=length, lengths=length)
        temperature = given["temperature"]
        temperature = tf.where(tf.math.is_finite(temperature), temperature, 1.0)
        top_p = None
        if model.vocabulary:
            top_p = tf.where((given["top_p"] > 0.0) & (given["top_p"] <= 1.0), given["top_p"], 1.0)
        controls = Controls(temperature=temperature, top_p=top_p)
        return decode.advance(decoder, begun, given["seed"], limit, steps, controls, rules)

    def _complete(self, rows: Rows, ended: tf.Tensor) -> tf.Tensor:
        """Rows as texts, without the bytes at the end that begin a character which is not whole, unless a row ended.

        What is left out begins with the first byte of a character, before which a decoder starts anew: so the text
        of some tokens begins with the text of fewer.
        """
        tokens, lengths = rows
        counted = tf.range(tf.shape(tokens)[1])[None, :] < lengths[:, None]
        joined = tf.strings.reduce_join(tf.gather(tf.constant(self.text.pieces), tf.where(counted, tokens, 0)), axis=1)
        tail = tf.strings.substr(tf.strings.join([tf.constant(b"\0\0\0"), joined]), -3, 3)
        last = tf.cast(tf.io.decode_raw(tail, tf.uint8, fixed_length=3), tf.int32)
        wanted = tf.cast(last >= 0xC0, tf.int32) * (
            2 + tf.cast(last >= 0xE0, tf.int32) + tf.cast(last >= 0xF0, tf.int32)
        )
        there = tf.constant([3, 2, 1])
        waiting = tf.reduce_max(tf.where(wanted > there, there, 0), axis=1)
        kept = tf.strings.length(joined) - tf.where(ended, 0, waiting)
        whole = tf.strings.substr(joined, tf.zeros_like(kept), kept)
        return tf.strings.unicode_transcode(whole, "UTF-8", "UTF-8", errors="replace")

    def _examples(self, inputs: Mapping[str, tf.TensorSpec]) -> Callable[[int], dict[str, np.ndarray]]:
        """Requests whose rows differ in everything."""
        known = EXAMPLE
        if self.codec.kind == "char":
            alphabet = set(self.text.characters)
            known = "".join(c for c in EXAMPLE if c in alphabet) or self.text.characters[:8]

        def texts(row: int) -> str:
            return (UNKNOWN if row % 4 == 3 else "") + known[: 5 * (row % 8)]

        def examples(rows: int) -> dict[str, np.ndarray]:
            numbers = np.arange(rows)
            strings = np.array([texts(row).encode() for row in range(rows)] + [None], object)[:-1]
            tokens = (numbers[:, None] + np.arange(3)) % max(self.model.vocabulary - 1, 1) + 1
            made = {
                "prompt": strings if self.text is not None else tokens,
                "prompt_length": numbers % 4,
                "text": strings,
                "seed": np.stack([np.zeros_like(numbers), numbers], axis=1),
                "temperature": np.array([1.0, 0.7, 0.0])[numbers % 3],
                "top_p": np.array([1.0, 0.9])[numbers % 2],
                "max_length": np.minimum(EXAMPLE_LENGTH - 3 * (numbers % 5), self.max_length),
                "label": numbers % max(self.model.num_classes, 1),
                "tokens": tokens,
                "length": np.minimum(numbers % 4, self.max_length - 1),
                "block": 1 + numbers % 5,
                "roll": (numbers[:, None, None] + np.arange(3)[:, None] + np.arange(KEYS)) % 11 == 0,
            }
            if "z" in inputs:
                made["z"] = np.cos(numbers[:, None] + 3.0 * np.arange(inputs["z"].shape[1]))
            return {name: made[name].astype(spec.dtype.as_numpy_dtype) for name, spec in inputs.items()}

        return examples


def _rooms(model: "SequenceModel", most: int) -> list[int | None]:
    """How many symbols of a prompt are read for each `max_length` from 1 to `most`, or to the last that can be had."""
    found: list[int | None] = []
    for length in range(1, most + 1):
        try:
            found.append(model._prompt_room(length))
        except ValueError:
            if not found:
                raise
            break
    return found


def _shifted(values: tf.Tensor, start: tf.Tensor, lengths: tf.Tensor) -> Rows:
    """`values[b, start[b] : start[b] + lengths[b]]`, padded with zeros: (B, T) for the longest."""
    place = tf.range(tf.reduce_max(lengths))[None, :]
    last = tf.maximum(size(values, 1) - 1, 0)
    found = tf.gather(values, tf.minimum(place + start[:, None], last), axis=1, batch_dims=1)
    return tf.where(place < lengths[:, None], found, 0), lengths


def _joined(first: Rows, second: Rows) -> Rows:
    """Each row of `first`, and after it that of `second`; nothing of what pads them."""
    lengths = first[1] + second[1]
    values = tf.concat([first[0], second[0]], axis=1)
    place = tf.range(tf.reduce_max(lengths))[None, :]
    gap = tf.shape(first[0])[1] - first[1]
    source = place + tf.where(place < first[1][:, None], 0, gap[:, None])
    found = tf.gather(values, tf.minimum(source, tf.shape(values)[1] - 1), axis=1, batch_dims=1)
    return tf.where(place < lengths[:, None], found, 0), lengths


def _integers(*shape: int | None) -> tf.TensorSpec:
    return tf.TensorSpec(shape, tf.int32)


def _floats(*shape: int | None) -> tf.TensorSpec:
    return tf.TensorSpec(shape, tf.float32)
