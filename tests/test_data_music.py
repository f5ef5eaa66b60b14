"""Piano rolls: MIDI files, tokens, sets of pieces."""

import json
import os
import struct
import time
import tracemalloc
import zlib
from functools import partial
from pathlib import Path

import mido
import numpy as np
import pytest
import scipy.io
from rolls import FRAMES, NOTE_ROLL, ROLLS, SILENCE, SPLITS, random_roll, refused, roll_of, same, wrong

from gentf.data import midi, music
from gentf.data.midi import CHORDS, EVENTS, from_chords, from_events, read_midi, to_chords, to_events, write_midi
from gentf.data.music import Rolls, cut, pad_rolls, picture, read_rolls, write_rolls
from gentf.errors import UserError
from gentf.metrics.frames import bernoulli_nats, markov_nats

REAL = Path(os.environ.get("GENTF_TEST_DATA", "nowhere")) / "music"
MAT_KEYS, JSON_KEYS = ("traindata", "validdata", "testdata"), "train valid test"


@pytest.fixture
def saved(tmp_path):
    def save(content, name="a.mid"):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return save


# MIDI files


def chunk(name, content):
    return name + struct.pack(">I", len(content)) + content


def midi_bytes(*tracks, form=1, division=96, count=None):
    header = struct.pack(">HHH", form, len(tracks) if count is None else count, division)
    return chunk(b"MThd", header) + b"".join(chunk(b"MTrk", track) for track in tracks)


def all_at_once(status, *pitches):
    return b"".join(bytes((0, status, pitch, 64)) for pitch in pitches)


END, NOTE = b"\x00\xff\x2f\x00", b"\x00\x90\x3c\x40\x18\x80\x3c\x40"


def test_a_file_written_by_hand(saved):
    tempo = b"\x00\xff\x51\x03\x07\xa1\x20" + END
    notes = b"\x00\xc0\x05\x00\x90\x3c\x40"  # program; 60 on
    notes += b"\x18\x40\x40\x00\xff\x06\x01x"  # a frame later, running status: 64 on; a marker
    notes += b"\x18\x3c\x00\x00\xf0\x02\x01\xf7"  # running status again: 60 off, by velocity 0; system exclusive
    notes += b"\x81\x40\x80\x40\x40\x00\x99\x24\x7f" + END  # 192 ticks later: 64 off; a drum
    late = b"\x30\xe1\x00\x40\x00\x91\x43\x01\x18\x81\x43\x00\x48\xff\x2f\x00"  # bend; 67 in frame 2; end at frame 6
    content = midi_bytes(tempo, notes, late)
    expected = roll_of([60], [60, 64], [64, 67], *[[64]] * 7)
    same(read_midi(saved(content)), expected)
    same(read_midi(saved(content), 2), roll_of([60], [64, 67], [64], [64], [64]))


@pytest.mark.parametrize(
    "track, expected",
    [  # 11..13 and 12..13 of 24 ticks: a half goes up, a short note keeps a frame
        (b"\x0b\x90\x3c\x40\x01\x40\x40\x01\x80\x3c\x40\x00\x40\x40" + END, [[60], [64]]),
        # 60 goes on twice and off once, 65 only off, 62 only on
        (
            b"\x00\x90\x3c\x40\x18\x3c\x40\x18\x3e\x40\x18\x80\x3c\x40\x00\x41\x40\x18\xff\x2f\x00",
            [[60], [60], [60, 62], [62]],
        ),
    ],
)
def test_notes_off_the_grid_and_notes_not_ended(saved, track, expected):
    same(read_midi(saved(midi_bytes(track))), roll_of(*expected))


def test_pitches_outside_are_left_out_and_counted(saved):
    path = saved(midi_bytes(all_at_once(0x90, 20, 21, 60, 108, 109, 127) + b"\x18\xff\x2f\x00"))
    with pytest.warns(UserWarning, match="left out 3 notes outside pitches 21..108"):
        same(read_midi(path), roll_of([21, 60, 108]))


@pytest.mark.parametrize("steps", [1, 4, 7, 960])
def test_what_is_written_is_read_back(tmp_path, steps):
    for roll in ROLLS:
        write_midi(roll, tmp_path / "a.mid", steps_per_quarter=steps)
        same(read_midi(tmp_path / "a.mid", steps), roll)


