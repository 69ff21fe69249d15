import json
import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from niseg_gpu.errors import UserError
from niseg_gpu.io.zarr import MAX_CHUNK_BYTES, align_chunks, create_array, open_zarr

ALL = (slice(None),) * 3
few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def cube():
    return np.arange(4 * 5 * 6, dtype="u2").reshape(4, 5, 6)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("dtype", ["?", "u1", "<u2", ">u2", ">f4", "<f8"])
def test_array_alone_in_both_formats(tmp_path, cube, version, dtype):
    values = (cube % 3).astype(dtype)
    names = {"dimension_names": ("tof", "y", "x")} if version == 3 else {}
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=cube.shape, chunks=(2, 5, 3), dtype=dtype, zarr_format=version, **names
    )
    array[...] = values
    if version == 2:
        array.attrs["_ARRAY_DIMENSIONS"] = ["tof", "y", "x"]
    array.attrs["quantity"] = "counts"
    source = open_zarr(tmp_path / "a.zarr")
    assert source.dims == ("tof", "y", "x") and source.block == (2, 5, 3) and source.attrs == {"quantity": "counts"}
    got = source.array[1:4, :, 2:5]
    assert got.dtype == source.array.dtype and got.dtype.isnative
    np.testing.assert_array_equal(got, values[1:4, :, 2:5])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source.array))[ALL], values)
    with pytest.raises(UserError, match=r"a\.zarr: is itself an array"):
        open_zarr(tmp_path / "a.zarr", "image")


def test_group_gives_image_or_the_only_array_with_its_coordinates(tmp_path, cube):
    group = zarr.create_group(tmp_path / "r.zarr")
    dims = ("tof", "y", "x")
    add = {"shape": cube.shape, "dtype": "u2", "dims": dims, "chunks": cube.shape}
    create_array(group, "first", **add, attrs={"coordinates": "temperature"})[...] = cube
    for name, along in {"tof": "tof", "wavelength": "tof", "temperature": "tof", "sum": "y"}.items():
        length = {"tof": 4, "y": 5}[along]
        coord = create_array(group, name, shape=(length,), dtype="f8", dims=(along,), chunks=(length,))
        coord[...] = np.arange(length)
    source = open_zarr(tmp_path / "r.zarr")
    np.testing.assert_array_equal(source.array[ALL], cube)
    assert set(source.coords) == {"tof", "wavelength", "temperature"} and source.attrs == {}
    np.testing.assert_array_equal(source.coords["tof"], np.arange(4))
    create_array(group, "second", **add)[...] = cube + 1
    with pytest.raises(UserError, match=r"r\.zarr: holds 2 arrays \(first \(4, 5, 6\), second \(4, 5, 6\)\)"):
        open_zarr(tmp_path / "r.zarr")
    with pytest.raises(UserError, match=r"no array 'secnd'; did you mean 'second'"):
        open_zarr(tmp_path / "r.zarr", "secnd")
    create_array(group, "image", **add)[...] = cube + 2
    np.testing.assert_array_equal(open_zarr(tmp_path / "r.zarr").array[ALL], cube + 2)
    np.testing.assert_array_equal(open_zarr(tmp_path / "r.zarr", "second").array[ALL], cube + 1)


def test_arrays_in_groups_of_groups(tmp_path, cube):
    group = zarr.create_group(tmp_path / "r.zarr").create_group("raw")
    create_array(group, "frames", shape=cube.shape, dtype="u2", dims="zyx", chunks=cube.shape)[...] = cube
    for name in ("raw", "raw/frames", "/raw/frames/"):
        assert open_zarr(tmp_path / "r.zarr", name).dims == ("z", "y", "x")
    for name in ("frames", "raw/frames/x", "none/frames"):
        with pytest.raises(UserError, match="holds no array"):
            open_zarr(tmp_path / "r.zarr", name)


def test_refuses_what_is_no_stack(tmp_path):
    group = zarr.create_group(tmp_path / "r.zarr")
    group.create_array("line", shape=(5,), dtype="f4")
    group.create_array("complex", shape=(5, 5), dtype="c8")
    group.create_array("empty", shape=(5, 0), dtype="f4")
    for name in ("line", "complex", "empty"):
        with pytest.raises(UserError, match=rf"r\.zarr:{name}: "):
            open_zarr(tmp_path / "r.zarr", name)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="folder: not a Zarr array or group"):
        open_zarr(tmp_path / "folder")
    with pytest.raises(UserError, match=r"gone\.zarr: no such folder"):
        open_zarr(tmp_path / "gone.zarr")
    (tmp_path / "r.zarr" / "zarr.json").write_text("{broken")
    with pytest.raises(UserError, match=r"r\.zarr: not a Zarr array or group"):
        open_zarr(tmp_path / "r.zarr")


