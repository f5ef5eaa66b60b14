"""Rules of music as constraints on chord tokens: which keys sound, how many at once, how far a voice leaps.

Chord tokens are those of `gentf.data.midi.CHORDS`: 0 is the boundary, which ends a piece; 1..88 are the keys of a
piano from low to high; 89 ends a frame. Within a frame the notes ascend.
"""

from collections.abc import Iterator

import numpy as np

from gentf.errors import UserError
from gentf.sampling.constraints import MAX_STATES, Constraint, from_transitions

KEYS = 88
VOCABULARY = KEYS + 2
BOUNDARY, FRAME_END = 0, VOCABULARY - 1
LEAPS = ("bass", "top")

# What has been written, as far as the rule asks: frames ended (without a number of frames: 0 for nothing, else 1); the
# voice that must not leap, in the last frame that had a note; the note of that voice in this frame; its last note; how
# many notes it has (counted up to what matters). Notes are 0..87, -1 is none.
_State = tuple[int, int, int, int, int]


def chord_rules(
    pitches: np.ndarray,
    voices: tuple[int, int] = (0, KEYS),
    max_leap: int | None = None,
    *,
    leap_of: str = "bass",
    frames: int | None = None,
    max_states: int = MAX_STATES,
) -> Constraint:
    """The pieces of one frame or more in which every frame ascends, and obeys what is asked.

    Without `voices` and `max_leap` there are as many states as keys; a number of voices multiplies that by itself, a
    leap by half the keys, `frames` by their number. A leap is affordable in four voices over all 88 keys, or over the
    notes of one key from 48 to 81 in 16 frames.

    Args:
        pitches: (88,) bool, the keys that may sound; key i is MIDI pitch 21 + i.
        voices: least and most notes of a frame, 0 <= least <= most.
        max_leap: semitones between frames, >= 0, that one voice may move at most; None for no bound. A frame without
            notes is passed over: the voice goes on from where it last sounded.
        leap_of: which voice: "bass", the lowest note of a frame, or "top", the highest.
        frames: exactly so many, >= 1; None for any number.
        max_states: bound on the states.
    Returns:
        A constraint over 90 tokens, whose stop token is the boundary.
    Raises:
        ValueError: an argument outside these ranges.
        UserError: no piece obeys, or more states than `max_states`.
    """
    allowed = np.asarray(pitches)
    if allowed.dtype != bool or allowed.shape != (KEYS,):
        raise ValueError(f"`pitches` must be ({KEYS},) bool. Received: {allowed.dtype} of shape {allowed.shape}")
    least, most = voices
    if not 0 <= least <= most:
        raise ValueError(f"`voices` must be 0 <= least <= most. Received: voices={voices}")
    if max_leap is not None and max_leap < 0:
        raise ValueError(f"`max_leap` must be at least 0. Received: max_leap={max_leap}")
    if leap_of not in LEAPS:
        raise ValueError(f"`leap_of` must be one of {', '.join(LEAPS)}. Received: leap_of={leap_of!r}")
    if frames is not None and frames < 1:
        raise ValueError(f"`frames` must be positive. Received: frames={frames}")
    notes = np.flatnonzero(allowed).tolist()
    if len(notes) < least:
        raise UserError(f"`voices` must be at most the {len(notes)} keys that may sound. Received: voices={voices}")

    counted = most if most < len(notes) else least  # beyond it, one note more changes nothing
    bass, top = (max_leap is not None and leap_of == voice for voice in LEAPS)

    def follow(state: _State) -> Iterator[tuple[int, _State]]:
        """Each token that may come next, and the state after it."""
        ended, before, voice, last, count = state
        if frames is not None and ended == frames:
            return
        bound = max_leap if before >= 0 else None
        for note in notes if count < most else ():
            first = last < 0
            if note <= last or (bass and first and bound is not None and abs(note - before) > bound):
                continue
            # a note from which the top can no longer be near enough: dropped here, it costs no states
            if top and bound is not None and (note > before + bound or (count + 1 == most and note < before - bound)):
                continue
            now = (note if first else voice) if bass else -1
            # once this frame has its bass, that of the frame before no longer matters
            count_now = min(count + 1, counted)
            yield 1 + note, (1 if frames is None else ended, -1 if bass else before, now, note, count_now)
        if count >= least and not (top and last >= 0 and bound is not None and abs(last - before) > bound):
            sounded = (voice if bass else last if top else -1) if last >= 0 else before
            yield FRAME_END, (min(ended + 1, frames or 1), sounded, -1, -1, 0)

    states: dict[_State, int] = {(0, -1, -1, -1, 0): 0}
    pending, rows = list(states), []
    for state in pending:  # grows while it is gone through
        row = np.full(VOCABULARY, -1, np.int32)
        for token, after in follow(state):
            if after not in states:
                if len(states) == max_states - 1:  # one more is the final state
                    raise UserError(
                        f"musical rules must take at most max_states={max_states} states: ask for fewer pitches, "
                        f"voices or frames. Received: {len(notes)} pitches, voices={voices}, "
                        f"max_leap={max_leap}, frames={frames}"
                    )
                states[after] = len(states)
                pending.append(after)
            row[token] = states[after]
        rows.append(row)
    accepting = np.array([last < 0 and ended == (frames or 1) for ended, _, _, last, _ in pending])
    if not accepting.any():
        raise UserError(f"musical rules must allow a piece. Received: {len(notes)} pitches, voices={voices}")
    return from_transitions(np.stack(rows), accepting, stop=BOUNDARY)