def test_held_notes_are_one_note_and_the_tempo_is_written(tmp_path):
    write_midi(roll_of([60], [60, 64], [60], [], [60]), tmp_path / "a.mid", tempo=120)
    file = mido.MidiFile(tmp_path / "a.mid")
    assert [message.note for message in file.tracks[0] if message.type == "note_on"] == [60, 64, 60]
    assert [message.tempo for message in file.tracks[0] if message.type == "set_tempo"] == [500_000]


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "the file is empty"),
        (b"RIFF" + bytes(20), "not a MIDI file"),
        (b"MThd\0\0", "the file is cut short"),
        (midi_bytes(NOTE + END)[:-1], "the file is cut short"),
        (midi_bytes(NOTE + END, count=3), "the file is cut short"),
        (midi_bytes(NOTE[:-1]), "the file is cut short"),
        (midi_bytes(b"\x00\xff\x01\x7fabc"), "the file is cut short"),
        (midi_bytes(b"\x00\xf0\x7fabc"), "the file is cut short"),
        (midi_bytes(b"\x00\x90\x3c\x80"), "damaged (data byte must be in range 0..127)"),
        (midi_bytes(b"\x00\x3c\x40"), "damaged (running status without last_status)"),
        (midi_bytes(NOTE, form=2), "format must be 0 or 1. Received: 2"),
        (midi_bytes(NOTE, division=0xE728), "time must be in ticks a quarter note, 1..32767. Received: -6360"),
        (midi_bytes(NOTE, division=0), "time must be in ticks a quarter note, 1..32767. Received: 0"),
        (midi_bytes(END), "the file holds no notes"),
        (midi_bytes(b"\xff\xff\xff\x7f" + NOTE[1:]), "longer than 262144 frames at 4 a quarter note"),
        (midi_bytes(NOTE + b"\xff\xff\xff\x7f\xff\x2f\x00"), "longer than 262144 frames at 4 a quarter note"),
    ],
)
def test_bad_midi_files(saved, content, reason):
    path = saved(content)
    assert refused(read_midi, path) == f"cannot read {path}: {reason}"


def test_midi_files_are_bounded(tmp_path, saved, monkeypatch):
    assert refused(read_midi, tmp_path / "no.mid") == f"cannot read {tmp_path}/no.mid: No such file or directory"
    pitches, start = range(21, 109), time.monotonic()
    track = all_at_once(0x90, *pitches) + b"\xdf\x80\x00" + all_at_once(0x80, *pitches)[1:]  # 1,556,480 ticks
    roll = read_midi(saved(midi_bytes(*[track] * 100)))
    assert roll.shape == (64853, 88) and roll.all()
    assert time.monotonic() - start < 5  # filled one by one, so many long notes take half a minute
    monkeypatch.setattr(midi, "MAX_MIDI_BYTES", 20)
    assert "must have at most 20 bytes" in refused(read_midi, saved(midi_bytes(NOTE)))


def test_bad_arguments_of_midi_files(saved):
    path = saved(midi_bytes(NOTE + END))
    before = path.read_bytes()
    for steps in (0, 961, 1.5):
        assert "`steps_per_quarter` must be" in wrong(read_midi, path, steps)
        assert "`steps_per_quarter` must be" in wrong(write_midi, NOTE_ROLL, path, steps_per_quarter=steps)
    for tempo in (3.9, 1001, float("nan")):
        assert "`tempo` must be in 4..1000" in wrong(write_midi, NOTE_ROLL, path, tempo=tempo)
    assert "1 to 262143 frames. Received: 0" in wrong(write_midi, FRAMES[:0], path)
    for bad in (np.zeros((2, 87)), np.zeros(88), np.zeros((1, 88), complex), np.zeros((1, 88), object)):
        assert "`roll` must be a real array of shape (T, 88)" in wrong(write_midi, bad, path)
    for value in (2, -1, 0.5, float("nan")):
        assert "`roll` must hold only 0 and 1. Received: 88" in wrong(write_midi, np.full((1, 88), value), path)
    assert path.read_bytes() == before


# Tokens


@pytest.mark.parametrize(
    "forth, back, roll, expected",
    [
        (
            *(to_events, from_events, roll_of([], [21, 60], [60], *[[60]] * 64, [61], [])),
            [177, 1, 40, 177, 89, 208, 208, 177, 128, 41, 177, 129, 177],
        ),
        (to_chords, from_chords, roll_of([60, 21], [], [108]), [1, 40, 89, 89, 88, 89]),
    ],
)
def test_tokens_by_hand(forth, back, roll, expected):
    assert forth(roll).dtype == np.int32 and forth(roll).tolist() == expected
    same(back(expected), roll)


