import pickle
import subprocess
import sys
import threading

import dask
import dask.array as da
import numpy as np
import pytest
import tifffile
import xarray as xr
from astropy.io import fits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from niseg_gpu.errors import UserError
from niseg_gpu.io import open as io_open
from niseg_gpu.io.open import as_stack, open_source, open_stack
from niseg_gpu.io.save import save
from niseg_gpu.io.source import Source

few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
CUBE = np.random.default_rng(0).integers(0, 60000, (7, 10, 12)).astype("u2")
DIMS = ("tof", "y", "x")


class Counting:
    """A lazy array that notes what is read of it."""

    def __init__(self, values):
        self.values, self.shape, self.ndim, self.dtype = values, values.shape, values.ndim, values.dtype
        self.keys, self.nbytes, self.lock = [], 0, threading.Lock()

    def __getitem__(self, key):
        assert all(type(part) is slice and part.step in (None, 1) for part in key) and len(key) == self.ndim
        part = self.values[key]
        with self.lock:
            self.keys.append(key)
            self.nbytes += part.nbytes
        return part


def counted(values=CUBE, *, chunks=(-1, -1, -1), dims=DIMS, **options):
    array = Counting(values)
    return array, as_stack(Source(array, ("a.bin",), dims=dims, **options), chunks=chunks)


def write_run(folder, cube=CUBE, *, ending="fits", **options):
    folder.mkdir()
    for i, frame in enumerate(cube):
        path = folder / f"r_{i:03d}.{ending}"
        if ending == "fits":
            header = fits.Header({"TOF": 1e-3 + i * 1e-5, "TIMEBIN": 1e-5})
            fits.PrimaryHDU(frame.astype("i2"), header).writeto(path)
        else:
            tifffile.imwrite(path, frame, photometric="minisblack", **options)
    return folder


# what is read -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        (np.s_[:, 3:5], (7, 2, 12)),
        (np.s_[2], (1, 10, 12)),
        (np.s_[-1], (1, 10, 12)),
        (np.s_[2:4, :, 4], (2, 10, 1)),
        (np.s_[::3], (3, 10, 12)),
        (np.s_[:, 2:9:3, 4:6], (7, 7, 2)),  # rows between are cheaper to read than to leave out
        (np.s_[3, 4, 5], (1, 1, 1)),
    ],
)
def test_only_what_is_asked_for_is_read(key, shape):
    array, stack = counted()
    np.testing.assert_array_equal(stack.data[key].compute(), CUBE[key], strict=True)
    assert array.nbytes == np.prod(shape) * CUBE.itemsize


def test_nothing_is_read_to_open():
    array, stack = counted()
    assert stack.sizes == {"tof": 7, "y": 10, "x": 12} and not array.keys
    assert stack.dtype == np.uint16 and type(stack.data._meta) is np.ndarray


def test_each_block_reads_its_own_part():
    array, stack = counted(chunks=(3, 5, 12))
    np.testing.assert_array_equal(stack.values, CUBE)
    assert array.nbytes == CUBE.nbytes and len(array.keys) == 6


def test_axes_in_another_order_read_only_what_is_asked_for():
    array, stack = counted(np.moveaxis(CUBE, 0, -1), dims=("y", "x", "tof"))
    assert stack.dims == DIMS
    np.testing.assert_array_equal(stack[1:3, :, 2:4].values, CUBE[1:3, :, 2:4])
    assert array.keys == [(slice(0, 10), slice(2, 4), slice(1, 3))]


def test_compressed_frames_are_decoded_once():
    array, stack = counted(block=(1, 10, 12))
    keys = [np.s_[:, 0:3], np.s_[:, 3:6], np.s_[2:4, 6:], np.s_[::-1, :2], np.s_[3]]
    parts = dask.compute(*(stack.data[key] for key in keys))
    assert array.nbytes == CUBE.nbytes and len(array.keys) == 1
    for part, key in zip(parts, keys, strict=True):
        np.testing.assert_array_equal(part, CUBE[key])


