import json
import os
from importlib.util import find_spec

import numpy as np
import pytest
import tifffile
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from niseg_gpu.errors import UserError
from niseg_gpu.io.open import open_stack
from niseg_gpu.io.raw import RawFrames
from niseg_gpu.io.save import save
from niseg_gpu.io.tiff import DecodedFrames, open_tiff

few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ALL = (slice(None),) * 3
GREY = {"photometric": "minisblack"}
CUBE = np.random.default_rng(0).integers(0, 60000, (4, 40, 48)).astype("u2")


def write_frames(folder, cube=CUBE, **options):
    paths = [folder / f"frame_{i:03d}.tif" for i in range(len(cube))]
    for path, frame in zip(paths, cube, strict=True):
        tifffile.imwrite(path, frame, **{**GREY, **options})
    return paths


LAYOUTS = {
    "plain": ({}, RawFrames),
    "big endian": ({"byteorder": ">"}, RawFrames),
    "little endian": ({"byteorder": "<"}, RawFrames),
    "BigTIFF": ({"bigtiff": True}, RawFrames),
    "strips": ({"rowsperstrip": 7}, RawFrames),
    "deflate": ({"compression": "zlib"}, DecodedFrames),
    "deflate, strips, big endian": ({"compression": "zlib", "rowsperstrip": 7, "byteorder": ">"}, DecodedFrames),
    "deflate, predictor": ({"compression": "zlib", "predictor": True}, DecodedFrames),
    "lzma": ({"compression": "lzma"}, DecodedFrames),
    "tiles": ({"tile": (16, 16)}, DecodedFrames),
    "tiles, deflate, predictor": ({"tile": (16, 32), "compression": "zlib", "predictor": True}, DecodedFrames),
}


@pytest.mark.parametrize("options,reader", LAYOUTS.values(), ids=LAYOUTS)
def test_pages_and_folders_of_any_layout(tmp_path, options, reader):
    tifffile.imwrite(tmp_path / "pages.tiff", CUBE, **GREY, **options)
    for paths in (write_frames(tmp_path, **options), [tmp_path / "pages.tiff"]):
        source = open_tiff(paths)
        assert type(source.array) is reader and source.array.shape == CUBE.shape and source.dims is None
        assert source.block == ((1, 1, 48) if reader is RawFrames else (1, 40, 48))
        assert source.array[ALL].dtype == np.uint16 and source.array[ALL].dtype.isnative
        np.testing.assert_array_equal(source.array[ALL], CUBE)
        np.testing.assert_array_equal(source.array[1:3, 5:17, 30:47], CUBE[1:3, 5:17, 30:47])
        assert source.array[2:2, 5:17, :].shape == (0, 12, 48)


@few
@given(
    cube=hnp.arrays(
        st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8", "f2"]),
        hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6),
    ),
    options=st.sampled_from(
        [{}, {"byteorder": ">"}, {"compression": "zlib"}, {"compression": "zlib", "byteorder": ">"}]
    ),
    data=st.data(),
)
def test_any_type_and_slice(tmp_path, cube, options, data):
    path = tmp_path / "any.tif"
    with tifffile.TiffWriter(path, byteorder=options.get("byteorder")) as tiff:
        for frame in cube:
            tiff.write(frame, contiguous=False, compression=options.get("compression"), **GREY)
    key = tuple(slice(*sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n))))) for n in cube.shape)
    array = open_tiff([path]).array
    assert array.dtype == cube.dtype
    assert array[key].tobytes() == cube[key].tobytes()


def test_frames_of_both_byte_orders_and_layouts_in_one_run(tmp_path):
    paths = write_frames(tmp_path)
    tifffile.imwrite(paths[1], CUBE[1], byteorder=">", **GREY)
    tifffile.imwrite(paths[2], CUBE[2], compression="zlib", **GREY)
    np.testing.assert_array_equal(open_tiff(paths).array[ALL], CUBE)


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_imagej_stacks(tmp_path, dtype):
    cube = (CUBE % 251).astype(dtype)
    tifffile.imwrite(tmp_path / "ij.tif", cube, imagej=True, metadata={"axes": "ZYX"})
    np.testing.assert_array_equal(open_tiff([tmp_path / "ij.tif"]).array[ALL], cube)


