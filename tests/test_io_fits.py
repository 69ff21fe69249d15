import os
import warnings

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from niseg_gpu.errors import UserError
from niseg_gpu.io.fits import open_fits
from niseg_gpu.io.open import open_stack

few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ALL = (slice(None),) * 3
BITPIX = {"u1": 8, "i2": 16, "i4": 32, "i8": 64, "f4": -32, "f8": -64}


def cards(**values):
    return "".join(f"{key:<8}= {value:>20}".ljust(80) for key, value in values.items())


def write_stored(path, stored, **more):
    """What is `stored` behind a header of our own: Astropy would take BSCALE, BZERO and BLANK for its own affair."""
    axes = {f"NAXIS{i + 1}": n for i, n in enumerate(stored.shape[::-1])}
    text = cards(SIMPLE="T", BITPIX=BITPIX[stored.dtype.str[1:]], NAXIS=stored.ndim, **axes, **more) + "END".ljust(80)
    data = stored.astype(stored.dtype.newbyteorder(">")).tobytes()
    path.write_bytes(text.ljust(-(-len(text) // 2880) * 2880).encode() + data + bytes(-len(data) % 2880))
    return path


def write_run(folder, n=4, shape=(5, 6), **header):
    paths = [folder / f"run_{i:05d}.fits" for i in range(n)]
    for i, path in enumerate(paths):
        frame = np.arange(i, i + np.prod(shape), dtype="i2").reshape(shape)
        fits.PrimaryHDU(frame, fits.Header({"TOF": 1e-3 + i * 1e-5, "TIMEBIN": 1e-5, **header})).writeto(path)
    return paths


def astropy(path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fits.getdata(path, **options)


def assert_same(path, **options):
    ours, theirs = open_fits([path]).array, astropy(path, **options)
    assert ours.dtype == theirs.dtype.newbyteorder("=") and ours.dtype.isnative
    np.testing.assert_array_equal(ours[ALL].reshape(theirs.shape), theirs)


@few
@given(
    values=hnp.arrays(
        st.sampled_from(["u1", "i2", "i4", "i8", "f4", "f8", "u2", "u4", "u8", "i1"]),
        hnp.array_shapes(min_dims=2, max_dims=3, min_side=2, max_side=6),
    ),
    data=st.data(),
)
def test_values_are_astropys_bit_for_bit(tmp_path, values, data):
    path = tmp_path / "any.fits"
    fits.PrimaryHDU(values).writeto(path, overwrite=True)
    theirs = astropy(path)
    theirs = theirs.astype(theirs.dtype.newbyteorder("=")).reshape(-1, *values.shape[-2:])
    array = open_fits([path]).array
    key = tuple(slice(*sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n))))) for n in theirs.shape)
    assert array.shape == theirs.shape and array.dtype == theirs.dtype == values.dtype
    assert array[key].tobytes() == theirs[key].tobytes()  # NaN, too


@few
@given(
    stored=hnp.arrays(st.sampled_from(["u1", "i2", "i4"]), (3, 4), elements=st.integers(0, 100)),
    scale=st.sampled_from([1, 0.5, 2, -3]),
    zero=st.sampled_from([0, 1, -7.25, 1e4]),
    blank=st.none() | st.integers(0, 100),
)
def test_scale_zero_and_blank_are_astropys(tmp_path, stored, scale, zero, blank):
    path = write_stored(
        tmp_path / "s.fits", stored, BSCALE=scale, BZERO=zero, **({} if blank is None else {"BLANK": blank})
    )
    if blank or (scale, zero) != (1, 0):
        assert_same(path)
    else:  # Astropy makes float32 of integers whose BLANK is 0, without a NaN in it
        array = open_fits([path]).array
        assert array.dtype == stored.dtype
        np.testing.assert_array_equal(array[ALL][0], astropy(path))


@pytest.mark.parametrize(
    ("dtype", "header"),
    [
        ("i2", {"BLANK": -5}),
        ("i4", {"BLANK": -5}),
        ("u1", {"BLANK": 3}),
        ("i2", {"BLANK": -5, "BZERO": 32768}),  # unsigned integers have no NaN: kept, as Astropy does
        ("f4", {"BLANK": 3}),
        ("i2", {"BZERO": 32768, "BSCALE": 1}),
        ("i2", {"BZERO": 32768, "BSCALE": 2}),
        ("i4", {"BZERO": 2147483648}),
        ("i8", {"BZERO": 9223372036854775808}),
        ("u1", {"BZERO": -128}),
        ("f4", {"BSCALE": 0.1, "BZERO": 5}),
        ("f8", {"BSCALE": 0.1, "BZERO": 5}),
    ],
)
def test_conventions_are_astropys(tmp_path, dtype, header):
    stored = np.arange(-6, 6).astype(dtype).reshape(3, 4)
    assert_same(write_stored(tmp_path / "c.fits", stored, **header))