@pytest.mark.parametrize(
    ("shape", "block", "chunks", "frames"),
    [
        ((70, 10, 12), (1, 10, 12), (-1, -1, -1), [32, 32, 6]),  # few, for a slice of one decodes them all
        ((70, 10, 12), (1, 10, 12), (8, 5, 5), [8] * 8 + [6]),  # but never a part of one
        ((70, 10, 12), (20, 10, 12), (-1, -1, -1), [20, 20, 20, 10]),  # blocks of several frames are not cut
        ((70, 10, 12), (50, 10, 12), (4, -1, -1), [50, 20]),
        ((3, 600, 500), (1, 600, 500), (-1, -1, -1), [1, 1, 1]),  # the limit of a chunk where a frame is that large
        ((10, 12), (10, 12), (3, -1), [10]),
    ],
)
def test_groups_of_compressed_frames(monkeypatch, shape, block, chunks, frames):
    monkeypatch.setattr(io_open, "CHUNK_BYTES", 10**6)
    array, stack = counted(np.arange(np.prod(shape), dtype="u2").reshape(shape), block=block, chunks=chunks, dims=None)
    assert stack.chunks[0] == tuple(frames) and all(len(c) == 1 for c in stack.chunks[1:])
    np.testing.assert_array_equal(stack.values, array.values)
    assert array.nbytes == array.values.nbytes


def test_compressed_cube_in_another_order():
    array, stack = counted(np.moveaxis(CUBE, 0, -1), dims=("y", "x", "tof"), block=(1, 12, 7))
    np.testing.assert_array_equal(stack.values, CUBE)  # its blocks are rows of all bins: no frame to be kept whole
    assert array.nbytes == CUBE.nbytes


# values -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """The same cube in each kind of file; ToF last in the two that can't tell."""
    folder = tmp_path_factory.mktemp("stores")
    write_run(folder / "fits", CUBE % 30000)
    write_run(folder / "packed", CUBE % 30000, ending="tif", compression="zlib")
    tifffile.imwrite(folder / "pages.tif", CUBE % 30000, photometric="minisblack")
    fits.PrimaryHDU((CUBE % 30000).astype("i2")).writeto(folder / "cube.fits")
    np.save(folder / "yxt.npy", np.moveaxis(CUBE % 30000, 0, -1))
    np.savez_compressed(folder / "yxt.npz", np.moveaxis(CUBE % 30000, 0, -1))
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["fits", "packed", "pages.tif", "cube.fits", "yxt.npy", "yxt.npz"])
@few
@given(data=st.data())
def test_chunks_and_slices_never_change_a_value(stores, name, data):
    chunks = tuple(data.draw(st.sampled_from([-1, 1, 2, 3, 5, n])) for n in CUBE.shape)
    dims = ("y", "x", "tof") if name.startswith("yxt") else DIMS
    stack = open_stack(stores[name], dims=dims, chunks=chunks)
    assert stack.dims == DIMS
    step = st.sampled_from([1, 2, 3])
    key = tuple(
        slice(*sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n)))), data.draw(step))
        for n in CUBE.shape
    )
    np.testing.assert_array_equal(stack[key].values, (CUBE % 30000)[key])
    with dask.config.set(scheduler="synchronous"):
        np.testing.assert_array_equal(stack.values, CUBE % 30000)