def test_names_of_tokens():
    assert [EVENTS[token] for token in (0, 1, 40, 88, 89)] == ["boundary", "on A0", "on C4", "on C8", "off A0"]
    assert [EVENTS[token] for token in (128, 176, 177, 208)] == ["off C4", "off C8", "shift 1", "shift 32"]
    assert [CHORDS[token] for token in (0, 1, 40, 88, 89)] == ["boundary", "A0", "C4", "C8", "frame end"]
    assert len(EVENTS) == len(set(EVENTS)) == 209 and len(CHORDS) == len(set(CHORDS)) == 90


@pytest.mark.parametrize("forth, back, size", [(to_events, from_events, 209), (to_chords, from_chords, 90)])
def test_tokens_are_inverted(forth, back, size):
    for roll in (*ROLLS, FRAMES[:0]):
        for tokens in (forth(roll), np.concatenate([[0], forth(roll), [0, 5, 0]])):
            assert back(tokens).dtype == np.uint8
            same(back(tokens), roll)
    assert back([]).shape == back([0, 0]).shape == (0, 88)
    assert f"`tokens` must lie in 0..{size - 1}. Received: 1..{size}" in wrong(back, [1, size])
    assert "Received: -1..3" in wrong(back, [3, -1])
    assert "`tokens` must be integers" in wrong(back, [1.0]) and "shape=(1, 2)" in wrong(back, [[1, 2]])


def test_tokens_that_a_model_made():
    random = np.random.default_rng(0)
    for _ in range(20):
        tokens, frames, sounding = random.choice([1, 2, 3, 89, 90, 91, 177, 179], 40), [], set()
        for token in tokens:
            if token >= 177:
                frames += [sorted(sounding)] * (token - 176)
            elif token >= 89:
                sounding.discard(token - 89 + 21)
            else:
                sounding.add(token - 1 + 21)
        same(from_events(tokens), roll_of(*frames))
    same(from_chords([40, 1, 40, 89, 44]), roll_of([21, 60]))  # the last frame has no end
    assert "at most 8388608 frames" in wrong(from_events, np.full(2**18 + 1, 208))


# Sets of pieces

SMALL = Rolls([random_roll(0), random_roll(1, 20)], [random_roll(2, 9)], [random_roll(3, 10), NOTE_ROLL], "small")


def assert_same(found, expected):
    for left, right in ((getattr(found, split), getattr(expected, split)) for split in SPLITS):
        assert (left is None) == (right is None) and len(left or []) == len(right or [])
        for one, two in zip(left or [], right or []):
            assert one.dtype == np.uint8
            same(one, two)


def save_mat(path, pieces=SMALL, compress=False, dtype=np.uint8, **extra):
    for key, split in zip(MAT_KEYS, SPLITS):
        extra[key] = np.empty((1, len(getattr(pieces, split))), object)
        extra[key][0, :] = [piece.astype(dtype) for piece in getattr(pieces, split)] or None
    scipy.io.savemat(path, extra, do_compression=compress)
    return path


def save_json(path):
    splits = ([[np.flatnonzero(f) + 21 for f in piece] for piece in getattr(SMALL, split)] for split in SPLITS)
    path.write_text(json.dumps(dict(zip(JSON_KEYS.split(), splits)), default=np.ndarray.tolist))
    return path


def save_npz(path, pieces=SMALL):
    write_rolls(pieces, path)
    return path


SAVERS = {"a.mat": save_mat, "b.mat": partial(save_mat, compress=True), "a.npz": save_npz, "a.json": save_json}


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, bool, np.int32, np.float64])
def test_mat_files(tmp_path, compress, dtype):
    found = read_rolls(save_mat(tmp_path / "set.mat", compress=compress, dtype=dtype, other="text"))
    assert_same(found, SMALL)
    assert found.name == "set" and found.licence == "not stated"


def mat_element(kind, content, order="<"):
    return struct.pack(f"{order}II", kind, len(content)) + content + bytes(-len(content) % 8)


def mat_matrix(mat_class, shape, name, content, order="<"):
    head = mat_element(6, struct.pack(f"{order}II", mat_class, 0), order)
    head += mat_element(5, struct.pack(f"{order}{len(shape)}i", *shape), order) + mat_element(1, name.encode(), order)
    return mat_element(14, head + content, order)


