import os
import pickle
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from niseg_gpu.errors import UserError
from niseg_gpu.io.raw import RawFrames

few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ALL = (slice(None),) * 3


def write(folder, values, *, lead=7):
    """Two frames a file, each behind `lead` bytes."""
    paths, offsets = [], []
    for i in range(0, len(values), 2):
        path = folder / f"{i}.bin"
        path.write_bytes(b"".join(b"\xff" * lead + frame.tobytes() for frame in values[i : i + 2]))
        for j in range(len(values[i : i + 2])):
            paths.append(str(path))
            offsets.append(lead + j * (lead + values[0].nbytes))
    return {"paths": paths, "offsets": offsets, "frame_shape": values.shape[1:], "stored": values.dtype}


@st.composite
def slices(draw, shape):
    return tuple(slice(*sorted((draw(st.integers(0, n)), draw(st.integers(0, n))))) for n in shape)


@few
@given(
    values=hnp.arrays(
        st.sampled_from(["u1", "<i2", ">i2", ">u2", "<u4", ">i4", ">i8", "<f4", ">f4", ">f8"]),
        hnp.array_shapes(min_dims=3, max_dims=3, max_side=6),
    ),
    data=st.data(),
)
def test_any_slice_is_what_was_stored(tmp_path, values, data):
    frames = RawFrames(**write(tmp_path, values))
    key = data.draw(slices(values.shape))
    got = frames[key]
    assert got.dtype == frames.dtype == values.dtype.newbyteorder("=") and got.dtype.isnative
    assert frames.shape == values.shape
    np.testing.assert_array_equal(got, values[key])


@pytest.mark.parametrize(
    ("stored", "zero", "expected"),
    [
        (">i2", 32768.0, "u2"),
        (">i4", 2147483648.0, "u4"),
        (">i8", 9223372036854775808.0, "u8"),
        ("<i2", 32768.0, "u2"),
        ("u1", -128.0, "i1"),
    ],
)
def test_zero_that_turns_the_sign_keeps_integers(tmp_path, stored, zero, expected):
    info = np.iinfo(stored)
    values = np.array([info.min, info.min + 1, info.max // 2, info.max - 1, info.max, 1], stored).reshape(1, 2, 3)
    frames = RawFrames(**write(tmp_path, values), zero=zero)
    meant = [int(v) + int(zero) for v in values.ravel()]  # Python's integers do not wrap
    assert frames.dtype == expected
    assert frames[ALL].ravel().tolist() == meant
    assert frames[:, 1:, 1:2].ravel().tolist() == meant[4:5]


@pytest.mark.parametrize(
    ("stored", "expected"), [("u1", "f4"), (">i2", "f4"), (">i4", "f8"), (">f4", "f4"), (">f8", "f8")]
)
def test_scale_zero_and_blank(tmp_path, stored, expected):
    values = np.array([[[0, 1, 2], [3, 100, 120]]], stored)
    frames = RawFrames(**write(tmp_path, values), scale=0.5, zero=-3.25, blank=3)
    got = frames[ALL]
    meant = values.astype("f8") * 0.5 - 3.25
    if values.dtype.kind != "f":  # floating point values have NaN, and so no blank
        meant[0, 1, 0] = np.nan
    assert got.dtype == frames.dtype == expected
    np.testing.assert_array_equal(got, meant)


def test_large_integers_keep_their_digits_beside_a_blank(tmp_path):
    values = np.array([[[2**24 + 1, -7]]], ">i4")
    got = RawFrames(**write(tmp_path, values), blank=-7)[ALL]
    assert got[0, 0, 0] == 2**24 + 1 and np.isnan(got[0, 0, 1])


def test_only_the_rows_asked_for_are_read(tmp_path, monkeypatch):
    values = np.arange(3 * 50 * 40, dtype=">i2").reshape(3, 50, 40)
    frames = RawFrames(**write(tmp_path, values))
    read, preadv = [], os.preadv
    monkeypatch.setattr(os, "preadv", lambda *args: read.append(preadv(*args)) or read[-1])
    np.testing.assert_array_equal(frames[1:3, 10:12, 5:9], values[1:3, 10:12, 5:9])
    assert sum(read) == 2 * 2 * 40 * 2


def test_short_reads_are_continued(tmp_path, monkeypatch):
    values = np.arange(2 * 5 * 7, dtype=">i4").reshape(2, 5, 7)
    frames, preadv = RawFrames(**write(tmp_path, values)), os.preadv
    monkeypatch.setattr(os, "preadv", lambda handle, views, offset: preadv(handle, [views[0][:9]], offset))
    np.testing.assert_array_equal(frames[ALL], values)


def test_handles_are_closed(tmp_path):
    frames = RawFrames(**write(tmp_path, np.zeros((6, 2, 2), ">i2")))
    before = len(os.listdir("/proc/self/fd"))
    frames[ALL]
    os.truncate(frames.paths[-1], 10)
    with pytest.raises(UserError):
        frames[ALL]
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_shrank_or_went_is_named(tmp_path):
    frames = RawFrames(**write(tmp_path, np.zeros((6, 4, 4), ">i2")))
    os.truncate(tmp_path / "2.bin", 60)
    (tmp_path / "4.bin").unlink()
    assert frames[:2, :, :].shape == (2, 4, 4)
    with pytest.raises(UserError, match=r"2\.bin is truncated: its frame ends at byte 78, the file at byte 60; copy"):
        frames[2:4, :, :]
    with pytest.raises(UserError, match=r"can't read .*4\.bin: No such file.*moved"):
        frames[4:, :, :]


def test_a_failing_disk_is_named(tmp_path, monkeypatch):
    frames = RawFrames(**write(tmp_path, np.zeros((1, 4, 4), ">i2")))

    def fail(*args):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(UserError, match=r"can't read .*0\.bin: Input/output error"):
        frames[ALL]


def test_pickle_and_threads(tmp_path):
    values = np.arange(40 * 8 * 8, dtype=">i2").reshape(40, 8, 8)
    frames = pickle.loads(pickle.dumps(RawFrames(**write(tmp_path, values))))
    wrong = []

    def read(seed):
        for first in np.random.default_rng(seed).integers(0, 38, 30):
            if not np.array_equal(frames[first : first + 2, :, :], values[first : first + 2]):
                wrong.append(first)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not wrong