@pytest.mark.parametrize("ending", [".tif", ".h5", ".zarr", ".npy"])
def test_what_save_writes_comes_back(tmp_path, ending):
    stack = xr.DataArray(
        da.from_array(CUBE.astype("f4"), chunks=(3, 5, 12)),
        dims=DIMS,
        name="image",
        coords={
            "tof": ("tof", np.arange(7) ** 1.5, {"units": "s"}),
            "tof_width": ("tof", np.arange(7) + 0.5, {"units": "s"}),
            "wavelength": ("tof", np.arange(7) / 3, {"units": "angstrom"}),
        },
        attrs={"quantity": "transmission", "shutter_windows": [[0, 2], [3, 6]], "shutter_counts": [7, 8]},
    )
    path = save(stack, tmp_path / f"saved{ending}")
    back = open_stack(path)
    assert back.dtype == stack.dtype
    if ending == ".npy":
        assert back.dims == ("z", "y", "x")
        np.testing.assert_array_equal(back.values, stack.values)
        return
    xr.testing.assert_equal(back, stack.compute())
    assert set(back.coords) == set(stack.coords) and back.name == "image"
    for name, coord in stack.coords.items():
        assert back[name].attrs["units"] == coord.attrs["units"]
    assert {key: back.attrs[key] for key in stack.attrs} == stack.attrs
    assert [str(path)] == sorted(set(back.attrs["files"]))


def test_saving_what_was_opened_and_opening_it_again(tmp_path):
    stack = open_stack(write_run(tmp_path / "run"))
    back = open_stack(save(stack, tmp_path / "copy.zarr"))
    xr.testing.assert_equal(back, stack)


@pytest.mark.parametrize("options", [{"ending": "fits"}, {"ending": "tif", "compression": "zlib"}])
def test_many_threads_and_pickled_arrays(tmp_path, options):
    cube = np.random.default_rng(1).integers(0, 30000, (60, 16, 16)).astype("u2")
    source = open_source(write_run(tmp_path / "run", cube, **options))
    copy = pickle.loads(pickle.dumps(source.array))
    np.testing.assert_array_equal(copy[:, :, :], cube)
    stack = as_stack(source, chunks=(2, 5, 7))
    with dask.config.set(scheduler="threads", num_workers=16):
        assert all((stack.values == cube).all() for _ in range(3))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(stack)).values, cube)


def test_unsigned_in_every_format(tmp_path):
    counts = np.array([[[1, 40000], [65535, 3]]], "u2").repeat(2, 0)
    stack = xr.DataArray(counts.view("i2"), dims=DIMS)
    for path in (save(stack, tmp_path / f"wrapped{ending}") for ending in (".zarr", ".h5", ".npy")):
        assert open_stack(path).dtype == np.int16
        np.testing.assert_array_equal(open_stack(path, unsigned=True).values, counts)
    run = write_run(tmp_path / "run", counts.view("i2"))
    np.testing.assert_array_equal(open_stack(run, unsigned=True).values, counts)
    assert open_stack(save(stack.astype("f4"), tmp_path / "f.npy"), unsigned=True).dtype == np.float32


# axes, coordinates, attributes --------------------------------------------------------------------------------


def test_what_the_frames_of_a_run_become(tmp_path):
    stack = open_stack(write_run(tmp_path / "run"))
    assert stack.dims == DIMS and stack.name == "image" and stack.attrs["quantity"] == "counts"
    np.testing.assert_allclose(stack.tof, 1e-3 + np.arange(7) * 1e-5)
    np.testing.assert_allclose(stack.tof_width, 1e-5)
    assert stack.tof.attrs == {"units": "s"} and len(stack.attrs["files"]) == 7
    assert stack.attrs["files"][3].endswith("r_003.fits")
    assert stack.attrs["shutter_windows"] == [[0, 6]]


def test_frames_without_a_time_are_angles_and_pages_are_slices(tmp_path, stores):
    assert open_stack(write_run(tmp_path / "run", ending="tif")).dims == ("angle", "y", "x")
    assert open_stack(stores["pages.tif"]).dims == ("z", "y", "x")
    assert open_stack(stores["pages.tif"], dims=["angle", "y", "x"]).dims == ("angle", "y", "x")


def test_repeated_images_of_equal_time_have_no_time_axis(tmp_path):
    run = write_run(tmp_path / "run")
    for path in run.iterdir():
        fits.setval(path, "TOF", value=9.6e-7)
    stack = open_stack(run)
    assert stack.dims == ("angle", "y", "x") and not stack.coords


