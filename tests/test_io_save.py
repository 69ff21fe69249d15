import contextlib
import errno
import json
import os
import pickle
import shutil
import threading
import time
from pathlib import Path

import dask
import dask.array as da
import h5py
import numpy as np
import pytest
import tifffile
import xarray as xr
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from niseg_gpu.errors import UserError
from niseg_gpu.io import writers
from niseg_gpu.io.hdf5 import open_hdf5
from niseg_gpu.io.npy import open_npy
from niseg_gpu.io.save import save, save_together
from niseg_gpu.io.zarr import open_zarr

OPEN = {".zarr": open_zarr, ".h5": open_hdf5, ".nxs": open_hdf5, ".hdf5": open_hdf5, ".npy": open_npy}
ENDINGS = [".zarr", ".h5", ".nxs", ".hdf5", ".npy", ".tif", ".tiff"]
DIMS = {2: ("y", "x"), 3: ("tof", "y", "x"), 4: ("tof", "z", "y", "x")}
few = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def stack():
    values = np.random.default_rng(0).poisson(100, (6, 5, 4)).astype("f4")
    tof = np.linspace(0.001, 0.002, 6)
    return xr.DataArray(
        da.from_array(values, chunks=(4, 5, 2)),
        dims=("tof", "y", "x"),
        name="transmission",
        coords={
            "tof": ("tof", tof, {"units": "s"}),
            "wavelength": ("tof", tof * 395.6, {"units": "angstrom"}),
            "x": np.arange(4) * 0.5,
            "run": "42 Å",
            "frame": ("tof", [f"f{i}.fits" for i in range(6)]),
            "flight_path_m": 10.5,
        },
        attrs={"units": "1", "quantity": "transmission", "history": ["read", "normalized"], "pixel_size_um": 55.0,
               "files": [Path("a.fits")], "gain": np.float32(2), "roi": np.array([1, 2])},
    )  # fmt: skip


def read(path):
    if path.suffix.startswith(".tif"):
        return tifffile.imread(path, squeeze=False).squeeze()
    source = OPEN[path.suffix](path)
    return source.array[(slice(None),) * len(source.array.shape)]


def chunkings(data, shape):
    return tuple(data.draw(st.lists(st.integers(1, n), min_size=1).map(lambda c, n=n: cut(c, n))) for n in shape)


def cut(lengths, total):
    ends = [end for end in np.cumsum(lengths).tolist() if end < total]
    return tuple(np.diff([0, *ends, total]).tolist())


@pytest.mark.parametrize("ending", [".zarr", ".h5", ".npy", ".tif"])
@few
@given(
    values=hnp.arrays(
        st.sampled_from(["?", "u1", "i1", "<u2", ">u2", "i2", "<f4", ">f4", "f2"]),
        hnp.array_shapes(min_dims=2, max_dims=4, max_side=6),
    ),
    data=st.data(),
)
def test_values_come_back(tmp_path, ending, values, data):
    lazy = da.from_array(values, chunks=chunkings(data, values.shape)) if data.draw(st.booleans()) else values
    stack = xr.DataArray(lazy, dims=DIMS[values.ndim])
    path = save(stack, tmp_path / f"out{ending}", overwrite=True)
    got = read(path)
    np.testing.assert_array_equal(got, values.squeeze() if ending == ".tif" else values)
    if ending == ".tif":
        kept = {"?": "u1", "B": "u1", "H": "u2"}.get(values.dtype.char, "f4")
        assert got.dtype == np.dtype(kept)
    else:
        assert got.dtype == values.dtype.newbyteorder("=")
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("ending", [".zarr", ".h5"])
def test_dims_coordinates_and_attributes_come_back(tmp_path, stack, ending):
    source = OPEN[ending](save(stack, tmp_path / f"out{ending}", provenance={"steps": [{"normalize": {}}]}))
    np.testing.assert_array_equal(source.array[:, :, :], stack.values)
    assert source.dims == stack.dims and set(source.coords) == {"tof", "wavelength", "x"}
    for name, values in source.coords.items():
        np.testing.assert_array_equal(values, stack.coords[name])
        assert values.dtype == stack.coords[name].dtype
    assert source.attrs["history"] == ["read", "normalized"] and source.attrs["files"] == ["a.fits"]
    assert source.attrs["gain"] == 2 and source.attrs["roi"] == [1, 2]