def test_damaged_chunk_is_named(tmp_path, cube):
    group = zarr.create_group(tmp_path / "r.zarr")
    create_array(group, "image", shape=cube.shape, dtype="u2", dims="zyx", chunks=(1, 5, 6))[...] = cube
    source = open_zarr(tmp_path / "r.zarr")
    (tmp_path / "r.zarr/image/c/2/0/0").write_bytes(b"rubbish")
    with pytest.raises(UserError, match=r"r\.zarr:image: cannot be read"):
        source.array[ALL]


def test_threads_may_read_at_once(tmp_path, cube):
    group = zarr.create_group(tmp_path / "r.zarr")
    create_array(group, "image", shape=cube.shape, dtype="u2", dims="zyx", chunks=(1, 2, 2))[...] = cube
    array = open_zarr(tmp_path / "r.zarr").array
    with ThreadPoolExecutor(8) as pool:
        assert all(np.array_equal(got, cube) for got in pool.map(array.__getitem__, [ALL] * 16))


blocks = st.lists(st.integers(1, 700), min_size=1, max_size=5)


@given(blocks=st.lists(blocks, min_size=1, max_size=3), itemsize=st.sampled_from([1, 2, 4, 8]))
def test_no_chunk_straddles_two_blocks(blocks, itemsize):
    chunk = align_chunks(blocks, itemsize=itemsize)
    for step, lengths in zip(chunk, blocks, strict=True):
        assert 1 <= step <= max(lengths)
        assert all(start % step == 0 for start in np.cumsum([0, *lengths[:-1]]))
    assert math.prod(chunk) * itemsize <= MAX_CHUNK_BYTES


def test_chunks_of_usual_stacks_are_of_good_size():
    assert align_chunks(((600,), (512,), (512,)), itemsize=4) == (16, 512, 512)  # ceil(600 / 38 parts)
    assert align_chunks(((64,) * 9 + (24,), (512,), (512,)), itemsize=4) == (16, 512, 512)
    assert align_chunks(((661,), (64,) * 8, (512,)), itemsize=2) == (221, 64, 512)
    assert align_chunks(((1,) * 20, (4096,), (4096,)), itemsize=4) == (1, 1024, 4096)


def test_arrays_stored_in_one_pass_are_the_same_bytes_each_time(tmp_path):
    image = da.random.default_rng(0).integers(0, 50, (20, 64, 64), chunks=(6, 64, 64), dtype="u2")
    mask = image > 40

    def store(path):
        group = zarr.create_group(path)
        arrays = {"image": image, "spots": mask, "labels": (image // 10).astype("u1")}
        targets = [
            create_array(group, name, shape=data.shape, dtype=data.dtype, dims=("tof", "y", "x"),
                         chunks=align_chunks(data.chunks, itemsize=data.dtype.itemsize), attrs={"at": path})
            for name, data in arrays.items()
        ]  # fmt: skip
        da.store(list(arrays.values()), targets, lock=False)
        return {file.relative_to(path): file.read_bytes() for file in path.rglob("c/*/*/*")}

    first, second = store(tmp_path / "a.zarr"), store(tmp_path / "b.zarr")
    assert first == second and len(first) == 3 * 4
    np.testing.assert_array_equal(open_zarr(tmp_path / "a.zarr", "spots").array[ALL], mask.compute())
    noted = json.loads((tmp_path / "a.zarr/image/zarr.json").read_text())["attributes"]
    assert noted == {"at": str(tmp_path / "a.zarr")}


def test_chunks_of_zeros_are_written(tmp_path):
    group = zarr.create_group(tmp_path / "r.zarr")
    create_array(group, "spots", shape=(4, 5, 6), dtype="?", dims="zyx", chunks=(1, 5, 6))[...] = False
    assert len(list((tmp_path / "r.zarr/spots/c").glob("*/0/0"))) == 4