@pytest.mark.parametrize("ending", ["fits", "tif"])
def test_a_lone_frame_is_an_image(tmp_path, ending):
    run = write_run(tmp_path / "run", CUBE % 30000, ending=ending)
    (run / "r_Spectra.txt").write_text("".join(f"{i}\t0\n" for i in range(7)))
    one = open_stack(run / f"r_004.{ending}")
    assert one.dims == ("y", "x") and not one.coords
    np.testing.assert_array_equal(one.values, CUBE[4] % 30000)
    np.testing.assert_array_equal(one[2:4, 3:].values, CUBE[4, 2:4, 3:] % 30000)
    assert open_stack(run / f"r_004.{ending}", dims=("y", "x")).dims == ("y", "x")
    assert open_stack(run / f"r_004.{ending}", dims=DIMS).shape == (1, 10, 12)


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        (("tofs", "y", "x"), r"axis 'tofs'; did you mean 'tof'\?"),
        (("Angles", "y", "x"), r"axis 'Angles'; did you mean 'angle'\?"),
        (("wavelength", "y", "x"), r"axis 'wavelength'; allowed: tof, angle, z, y, x"),
        (("y", "x"), r"names 2 axes \('y', 'x'\), .*pages\.tif has 3 \(7, 10, 12\)"),
        (("z", "y", "y"), r"each axis once"),
        (("tof", "z", "y"), r"y and x among them"),
    ],
)
def test_wrong_names_of_axes(stores, dims, message):
    with pytest.raises(UserError, match=message):
        open_stack(stores["pages.tif"], dims=dims)


# what the user must mend --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing", r"missing does not exist; name a folder, file or glob"),
        ("missing/*.fits", r"missing/\*\.fits matches no FITS or TIFF frame"),
        ("empty", r"empty holds no FITS or TIFF frame"),
        ("photo.jpg", r"photo\.jpg: unknown format '\.jpg'"),
        ("frame.fitz", r"frame\.fitz: unknown format '\.fitz'; did you mean '\.fit'\?"),
        ("mixed", r"mixed holds 2 series of frames: a_\*\.(fits|tif) \(1\), a_\*\.(fits|tif) \(1\); name one"),
        ("missing.npy", r"missing\.npy"),
        ("missing.h5", r"missing\.h5"),
        ("missing.zarr", r"missing\.zarr"),
    ],
)
def test_paths_that_lead_nowhere(tmp_path, path, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    for name in ("photo.jpg", "frame.fitz", "mixed/a_1.fits", "mixed/a_2.tif"):
        (tmp_path / name).write_text("not read")
    with pytest.raises(UserError, match=message) as refused:
        open_stack(tmp_path / path)
    assert "\n" not in str(refused.value)


def test_parameters_are_checked(stores):
    with pytest.raises(UserError, match="tof is 'header'; allowed: auto, spectra, headers"):
        open_stack(stores["fits"], tof="header")
    with pytest.raises(UserError, match=r"chunks is \(0, 1, 1\); allowed: lengths from 1 on, or -1"):
        open_stack(stores["fits"], chunks=(0, 1, 1))
    assert (
        open_stack(stores["fits"], chunks=(10**30, 1, -1)).chunks[0]
        == open_stack(stores["fits"], chunks=(-1, 1, -1)).chunks[0]
    )
    with pytest.raises(UserError, match=r"chunks is \(1, 2\); needed: one length for each of 3 axes"):
        open_stack(stores["fits"], chunks=(1, 2))


def test_a_frame_that_goes_while_it_is_read(tmp_path):
    run = write_run(tmp_path / "run")
    stack = open_stack(run)
    (run / "r_005.fits").unlink()
    np.testing.assert_array_equal(stack[:5].values, CUBE[:5].astype("i2"))
    with pytest.raises(UserError, match=r"r_005\.fits: No such file"):
        stack.compute()


def test_import_is_light():
    heavy = ("astropy", "h5py", "tifffile", "zarr", "dask", "xarray", "matplotlib", "scipy")
    code = f"import sys, niseg_gpu.io.open; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