def test_xarray_opens_the_zarr_as_it_was(tmp_path, stack):
    stack.attrs = {"units": "1", "history": ["read"]}
    path = save(stack, tmp_path / "out.zarr", provenance={"seed": 2018})
    with xr.open_zarr(path, consolidated=False) as got:
        assert set(got.data_vars) == {"transmission"}
        xr.testing.assert_identical(got["transmission"].compute(), stack.compute())
        assert got.attrs["provenance"] == {"seed": 2018} and got.attrs["program"] == "niseg_gpu"
    mask = xr.DataArray(np.zeros((3, 4), bool), dims=("y", "x"))
    with xr.open_zarr(save(mask, tmp_path / "mask.zarr"), consolidated=False) as got:
        assert got["image"].dtype == bool and not got["image"].values.any()


def test_small_and_ragged_blocks_become_chunks_of_good_size(tmp_path):
    values = np.random.default_rng(0).integers(0, 60000, (70, 128, 256)).astype("u2")
    for chunks in [(1, 128, 256), ((7, 3, 20, 40), 128, 256), (70, 8, 8)]:
        stack = xr.DataArray(da.from_array(values, chunks=chunks), dims=DIMS[3])
        path = save(stack, tmp_path / "a.zarr", overwrite=True)
        array = zarr.open(path / "image", mode="r")
        assert 2**19 < np.prod(array.chunks) * 2 <= 16 * 2**20
        np.testing.assert_array_equal(array[...], values)


def test_imagej_reads_axes_labels_scale_and_everything_else_as_info(tmp_path, stack):
    with tifffile.TiffFile(save(stack, tmp_path / "out.tif", provenance={"seed": 1})) as file:
        assert file.is_imagej and file.series[0].axes == "TYX" and len(file.pages) == 6 and not file.is_bigtiff
        meta = file.imagej_metadata
        resolution = file.pages[0].tags["XResolution"].value
    assert resolution[0] / resolution[1] == pytest.approx(1 / 55)
    assert meta["frames"] == meta["images"] == 6 and meta["hyperstack"] and meta["unit"] == "um"
    assert meta["finterval"] == pytest.approx(0.0002)
    assert meta["Labels"][0] == "tof=0.001 s" and meta["Labels"][1] == "tof=0.0012 s"
    info = json.loads(meta["Info"])
    assert info["dims"] == ["tof", "y", "x"] and info["name"] == "transmission" and info["provenance"] == {"seed": 1}
    assert info["coords"]["run"]["values"] == "42 Å" and info["coords"]["x"]["values"] == [0, 0.5, 1, 1.5]
    np.testing.assert_array_equal(info["coords"]["wavelength"]["values"], stack.wavelength)


@pytest.mark.parametrize(
    ("dims", "axes"), [("yx", "YX"), ("zyx", "ZYX"), (("angle", "y", "x"), "TYX"), (("tof", "z", "y", "x"), "TZYX")]
)
def test_imagej_axes_follow_the_names(tmp_path, dims, axes):
    shape = tuple(range(3, 3 + len(dims)))
    stack = xr.DataArray(np.arange(np.prod(shape), dtype="u2").reshape(shape), dims=tuple(dims))
    with tifffile.TiffFile(save(stack, tmp_path / "out.tif")) as file:
        assert file.series[0].axes == axes and file.series[0].shape == shape
        np.testing.assert_array_equal(file.asarray(), stack)


def test_large_tiff_is_bigtiff_and_of_the_same_content(tmp_path, stack, monkeypatch):
    monkeypatch.setattr(writers, "CLASSIC_TIFF_BYTES", 100)
    with tifffile.TiffFile(save(stack, tmp_path / "out.tif")) as file:
        assert file.is_bigtiff and file.is_imagej and len(file.pages) == 6 and file.imagej_metadata["frames"] == 6
        np.testing.assert_array_equal(file.asarray(), stack.values)


@pytest.mark.parametrize("dtype", ["i4", "u4", "i8", "u8", "f8"])
def test_tiff_takes_other_numbers_only_when_exact(tmp_path, dtype):
    fits = np.array([[0, 1], [2**24, np.nan if dtype == "f8" else 3]]).astype(dtype)
    np.testing.assert_array_equal(read(save(xr.DataArray(fits, dims=DIMS[2]), tmp_path / "fits.tif")), fits)
    for value in (2**24 + 1, np.iinfo(dtype).max if dtype != "f8" else 1e300):
        fits[0, 1] = value
        with pytest.raises(UserError, match=rf"cannot hold the value .* of type {np.dtype(dtype)} "):
            save(xr.DataArray(fits, dims=DIMS[2]), tmp_path / "out.tif")
    assert os.listdir(tmp_path) == ["fits.tif"]


