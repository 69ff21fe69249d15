import io
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from niseg_gpu.errors import UserError
from niseg_gpu.io.npy import open_npy

ALL = (slice(None),) * 3
few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def cube():
    return np.arange(4 * 5 * 6, dtype="u2").reshape(4, 5, 6)


@few
@given(
    values=hnp.arrays(
        st.sampled_from(["?", "u1", ">u2", "<i2", ">f4", "<f8", "<f2"]),
        hnp.array_shapes(min_dims=2, max_dims=4, max_side=5),
    ),
    fortran=st.booleans(),
    ending=st.sampled_from(["npy", "npz", "packed.npz"]),
    data=st.data(),
)
def test_values_come_back_native_for_any_slice(tmp_path, values, fortran, ending, data):
    values = np.asfortranarray(values) if fortran else values
    path = tmp_path / f"cube.{ending}"
    {"npy": np.save, "npz": np.savez, "packed.npz": np.savez_compressed}[ending](path, values)
    source = open_npy(path)
    key = tuple(slice(*sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n))))) for n in values.shape)
    got = source.array[key]
    assert source.dims is None and source.array.shape == values.shape and len(source.block) == values.ndim
    assert type(got) is np.ndarray and got.dtype == source.array.dtype == values.dtype.newbyteorder("=")
    assert got.dtype.isnative
    np.testing.assert_array_equal(got, values[key])


def test_block_follows_the_order_in_the_file(tmp_path, cube):
    np.save(tmp_path / "c.npy", cube)
    np.save(tmp_path / "f.npy", np.asfortranarray(cube))
    np.savez_compressed(tmp_path / "z.npz", cube)
    assert open_npy(tmp_path / "c.npy").block == (1, 1, 6)
    assert open_npy(tmp_path / "f.npy").block == (4, 1, 1)
    assert open_npy(tmp_path / "z.npz").block == (1, 1, 6), "from memory, where it is unpacked to"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_member_by_name(tmp_path, cube, save):
    save(tmp_path / "two.npz", image=cube, other=cube + 1)
    np.testing.assert_array_equal(open_npy(Path(f"{tmp_path}/two.npz:/other")).array[ALL], cube + 1)
    np.testing.assert_array_equal(open_npy(Path(f"{tmp_path}/two.npz:image")).array[ALL], cube)
    with pytest.raises(UserError, match=r"two\.npz: holds 2 arrays \(image, other\)"):
        open_npy(tmp_path / "two.npz")
    with pytest.raises(UserError, match="did you mean 'image'"):
        open_npy(Path(f"{tmp_path}/two.npz:/imag"))


@pytest.mark.parametrize("save", [np.save, np.savez_compressed])
def test_pickled_state_carries_no_values(tmp_path, cube, save):
    path = tmp_path / ("cube.npy" if save is np.save else "cube.npz")
    save(path, np.zeros((64, 64, 64), "f8"))
    source = open_npy(path)
    source.array[ALL]
    state = pickle.dumps(source)
    assert len(state) < 2000
    np.testing.assert_array_equal(pickle.loads(state).array[ALL], 0)


def test_threads_may_read_at_once(tmp_path, cube):
    np.savez_compressed(tmp_path / "cube.npz", cube)
    array = open_npy(tmp_path / "cube.npz").array
    results = [None] * 8

    def read(i):
        results[i] = array[ALL]

    threads = [threading.Thread(target=read, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(result, cube) for result in results)


def test_what_was_read_may_be_changed(tmp_path, cube):
    for path in (tmp_path / "a.npy", tmp_path / "a.npz"):
        (np.save if path.suffix == ".npy" else np.savez_compressed)(path, cube)
        source = open_npy(path)
        source.array[ALL][:] = 0
        np.testing.assert_array_equal(source.array[ALL], cube)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.array([["a", None]], dtype=object), "type object"),
        (np.ones((2, 2), "c8"), "complex64"),
        (np.array([["a", "b"]]), "<U1"),
        (np.zeros((2, 2), [("a", "u1"), ("b", "u1")]), "allowed: real numbers"),
        (np.zeros((3, 0)), r"shape \(3, 0\)"),
        (np.zeros(3), r"shape \(3,\)"),
    ],
)
def test_refuses_what_is_no_stack(tmp_path, values, words):
    np.save(tmp_path / "bad.npy", values, allow_pickle=True)
    with pytest.raises(UserError, match=rf"bad\.npy: .*{words}"):
        open_npy(tmp_path / "bad.npy")


def test_refuses_broken_files(tmp_path, cube):
    whole = io.BytesIO()
    np.save(whole, cube)
    whole = whole.getvalue()
    cases = {"short.npy": whole[:-1], "head.npy": whole[:40], "no.npy": b"hello", "empty.npy": b""}
    words = {"short.npy": "truncated: 367 of 368 bytes", "no.npy": "not a npy file"}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}: {words.get(name, 'not a npy file')}"):
            open_npy(tmp_path / name)
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04" + bytes(50))
    with pytest.raises(UserError, match=r"cut\.npz: broken .npz archive"):
        open_npy(tmp_path / "cut.npz")
    with pytest.raises(UserError, match=r"gone\.npy: no such file"):
        open_npy(tmp_path / "gone.npy")


def test_damaged_compressed_archive_is_named(tmp_path):
    np.savez_compressed(tmp_path / "cube.npz", np.random.default_rng(0).random((40, 40)))
    content = bytearray((tmp_path / "cube.npz").read_bytes())
    content[6000:6010] = b"\0" * 10
    (tmp_path / "cube.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"cube\.npz: .*cannot be unpacked"):
        open_npy(tmp_path / "cube.npz").array[:, :]