def test_float32_from_scaled_counts_is_near_the_exact_value(tmp_path):
    stored = np.arange(-32768, 32768, 7, dtype="i2")[None, :]
    path = write_stored(tmp_path / "s.fits", stored, BSCALE=0.0123, BZERO=456.7)
    array = open_fits([path]).array
    assert array.dtype == np.float32
    np.testing.assert_allclose(array[ALL][0], stored * 0.0123 + 456.7, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("frame", [0, 2, 3])
def test_headers_of_different_lengths(tmp_path, frame):
    paths = write_run(tmp_path)
    with fits.open(paths[frame], mode="update") as hdus:
        hdus[0].header.insert(5, ("FILLER", 1))
        for i in range(100):
            hdus[0].header[f"MORE{i}"] = i
        del hdus[0].header["TOF"]
        hdus[0].header["TOF"] = 1e-3 + frame * 1e-5  # now behind the first block
    source = open_fits(paths)
    assert len(set(source.array.offsets)) == 2
    np.testing.assert_array_equal(source.array[ALL], [astropy(p) for p in paths])
    np.testing.assert_allclose(source.coords["tof"], 1e-3 + np.arange(4) * 1e-5, rtol=1e-12)
    np.testing.assert_allclose(source.coords["tof_width"], 1e-5)


def write_extension(path, image, *, extra=0):
    second = fits.ImageHDU(image)
    for i in range(extra):
        second.header[f"MORE{i}"] = i
    fits.HDUList([fits.PrimaryHDU(), second]).writeto(path)


def test_images_in_the_first_extension_whose_headers_differ_in_length(tmp_path):
    images = np.arange(3 * 4 * 5, dtype="i4").reshape(3, 4, 5)
    paths = [tmp_path / f"e{i}.fits" for i in range(3)]
    for path, image, extra in zip(paths, images, (0, 60, 0), strict=True):
        write_extension(path, image, extra=extra)  # the primary headers are all alike
    np.testing.assert_array_equal(open_fits(paths).array[ALL], images)


def test_extensions_behind_the_image_are_left_alone(tmp_path):
    path, image = tmp_path / "x.fits", np.arange(20, dtype="i2").reshape(4, 5)
    table = fits.BinTableHDU.from_columns([fits.Column("a", "J", array=np.arange(3))])
    fits.HDUList([fits.PrimaryHDU(image), fits.ImageHDU(image * 2), table]).writeto(path)
    np.testing.assert_array_equal(open_fits([path]).array[ALL], image[None])


def test_a_spectrum_in_the_primary_is_no_frame(tmp_path):
    path, image = tmp_path / "x.fits", np.arange(20, dtype="i2").reshape(4, 5)
    fits.HDUList([fits.PrimaryHDU(np.arange(7.0)), fits.ImageHDU(image)]).writeto(path)
    np.testing.assert_array_equal(open_fits([path]).array[ALL], image[None])


def test_axes_of_length_one_are_dropped(tmp_path):
    path, image = tmp_path / "x.fits", np.arange(20, dtype="i2").reshape(1, 1, 4, 5)
    fits.PrimaryHDU(image).writeto(path)
    assert open_fits([path]).array.shape == (1, 4, 5)
    assert open_stack(path).dims == ("y", "x")


def test_cube_is_one_file_of_many_frames(tmp_path):
    cube = np.random.default_rng(0).normal(size=(4, 5, 6)).astype("f4")
    fits.PrimaryHDU(cube).writeto(tmp_path / "cube.fits")
    stack = open_stack(tmp_path / "cube.fits", dims=("tof", "y", "x"))
    assert stack.dims == ("tof", "y", "x")
    np.testing.assert_array_equal(stack.values, cube)


def test_times_in_the_headers(tmp_path):
    paths = write_run(tmp_path)
    assert set(open_fits(paths).coords) == {"tof", "tof_width"}
    fits.setval(paths[1], "TOF", value="unknown")
    assert set(open_fits(paths).coords) == {"tof_width"}
    fits.delval(paths[2], "TIMEBIN")
    assert not open_fits(paths).coords


def test_a_comment_that_looks_like_a_card_is_none(tmp_path):
    paths = write_run(tmp_path)
    fits.setval(paths[0], "COMMENT", value="TOF     = 5.0 BITPIX  = 8 END")
    source = open_fits(paths)
    assert source.coords["tof"][0] == 1e-3
    assert source.array.shape == (4, 5, 6)


def test_alike_headers_are_read_without_astropy(tmp_path, monkeypatch):
    paths = write_run(tmp_path)
    opened, open_ = [], fits.open
    monkeypatch.setattr(fits, "open", lambda path, **options: opened.append(path) or open_(path, **options))
    open_fits(paths)
    assert opened == paths[:1]


def test_measured_frame_that_wrapped(data_dir):
    path = data_dir / "mcp_frames" / "raw_siemens_star.fits"
    theirs = astropy(path)
    assert theirs.min() < 0
    plain, counts = open_stack(path), open_stack(path, unsigned=True)
    assert plain.dims == counts.dims == ("y", "x") and plain.dtype == np.int16 and counts.dtype == np.uint16
    np.testing.assert_array_equal(plain.values, theirs)
    np.testing.assert_array_equal(counts.values, theirs.astype("i8") % 65536)


def test_measured_float_frames(data_dir):
    paths = sorted((data_dir / "tof_ibeatles").glob("*.fits"))
    source = open_fits(paths)
    assert source.array.dtype == np.float32
    for i in (0, 9):
        np.testing.assert_array_equal(source.array[i : i + 1, :, :][0], astropy(paths[i]))
    assert source.coords["tof"][0] == 0.00273503991775215


# what is wrong with a file ------------------------------------------------------------------------------------


def refuse(paths, message):
    with pytest.raises(UserError, match=message) as refused:
        open_fits(paths)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("frame", [0, 2])
@pytest.mark.parametrize("cut", [0, 3, 9, 80, 2000, 2880, 2900, 2939])
def test_truncated_anywhere(tmp_path, frame, cut):
    paths = write_run(tmp_path)
    os.truncate(paths[frame], cut)
    refuse(paths, rf"run_0000{frame}\.fits.*(empty|not a FITS|can't be read|truncated).*copy|remove")


def test_missing_padding_is_no_fault(tmp_path):
    paths = write_run(tmp_path)
    os.truncate(paths[1], 2880 + 5 * 6 * 2)
    np.testing.assert_array_equal(open_fits(paths).array[ALL][1], np.arange(1, 31).reshape(5, 6))


@pytest.mark.parametrize("frame", [0, 2])
def test_text_folder_and_missing_file(tmp_path, frame):
    paths = write_run(tmp_path)
    paths[frame].write_text("I am not an image, though long enough to be taken for the head of one.")
    refuse(paths, rf"run_0000{frame}\.fits is not a FITS file: it begins with b'I am not '")
    paths[frame].unlink()
    refuse(paths, rf"can't read .*run_0000{frame}\.fits: No such file")
    paths[frame].mkdir()
    refuse(paths, rf"can't read .*run_0000{frame}\.fits: Is a directory")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((5, 7), "i2"), "is 5x7 int16, the first frame run_00000.fits is 5x6 int16"),
        (np.zeros((5, 6), "f4"), "is 5x6 float32, the first"),
        (np.zeros((5, 6), "u2"), "is 5x6 int16, BSCALE 1, BZERO 32768, the first"),
        (np.zeros((2, 5, 6), "i2"), "is 2x5x6 int16, the first"),
    ],
)
def test_a_frame_unlike_the_first(tmp_path, image, message):
    paths = write_run(tmp_path)
    fits.PrimaryHDU(image).writeto(paths[2], overwrite=True)
    refuse(paths, rf"run_00002\.fits {message}.*remove it")


