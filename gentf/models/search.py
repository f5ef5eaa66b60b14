"""Beam search and speculative sampling, as methods of models of sequences."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gentf.models.prompts import Codec, cut_before
from gentf.sampling import beam, speculative
from gentf.sampling.constraints import Constraint
from gentf.sampling.generate import Generator


class Searches:
    """A part of `SequenceModel`, which has what is named here."""

    vocabulary: int
    tokenizer: Any
    num_classes: int
    generator: Callable[[bool], Generator]
    _codec: Callable[[], Codec]
    _prompt_room: Callable[[int], int | None]
    _request: Callable[..., Any]

    def beam(
        self,
        prompts: Sequence[Any],
        *,
        width: int = 4,
        max_length: int = 256,
        length_penalty: float = 0.0,
        condition: Any = None,
        stop: Sequence[str] = (),
        constraint: Constraint | None = None,
        jit: bool = False,
    ) -> list[list[tuple[Any, float]]]:
        """The likeliest sequences that go on from each prompt, by beam search: see `gentf.sampling.beam`.

        Args:
            prompts: n texts, or arrays of tokens.
            width: hypotheses that are kept, and given back, a prompt.
            max_length: tokens of each, at most, an end token included.
            length_penalty: >= 0; more prefers longer ones.
            condition: a class, or one a prompt, of a conditional model.
            stop, constraint, jit: as of `sample`.
        Returns:
            For each prompt texts or arrays of tokens, without the prompt, with their scores, best first. There are
            fewer than `width` where a constraint allows fewer.
        """
        if not self.vocabulary:
            raise ValueError("`beam` needs a model of tokens. Received: a model of frames")
        if self.num_classes and condition is None:
            raise ValueError("`condition` must be given. Received: condition=None")
        room = self._prompt_room(max_length)
        symbols, labels, rules, _ = self._request(prompts, None, room, max_length, condition, stop, constraint, {})
        found = beam.search(self.generator(jit), symbols, width, max_length, rules, length_penalty, labels)
        codec, rows = self._codec(), []
        for tokens, lengths, scores in zip(found.tokens, found.lengths, found.scores):
            texts = [codec.decode(row[:length]) for row, length in zip(tokens, lengths)]
            texts = [cut_before(text, stop) for text in texts] if stop else texts
            rows.append([pair for pair in zip(texts, scores.tolist()) if pair[1] > -math.inf])
        return rows

    def speculate(
        self,
        prompts: Sequence[Any],
        draft: Any,
        *,
        seeds: np.ndarray,
        max_length: int = 256,
        ahead: int = 4,
        condition: Any = None,
        stop: Sequence[str] = (),
        constraint: Constraint | None = None,
        jit: bool = False,
        **controls: Any,
    ) -> speculative.Speculated:
        """Symbols of the distribution of `generate`, sooner, with the help of a smaller model of the same tokens.

        Args:
            prompts, seeds, max_length, condition, stop, constraint, jit, controls: as of `generate`.
            draft: proposes tokens: any model of sequences with the same tokenizer and classes.
            ahead: tokens that it proposes at a time.
        Returns:
            See `gentf.sampling.speculative`.
        Raises:
            ValueError: this model's state cannot be taken back, as that of a recurrent one, or another kind of draft.
        """
        if not self.vocabulary:
            raise ValueError("`speculate` needs a model of tokens. Received: a model of frames")
        theirs = (draft.vocabulary, draft.tokenizer, draft.num_classes)
        if theirs != (self.vocabulary, self.tokenizer, self.num_classes):
            raise ValueError(
                f"`draft` must have the tokenizer, {self.vocabulary} tokens and {self.num_classes} classes of "
                f"this model. Received: {draft.vocabulary} tokens, {draft.num_classes} classes"
            )
        # learned positions must reach as far as what is proposed
        rooms = [room for model in (self, draft) if (room := model._prompt_room(max_length + ahead)) is not None]
        symbols, labels, rules, chosen = self._request(
            prompts, seeds, min(rooms, default=None), max_length, condition, stop, constraint, controls
        )
        make = self.generator(jit)
        return speculative.generate(make, draft.decoder, symbols, seeds, max_length, ahead, chosen, rules, labels)