def test_imagej_stack_that_lists_one_page(tmp_path):
    path = tmp_path / "big.tif"  # so ImageJ writes what is larger than 4 GB
    description = f"ImageJ=1.54f\nimages={len(CUBE)}\nslices={len(CUBE)}\n"
    tifffile.imwrite(path, CUBE[0], description=description, metadata=None, byteorder=">", **GREY)
    path.write_bytes(path.read_bytes() + CUBE[1:].astype(">u2").tobytes())
    source = open_tiff([path])
    np.testing.assert_array_equal(source.array[ALL], CUBE)
    os.truncate(path, path.stat().st_size - 1)
    refuse([path], r"big\.tif is truncated: .* its 4 images ask for")


def test_unsigned_whether_compressed_or_not(tmp_path):
    wrapped = CUBE.view("i2")
    for name, options in (("plain", {}), ("packed", {"compression": "zlib"})):
        tifffile.imwrite(tmp_path / f"{name}.tif", wrapped, **GREY, **options)
        assert open_stack(tmp_path / f"{name}.tif").dtype == np.int16
        counts = open_stack(tmp_path / f"{name}.tif", unsigned=True)
        assert counts.dtype == np.uint16
        np.testing.assert_array_equal(counts.values, CUBE)


def test_axes_times_and_attributes_of_our_own_files_come_back(tmp_path):
    stack = xr.DataArray(
        CUBE.astype("f4"),
        dims=("tof", "y", "x"),
        coords={"tof": [0.1, 0.25, 0.3, 0.5], "tof_width": ("tof", [0.1, 0.05, 0.2, 0.2])},
        attrs={"quantity": "transmission", "shutter_windows": [[0, 1], [2, 3]]},
    )
    stack = stack.assign_coords(wavelength=("tof", [1.0, 2.0, 3.0, 4.0]))
    back = open_stack(save(stack, tmp_path / "own.tif"))
    assert back.dims == stack.dims and set(back.coords) == {"tof", "tof_width", "wavelength"}
    xr.testing.assert_equal(back, stack)
    assert {key: back.attrs[key] for key in stack.attrs} == stack.attrs


def test_a_foreign_description_is_no_fault(tmp_path):
    for i, text in enumerate(['{"program": "other", "dims": ["a"]}', "[1, 2]", "{broken", '{"shape": [4, 40, 48]}']):
        path = tmp_path / f"{i}.tif"
        tifffile.imwrite(path, CUBE, description=text, metadata=None, **GREY)
        assert open_tiff([path]).dims is None


def test_measured_stack_is_read_raw(data_dir):
    path = data_dir / "nct_slices" / "frame0000_100x100x100.tif"
    source = open_tiff([path])
    assert type(source.array) is RawFrames and source.array.shape == (100, 100, 100)
    np.testing.assert_array_equal(source.array[ALL], tifffile.imread(path))


def test_measured_projections(data_dir):
    paths = sorted((data_dir / "xray_tomo" / "tiffs").glob("*.tiff"))
    source = open_tiff(paths)
    assert source.array.shape == (91, 135, 160)
    np.testing.assert_array_equal(source.array[90:, :, :][0], tifffile.imread(paths[90]))


# what is wrong with a file ------------------------------------------------------------------------------------


def refuse(paths, message):
    with pytest.raises(UserError, match=message) as refused:
        open_tiff(paths)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("byteorder", "options"), [("<", {}), ("<", {"compression": "zlib"}), (">", {"rowsperstrip": 3})]
)
def test_a_stack_cut_anywhere_is_refused(tmp_path, byteorder, options):
    cube, path = CUBE[:3, :8, :6], tmp_path / "cut.tif"
    with tifffile.TiffWriter(path, byteorder=byteorder) as tiff:
        for frame in cube:
            tiff.write(frame, contiguous=False, metadata=None, **GREY, **options)
    whole = path.read_bytes()
    with tifffile.TiffFile(path) as tiff:
        ends = [o + n for page in tiff.pages for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)]
    for length in range(0, max(ends), 3):
        path.write_bytes(whole[:length])
        refuse([path], r"cut\.tif (is|can't|holds).*(copy|remove)")


@pytest.mark.parametrize("frame", [0, 2])
def test_empty_text_missing_and_folder(tmp_path, frame):
    paths = write_frames(tmp_path)
    paths[frame].write_bytes(b"")
    refuse(paths, rf"frame_00{frame}\.tif is empty \(0 bytes\); copy")
    paths[frame].write_text("I am not an image")
    refuse(paths, rf"frame_00{frame}\.tif is not a whole TIFF file .*copy it again")
    paths[frame].unlink()
    refuse(paths, rf"can't read .*frame_00{frame}\.tif: No such file")
    paths[frame].mkdir()
    refuse(paths, rf"can't read .*frame_00{frame}\.tif: Is a directory")