def test_a_frame_scaled_unlike_the_first(tmp_path):
    paths = write_run(tmp_path)
    write_stored(paths[3], np.zeros((5, 6), "i2"), BSCALE=0.5)
    refuse(paths, r"run_00003\.fits is 5x6 int16, BSCALE 0\.5, BZERO 0, the first")
    write_stored(paths[3], np.zeros((5, 6), "i2"), BLANK=-1)
    refuse(paths, r"run_00003\.fits is 5x6 int16, BLANK -1, the first")


def test_what_is_no_stack(tmp_path):
    path = tmp_path / "x.fits"
    fits.PrimaryHDU().writeto(path)
    refuse([path], r"x\.fits holds no image")
    fits.PrimaryHDU(np.zeros((2, 3, 4, 5), "i2")).writeto(path, overwrite=True)
    refuse([path], "4-D image; allowed: 2-D frames, or one 3-D cube")
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(np.zeros((32, 32), "i2"))]).writeto(path, overwrite=True)
    refuse([path], "tile-compressed FITS; unpack it")
    write_stored(path, np.zeros((3, 0), "i2"))
    refuse([path], "without pixels")


def test_a_header_that_means_nothing(tmp_path):
    path = write_stored(tmp_path / "x.fits", np.zeros((3, 4), "i2"))
    path.write_bytes(path.read_bytes().replace(cards(BITPIX=16).encode(), cards(BITPIX=17).encode()))
    refuse([path], r"x\.fits.*(header can't be read|no image)")
