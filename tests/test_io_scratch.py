"""Rows in a file against the same rows in memory."""

from __future__ import annotations

import shutil
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from niseg_gpu.errors import UserError
from niseg_gpu.io.scratch import ScratchRows


@st.composite
def spans(draw: st.DrawFn, n: int) -> slice:
    ends = sorted(draw(st.tuples(st.integers(0, n), st.integers(0, n))))
    return slice(*ends) if draw(st.booleans()) else slice(None, ends[1])


@given(data=st.data(), n=st.integers(0, 40), width=st.integers(1, 9), dtype=st.sampled_from(["u1", "u2", "f4"]))
def test_parts_are_those_of_an_array(tmp_path_factory, data: st.DataObject, n: int, width: int, dtype: str) -> None:
    rng = np.random.default_rng(n)
    expected = rng.integers(0, 200, (n, width)).astype(dtype)
    rows = ScratchRows(tmp_path_factory.getbasetemp(), shape=(n, width), dtype=dtype)
    rows[:] = expected
    numbers = np.flatnonzero(rng.random(n) < 0.5)
    expected[numbers] = rng.integers(0, 200, (len(numbers), width))
    rows[numbers] = expected[numbers]
    span = data.draw(spans(n))
    expected[span] += 1
    rows[span] = expected[span]
    np.testing.assert_array_equal(rows.compute(), expected)
    part, columns, inner = data.draw(spans(n)), data.draw(spans(width)), data.draw(spans(n))
    for key in ((part, columns), (part,), part):
        found = rows[key][inner]
        assert (found.shape, found.nbytes, len(found)) == (
            expected[key][inner].shape,
            expected[key][inner].nbytes,
            len(expected[key][inner]),
        )
        np.testing.assert_array_equal(found.compute(scheduler="synchronous"), expected[key][inner])
        assert found.compute().dtype == expected.dtype


def test_a_part_is_written_in_its_own_place(tmp_path: Path) -> None:
    rows = ScratchRows(tmp_path, shape=(9, 2), dtype=np.float32)
    rows[3:7][1:3] = np.ones((2, 2))
    np.testing.assert_array_equal(np.flatnonzero(rows.compute()[:, 0]), [4, 5])
    assert not list(tmp_path.iterdir())  # it has no name, so that nothing is left of a program that is killed


def test_threads_may_write_beside_one_another(tmp_path: Path) -> None:
    expected = np.arange(64 * 1000, dtype=np.uint16).reshape(-1, 10)
    rows = ScratchRows(tmp_path, shape=expected.shape, dtype=expected.dtype)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: rows.__setitem__(slice(i, i + 10), expected[i : i + 10]), range(0, 6400, 10)))
        parts = list(pool.map(lambda i: rows[i : i + 100].compute(), range(0, 6400, 100)))
    np.testing.assert_array_equal(np.concatenate(parts), expected)


def test_too_little_room_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: namedtuple("usage", "free")(10**6))
    with pytest.raises(UserError, match=r"0\.002 GB of spectra in a file.* has 0\.001 GB free; write elsewhere"):
        ScratchRows(tmp_path, shape=(1000, 1000), dtype=np.uint16)