def test_a_frame_unlike_the_first(tmp_path):
    paths = write_frames(tmp_path)
    tifffile.imwrite(paths[2], CUBE[2, :, :-1], **GREY)
    refuse(paths, r"frame_002\.tif is 40x47 uint16, the first frame frame_000\.tif is 40x48 uint16; all.*remove it")
    tifffile.imwrite(paths[2], CUBE[2].astype("f4"), **GREY)
    refuse(paths, r"frame_002\.tif is 40x48 float32, the first frame")
    tifffile.imwrite(paths[2], CUBE[:2], **GREY)
    refuse(paths, r"frame_002\.tif holds 2 pages among single frames; read it on its own")


def test_pages_unlike_the_first(tmp_path):
    with tifffile.TiffWriter(tmp_path / "p.tif") as tiff:
        tiff.write(CUBE[0], **GREY)
        tiff.write(CUBE[0, :20], **GREY)
    refuse([tmp_path / "p.tif"], r"p\.tif page 1 is 20x48 uint16, the first frame is 40x48 uint16")


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("alone", [True, False])
def test_colour(tmp_path, planar, alone):
    paths = write_frames(tmp_path)
    shape = (40, 48, 3) if planar == "contig" else (3, 40, 48)
    tifffile.imwrite(paths[0], np.zeros(shape, "u1"), photometric="rgb", planarconfig=planar)
    refuse(paths[:1] if alone else paths, r"frame_000\.tif holds .* images of uint8; allowed: grey")


def test_black_and_white(tmp_path):
    tifffile.imwrite(tmp_path / "b.tif", np.zeros((8, 8), bool))
    refuse([tmp_path / "b.tif"], "images of bool; allowed: grey")


def test_more_than_three_axes(tmp_path):
    tifffile.imwrite(tmp_path / "four.tif", np.zeros((2, 3, 8, 8), "u2"), imagej=True, metadata={"axes": "TZYX"})
    refuse([tmp_path / "four.tif"], r"four\.tif holds a stack of 4 axes \(TZYX, \(2, 3, 8, 8\)\); allowed: 3")


@pytest.mark.skipif(find_spec("imagecodecs") is not None, reason="imagecodecs is there: all compressions can be read")
def test_a_compression_that_needs_another_package(tmp_path):
    path = tmp_path / "lzw.tif"
    tifffile.imwrite(path, CUBE[0], compression="zlib", **GREY)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[0].tags["Compression"].overwrite(5)
    refuse([path], r"lzw\.tif.*requires the 'imagecodecs' package; install it, or save the frames uncompressed")


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_files_that_change_after_opening(tmp_path, compression):
    paths = write_frames(tmp_path, compression=compression)
    array = open_tiff(paths).array
    tifffile.imwrite(paths[3], CUBE[3, :4, :4], compression=compression, **GREY)
    os.truncate(paths[1], 300)
    paths[2].unlink()
    np.testing.assert_array_equal(array[0:1, :, :], CUBE[:1])
    for i, message in (
        (1, r"frame_001\.tif (is truncated|can't be decoded)"),
        (2, r"can't read .*frame_002\.tif: No such file"),
        (3, r"frame_003\.tif (is truncated|has changed)"),
    ):
        with pytest.raises(UserError, match=message):
            array[i : i + 1, :, :]


def test_broken_stream_inside_a_whole_file(tmp_path):
    path = write_frames(tmp_path, compression="zlib")[0]
    with tifffile.TiffFile(path) as tiff:
        where = tiff.pages[0].dataoffsets[0]
    whole = bytearray(path.read_bytes())
    whole[where : where + 40] = b"\xff" * 40
    path.write_bytes(whole)
    with pytest.raises(UserError, match=r"frame_000\.tif can't be decoded"):
        open_tiff([path]).array[ALL]


def test_the_description_is_plain_json(tmp_path):
    save(xr.DataArray(CUBE, dims=("tof", "y", "x"), name="image"), tmp_path / "own.tif")
    with tifffile.TiffFile(tmp_path / "own.tif") as tiff:
        assert json.loads(tiff.imagej_metadata["Info"])["dims"] == ["tof", "y", "x"]