def test_nexus_viewers_find_signal_axes_and_process(tmp_path, stack):
    path = save(stack, tmp_path / "out.nxs", provenance={"seed": 1, "date": "2021-05-04T12:00:00"})
    with h5py.File(path) as file:
        entry = file[file.attrs["default"]]
        data = entry[entry.attrs["default"]]
        assert data.attrs["NX_class"] == "NXdata" and data.attrs["signal"] == "transmission"
        assert list(data.attrs["axes"]) == ["tof", ".", "x"]
        assert list(data.attrs["wavelength_indices"]) == [0] and list(data.attrs["x_indices"]) == [2]
        assert data["tof"].attrs["units"] == "s" and data["transmission"].attrs["units"] == "1"
        assert data["frame"].asstr()[5] == "f5.fits" and data["flight_path_m"][()] == 10.5
        process = entry["process"]
        assert process.attrs["NX_class"] == "NXprocess" and process["program"].asstr()[()] == "niseg_gpu"
        assert process["version"].asstr()[()] and process["date"].asstr()[()] == "2021-05-04T12:00:00"
        assert json.loads(process["parameters/data"][()])["seed"] == 1


def test_stack_may_be_read_from_the_file_it_replaces(tmp_path):
    for ending in (".zarr", ".h5", ".npy"):
        path = save(xr.DataArray(np.ones((4, 3, 2)), dims=DIMS[3]), tmp_path / f"a{ending}")
        source = OPEN[ending](path)
        doubled = da.from_array(source.array, chunks=(1, 3, 2), meta=np.empty((0, 0, 0))) * 2
        save(xr.DataArray(doubled, dims=DIMS[3]), path, overwrite=True)
        np.testing.assert_array_equal(read(path), 2)