def mat_file(*matrices, order="<"):
    version = b"\x00\x01IM" if order == "<" else b"\x01\x00MI"
    return b"MATLAB 5.0 MAT-file".ljust(124) + version + b"".join(matrices)


def test_a_mat_file_of_the_other_byte_order(saved):
    def cell(piece):
        return mat_matrix(6, piece.shape, "", mat_element(9, piece.astype(">f8").tobytes(order="F"), ">"), ">")

    splits = [getattr(SMALL, split) for split in SPLITS]
    matrices = [mat_matrix(1, (1, len(s)), key, b"".join(map(cell, s)), ">") for key, s in zip(MAT_KEYS, splits)]
    assert_same(read_rolls(saved(mat_file(*matrices, order=">"), "big.mat")), SMALL)


@pytest.mark.parametrize(
    "lie",
    [
        mat_matrix(1, (1, 1), "traindata", mat_matrix(1, (1, 2**31 - 1), "", b"")),
        mat_matrix(1, (1, 2**31 - 1), "traindata", b""),
        mat_matrix(1, (1, 1), "traindata", mat_matrix(9, (2**30, 88), "", mat_element(2, b"\0" * 8))),
        struct.pack("<II", 14, 2**32 - 1) + bytes(16),
    ],
)
def test_a_mat_file_that_claims_more_than_it_holds(saved, lie):
    path = saved(mat_file(lie), "lie.mat")
    tracemalloc.start()
    message = refused(read_rolls, path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert message.startswith(f"cannot read {path}: ") and peak < 10**6


def test_json_and_npz_files(tmp_path):
    assert_same(read_rolls(save_json(tmp_path / "set.json")), SMALL)
    (tmp_path / "set.json").write_text('{"train": [[[60, -1], [62.0]]], "valid": [], "test": [[[]]]}')
    assert_same(read_rolls(tmp_path / "set.json"), Rolls([roll_of([60], [62])], [], [roll_of([])], "set"))
    assert_same(read_rolls(save_npz(tmp_path / "set.npz")), SMALL)
    unsplit = Rolls(SMALL.train, None, None, "unsplit")
    assert_same(read_rolls(save_npz(tmp_path / "set.npz", unsplit)), unsplit)
    assert "must end in .npz" in wrong(write_rolls, SMALL, tmp_path / "set.mat")
    bad = Rolls([np.zeros((3, 4))], None, None, "bad")
    assert "`train[0]` must be a real array" in wrong(write_rolls, bad, tmp_path / "set.npz")


def test_folders_of_midi_files(tmp_path):
    folder = tmp_path / "songs"
    (folder / "b").mkdir(parents=True)
    assert f"{folder} holds no MIDI files" in refused(read_rolls, folder)
    write_midi(ROLLS[0], folder / "c.mid")
    write_midi(ROLLS[1], folder / "b/z.MIDI")
    (folder / "notes.txt").write_text("no music")
    found, expected = read_rolls(folder), Rolls([ROLLS[1], ROLLS[0]], None, None, "songs")
    assert_same(found, expected)
    assert found.name == "songs"
    write_midi(SILENCE, folder / "silent.mid")
    (folder / "low.mid").write_bytes(midi_bytes(all_at_once(0x90, 5, 6) + b"\x18\xff\x2f\x00"))
    with pytest.warns(UserWarning, match="left out 2 notes outside pitches 21..108 and 2 files without notes"):
        assert_same(read_rolls(folder), expected)
    assert_same(read_rolls(folder / "c.mid"), Rolls([ROLLS[0]], None, None, "c"))
    assert "silent.mid holds no notes in pitches 21..108" in refused(read_rolls, folder / "silent.mid")
    (folder / "bad.mid").write_bytes(b"MT")
    assert refused(read_rolls, folder) == f"cannot read {folder}/bad.mid: not a MIDI file"
    assert refused(read_rolls, tmp_path / "a.mat") == f"no file is called {tmp_path}/a.mat"
    assert "or a file of kind .mat, .npz, .json, .mid or .midi. Received: path=a.wav" in refused(read_rolls, "a.wav")


@pytest.mark.parametrize("name", SAVERS)
def test_damaged_files(tmp_path, name):
    path = SAVERS[name](tmp_path / name)
    data, random, refusals = path.read_bytes(), np.random.default_rng(0), 0
    for trial in range(200):
        short = trial % 4 == 0
        damaged = bytearray(data[: random.integers(len(data))] if short else data)
        if not short:
            area = min(len(data), int(random.choice([200, len(data)])))
            for place in random.integers(0, area, random.choice([1, 3, 20])):
                damaged[place] = random.choice([0, 127, 128, 255, random.integers(256)])
        path.write_bytes(damaged)
        try:
            read_rolls(path)
        except UserError as error:
            refusals += 1
            assert str(error).startswith(f"cannot read {path}: ") and str(error).isprintable()
        else:
            assert not short
    assert refusals > 100


@pytest.mark.parametrize("name", [*SAVERS, "songs/a.mid"])
def test_sets_are_bounded(tmp_path, monkeypatch, name):
    SAVERS.get(name, lambda path: write_midi(ROLLS[0], path))(tmp_path / name)
    path = tmp_path / name.split("/")[0]
    monkeypatch.setattr(music, "MAX_SET_FRAMES", 30)
    assert any(word in refused(read_rolls, path) for word in ("more than 30 frames", "at most 30 frames", "too many"))
    monkeypatch.setattr(music, "MAX_FILE_BYTES", 30)
    assert path.is_dir() or "bytes, more than 30" in refused(read_rolls, path)


def npz(train, train_length, **others):
    return lambda path: np.savez(path, train=train, train_length=train_length, **others)


VALID = ', "valid": [], "test": []}'
LETTERS = mat_matrix(4, (1, 1), "", mat_element(4, b"ab"))
SHORT = struct.pack("<II", 15, 4) + zlib.compress(b"abc")[:4]
BAD_SETS = [
    ("a.npz", lambda path: np.savez(path, other=FRAMES), "arrays `train` and `train_length`. Received: other"),
    ("a.npz", npz(FRAMES, [3], test=FRAMES), "`test` and `test_length`"),
    ("a.npz", npz(FRAMES, [2]), "must sum to the 3 frames. Received: 2"),
    ("a.npz", npz(FRAMES, [4, -1]), "must be positive integers"),
    ("a.npz", npz(FRAMES, [[3]]), "must be positive integers"),
    ("a.npz", npz(FRAMES[:, :5], [3]), "`train` must be a real array of shape (T, 88)"),
    ("a.npz", npz(FRAMES + 2, [3]), "`train` must hold only 0 and 1"),
    ("a.npz", npz(FRAMES.astype(float), [3]), "must be integers. Received: dtype=float64"),
    ("a.npz", npz(FRAMES.astype(object), [3]), "Object arrays cannot be loaded"),
    ("a.npz", npz(FRAMES[:0], np.zeros(0, int)), "no pieces to train on"),
    ("a.npz", b"nothing", "File is not a zip file"),
    ("a.json", b"[" * 100_000, "recursion"),
    ("a.json", b"[1]", "an object of the lists train, valid, test"),
    ("a.json", '{"train": [], "valid": []}', "an object of the lists train, valid, test"),
    ("a.json", '{"train": []' + VALID, "no pieces to train on"),
    ("a.json", '{"train": [[]]' + VALID, "piece 0 of train has no frames"),
    ("a.json", '{"train": [[60]]' + VALID, "piece 0 of train must be a list of frames"),
    ("a.json", '{"train": [[[60], [20]]]' + VALID, "frame 1: pitches must be integers in 21..108, or -1"),
    *(("a.json", f'{{"train": [[[{bad}]]]{VALID}', "Received: ") for bad in ("109", "60.5", "NaN", "true", '"60"')),
    ("a.mat", b"", "not a MATLAB level 5 file, or it is cut short"),
    ("a.mat", b"\x89HDF" + bytes(200), "it is a MATLAB 7.3 file: save it with -v7"),
    ("a.mat", mat_file(), "traindata, validdata, testdata. Received: none"),
    ("a.mat", mat_file(mat_element(14, bytes(24))), "an array without its header"),
    ("a.mat", mat_file(mat_matrix(9, (3, 88), "traindata", b"")), "`traindata` must be a cell array"),
    ("a.mat", mat_file(mat_matrix(1, (1, 1), "testdata", mat_element(14, b""))), "`testdata[0]` is empty"),
    ("a.mat", mat_file(mat_matrix(1, (1, 1), "testdata", LETTERS)), "`testdata[0]` must be a full numeric matrix"),
    ("a.mat", mat_file(SHORT), "a compressed part is cut short"),
    ("a.mat", partial(save_mat, pieces=Rolls([FRAMES + 2], [], [], "")), "must hold only 0 and 1"),
    ("a.mat", partial(save_mat, pieces=Rolls([FRAMES[:, :9]], [], [], "")), "must be a real array of shape (T, 88)"),
]


@pytest.mark.parametrize("name, content, reason", BAD_SETS)
def test_bad_sets(tmp_path, name, content, reason):
    path = tmp_path / name
    content(path) if callable(content) else path.write_bytes(content.encode() if isinstance(content, str) else content)
    message = refused(read_rolls, path)
    assert message.startswith(f"cannot read {path}: ") and reason in message


def test_padding_and_cutting():
    pieces = [random_roll(0, 7), random_roll(1, 3), random_roll(2, 6)]
    padded = pad_rolls(pieces)
    assert padded["frames"].shape == (3, 7, 88) and padded["frames"].dtype == np.uint8
    assert padded["length"].tolist() == [7, 3, 6] and padded["length"].dtype == np.int32
    for row, piece in zip(padded["frames"], pieces):
        same(row, np.concatenate([piece, SILENCE[: 7 - len(piece)]]))
    assert [len(part) for part in cut(pieces, 3)] == [3, 3, 1, 3, 3, 3]
    same(np.concatenate(cut(pieces, 3)), np.concatenate(pieces))
    assert "`length` must be positive" in wrong(cut, pieces, 0) and "at least one roll" in wrong(pad_rolls, [])
    assert "`pieces[1]` must be a real array" in wrong(pad_rolls, [pieces[0], pieces[0][0]])
    assert "`pieces[0]` must hold only 0 and 1" in wrong(cut, [pieces[0] * 2], 3)


def test_pictures():
    image = picture(roll_of([60], [61], []), low=60, high=62)
    assert image.dtype == np.uint8 and image.shape == (6, 6, 1)
    same(image[::2, ::2, 0], [[255, 255, 255], [225, 0, 225], [0, 255, 255]])
    same(image[1::2, 1::2], image[::2, ::2])
    assert picture(NOTE_ROLL, scale=3).shape == (264, 3, 1)
    assert "`scale` must be at least 2" in wrong(picture, NOTE_ROLL, scale=1)
    assert "at least one frame" in wrong(picture, FRAMES[:0])
    for bad in ({"low": 70, "high": 60}, {"high": 109}, {"low": 20}):
        assert "`low` and `high` must be" in wrong(picture, NOTE_ROLL, **bad)


# Published sets


@pytest.mark.data
@pytest.mark.skipif(not REAL.is_dir(), reason="needs music in GENTF_TEST_DATA")
@pytest.mark.parametrize(
    "name, pieces, frames, unigram, markov",
    [
        ("JSB_Chorales", [229, 76, 77], [13807, 4602, 4725], 11.06, 10.49),
        ("Nottingham", [694, 173, 170], [176561, 45513, 44463], 10.25, 5.15),
    ],
)
def test_published_sets_and_their_baselines(name, pieces, frames, unigram, markov):
    path = REAL / "poly_music" / f"{name}.mat"
    rolls, stored = read_rolls(path), scipy.io.loadmat(path)
    splits = [getattr(rolls, split) for split in SPLITS]
    assert [len(split) for split in splits] == pieces and [sum(map(len, split)) for split in splits] == frames
    assert_same(rolls, Rolls(*(list(stored[key].ravel()) for key in MAT_KEYS), name))
    assert bernoulli_nats(rolls.train, rolls.test).value == pytest.approx(unigram, abs=0.005)
    assert markov_nats(rolls.train, rolls.test).value == pytest.approx(markov, abs=0.005)


@pytest.mark.data
@pytest.mark.skipif(not REAL.is_dir(), reason="needs music in GENTF_TEST_DATA")
def test_the_two_forms_of_bach_agree_and_survive_every_code(tmp_path):
    folder = REAL / "jsb-chorales"
    assert_same(read_rolls(folder / "jsb-chorales-quarter.json"), read_rolls(REAL / "poly_music/JSB_Chorales.mat"))
    for number, piece in enumerate(read_rolls(folder / "jsb-chorales-16th.json").test):
        same(from_events(to_events(piece)), piece)
        same(from_chords(to_chords(piece)), piece)
        if number < 10:
            write_midi(piece, tmp_path / "a.mid")
            same(read_midi(tmp_path / "a.mid"), piece)