@pytest.mark.parametrize("ending", [".zarr", ".h5", ".npy", ".tif"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_leaves_nothing_behind_and_the_old_file_whole(tmp_path, ending, error):
    path = tmp_path / f"out{ending}"
    save(xr.DataArray(np.ones((8, 2, 2), "f4"), dims=DIMS[3]), path)

    def fail(block, block_info=None):
        if block_info[0]["chunk-location"][0] == 5:
            raise error("beam lost")
        return block * 2

    bad = da.ones((8, 2, 2), chunks=(1, 2, 2), dtype="f4").map_blocks(fail, dtype="f4")
    with pytest.raises(error, match="beam lost"):
        save(xr.DataArray(bad, dims=DIMS[3]), path, overwrite=True)
    assert os.listdir(tmp_path) == [path.name]
    np.testing.assert_array_equal(read(path), 1)


@pytest.mark.parametrize("ending", [".zarr", ".tif"])
def test_blocks_still_under_way_at_a_failure_write_nothing_more(tmp_path, ending):
    """Two threads: one fails at once, the other's block arrives after the partial output was taken away."""
    late = threading.Event()

    def work(block, block_info=None):
        if block_info[0]["chunk-location"][0] == 0:
            raise ValueError("beam lost")
        time.sleep(0.2)
        late.set()
        return block

    ones = da.ones((2, 512, 512), chunks=(1, 512, 512))  # blocks too large to be merged
    data = ones.map_blocks(work, meta=ones._meta)
    with dask.config.set(scheduler="threads", num_workers=2), pytest.raises(ValueError, match="beam lost"):
        save(xr.DataArray(data, dims=DIMS[3]), tmp_path / f"out{ending}")
    assert late.wait(5)
    time.sleep(0.5)
    assert os.listdir(tmp_path) == []


def test_places_it_refuses(tmp_path, stack):
    with pytest.raises(UserError, match=r"unknown ending '.tif2'; did you mean '.tiff?'"):
        save(stack, tmp_path / "out.tif2")
    with pytest.raises(UserError, match="unknown ending ''; allowed: .zarr, .tif"):
        save(stack, tmp_path / "out")
    with pytest.raises(UserError, match="no folder .*gone; make it first"):
        save(stack, tmp_path / "gone/out.tif")
    (tmp_path / "photos.zarr").mkdir()
    (tmp_path / "photos.zarr/cat.jpg").touch()
    with pytest.raises(UserError, match="is a folder and no Zarr store"):
        save(stack, tmp_path / "photos.zarr", overwrite=True)
    (tmp_path / "out.npy").touch()
    with pytest.raises(UserError, match=r"out\.npy: exists"):
        save(stack, tmp_path / "out.npy")
    (tmp_path / "file.zarr").touch()
    save(stack, tmp_path / "file.zarr", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["file.zarr", "out.npy", "photos.zarr"]


def test_refuses_a_folder_that_is_not_writable(tmp_path, stack, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(UserError, match="is not writable"):
        save(stack, tmp_path / "out.npy")


def test_stacks_it_refuses(tmp_path, stack):
    cases = [
        (stack.astype("c8"), "out.npy", "complex64"),
        (stack[:0], "out.zarr", r"shape \(0, 5, 4\)"),
        (xr.DataArray(1.0), "out.h5", r"shape \(\)"),
        (stack[0, 0], "out.tif", "takes 2 to 5"),
        (stack.rename("a/b"), "out.zarr", "name 'a/b'"),
        (stack.assign_coords(q=(("y", "x"), np.zeros((5, 4)))), "out.tif", "coordinate 'q' has several dimensions"),
    ]
    for bad, name, words in cases:
        with pytest.raises(UserError, match=words):
            save(bad, tmp_path / name)
    assert os.listdir(tmp_path) == []


def test_full_disk_is_told_in_one_line(tmp_path, stack, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"out\.h5: no room: 0\.00 GB to write, .* GB free"):
        save(stack, tmp_path / "out.h5")
    assert os.listdir(tmp_path) == []


def test_what_the_system_refuses_is_told_in_one_line(tmp_path, stack, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, "Input/output error", str(tmp_path / "part"))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(UserError, match=r"out\.npy can't be written: Input/output error \(.*part\)$"):
        save(stack, tmp_path / "out.npy")
    assert os.listdir(tmp_path) == []


def test_a_store_that_somebody_took_away_is_not_there_in_part(tmp_path, stack):
    def take_away(block, block_info=None):
        if block_info[0]["chunk-location"][0] == 1:  # Zarr makes the folders of a chunk again
            for partial in tmp_path.iterdir():
                shutil.rmtree(partial)
        return block

    with dask.config.set(scheduler="synchronous"), pytest.raises(UserError, match="out.zarr was taken away while it"):
        save(stack.copy(data=stack.data.map_blocks(take_away, dtype=stack.dtype)), tmp_path / "out.zarr")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("second", "where"), [("../b/a.zarr", "twice"), ("a.zarr/b.npy", "inside")])
def test_two_outputs_need_two_places(tmp_path, stack, second, where):
    (tmp_path / "b").mkdir()
    save(stack, tmp_path / "b" / "a.zarr")
    before = read(tmp_path / "b" / "a.zarr")
    with pytest.raises(UserError, match=f"is to be written {where}.*; give each output a place of its own"):
        save_together(
            {tmp_path / "b" / "a.zarr": stack + 1, tmp_path / "b" / second: stack},
            overwrite=True,
        )
    np.testing.assert_array_equal(read(tmp_path / "b" / "a.zarr"), before)


@pytest.mark.parametrize("ending", [".zarr", ".tif"])
def test_other_processes_may_write_the_blocks(tmp_path, stack, ending):
    with dask.config.set(scheduler="processes", num_workers=1):
        path = save(stack, tmp_path / f"out{ending}")
    np.testing.assert_array_equal(read(path), stack.values)


def test_target_pickles_without_values(tmp_path):
    (tmp_path / "a").touch()
    target = writers.FileTarget(tmp_path / "a", shape=(1000, 1000), dtype=np.dtype("f4"), offset=0)
    assert len(pickle.dumps(target)) < 500
    pickle.loads(pickle.dumps(target))[3:4, :] = np.ones((1, 1000))
    assert np.fromfile(tmp_path / "a", "f4").sum() == 1000


def test_memory_stays_at_a_few_blocks(tmp_path):
    """200 blocks of 1 MB each are counted while they live: at no time are more of them there than threads and a few."""
    alive, most, lock = 0, 0, threading.Lock()

    class Counted(np.ndarray):
        def __array_finalize__(self, parent):
            self.counted = False

        def __del__(self):
            nonlocal alive
            if self.counted:
                with lock:
                    alive -= 1

    def make(block_info=None):
        nonlocal alive, most
        block = np.zeros((1, 256, 512), "f8").view(Counted)
        with lock:
            block.counted = True
            alive += 1
            most = max(most, alive)
        return block

    data = da.map_blocks(make, chunks=((1,) * 200, (256,), (512,)), dtype="f8", meta=np.empty((0, 0, 0)))
    with dask.config.set(scheduler="threads", num_workers=2), contextlib.chdir(tmp_path):
        for path in ("out.h5", "out.zarr"):
            save(xr.DataArray(data, dims=DIMS[3]), path)
    assert 1 <= most <= 8


@pytest.mark.parametrize("stack", [None, 3, "a", [[1, 2]], np.zeros((3, 4))])
def test_what_is_no_stack_is_told(tmp_path, stack):
    with pytest.raises(UserError, match=r"save got a \w+; needed: an xarray.DataArray, such as"):
        save(stack, tmp_path / "a.npy")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(np.dtype("g").itemsize == 8, reason="long double is float64 here")
def test_numbers_of_more_than_64_bits_are_told(tmp_path):
    with pytest.raises(UserError, match="values of type float(96|128); allowed: real numbers"):
        save(xr.DataArray(np.zeros((3, 4), np.longdouble)), tmp_path / "a.zarr")
