import multiprocessing
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from niseg_gpu.errors import UserError
from niseg_gpu.io.hdf5 import open_hdf5, open_nxtomo

ALL = (slice(None),) * 3
few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def cube():
    return np.arange(4 * 5 * 6, dtype="u2").reshape(4, 5, 6)


def write_nxtomo(path, keys, *, units="rad", name="entry", mode="w", angles=None):
    """A scan as beamlines lay it out: frames under the detector, links to them under data."""
    frames = np.arange(len(keys) * 6, dtype=">u2").reshape(len(keys), 2, 3)
    with h5py.File(path, mode) as file:
        entry = file.create_group(name)
        entry.attrs["NX_class"] = "NXentry"
        entry["definition"] = "NXtomo"
        detector = entry.create_group("instrument/detector")
        detector["data"], detector["image_key"] = frames, np.asarray(keys)
        angles = np.linspace(0, np.pi, len(keys)) if angles is None else angles
        entry["sample/rotation_angle"] = angles
        entry["sample/rotation_angle"].attrs["units"] = units
        entry["data/data"] = detector["data"]
        entry["data/image_key"] = h5py.SoftLink(f"/{name}/instrument/detector/image_key")
        entry["data/rotation_angle"] = entry["sample/rotation_angle"]
    return frames


@few
@given(
    values=hnp.arrays(
        st.sampled_from(["?", "u1", ">u2", "<i4", ">f4", "<f8"]), hnp.array_shapes(min_dims=2, max_dims=4, max_side=5)
    ),
    data=st.data(),
)
def test_any_slice_of_any_chunking(tmp_path, values, data):
    chunks = data.draw(st.none() | st.tuples(*(st.integers(1, n) for n in values.shape)))
    packed = {"compression": "gzip"} if chunks else {}
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("entry/data", data=values, chunks=chunks, **packed)
    source = open_hdf5(tmp_path / "a.h5", "/entry/data")
    key = tuple(slice(*sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n))))) for n in values.shape)
    got = source.array[key]
    assert got.dtype == source.array.dtype == values.dtype.newbyteorder("=") and got.dtype.isnative
    assert source.block == (chunks or (*(1,) * (values.ndim - 1), values.shape[-1]))
    assert source.dims is None and source.files == (str(tmp_path / "a.h5"),)
    np.testing.assert_array_equal(got, values[key])


def test_only_dataset_is_taken_several_are_listed(tmp_path, cube):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["deep/inside/counts"] = cube
        file["spectrum"] = np.arange(4)
        file["title"] = "wood"
    np.testing.assert_array_equal(open_hdf5(tmp_path / "a.h5").array[ALL], cube)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["other"] = cube[0]
    with pytest.raises(UserError, match=r"a\.h5: 2 datasets .*/deep/inside/counts \(4, 5, 6\), /other \(5, 6\)"):
        open_hdf5(tmp_path / "a.h5")
    assert open_hdf5(tmp_path / "a.h5", "deep").array.shape == (4, 5, 6)
    with pytest.raises(UserError, match="no dataset '/deep/inside/count'; did you mean '/deep/inside/counts'"):
        open_hdf5(tmp_path / "a.h5", "/deep/inside/count")


def test_default_plot_of_a_nexus_file_with_its_axes(tmp_path, cube):
    with h5py.File(tmp_path / "a.nxs", "w") as file:
        file["raw/other"] = cube
        data = file.create_group("entry/plot")
        data["counts"] = cube
        data["time_of_flight"] = np.array([0, 10, 20, 40, 50], "f4")
        data["time_of_flight"].attrs["units"] = "ms"
        data.attrs.update(NX_class="NXdata", signal="counts", axes=["time_of_flight", "y", "x"])
        file.attrs["default"], file["entry"].attrs["default"] = "entry", "plot"
    source = open_hdf5(tmp_path / "a.nxs")
    assert source.array.name == "/entry/plot/counts" and source.dims == ("tof", "y", "x")
    np.testing.assert_allclose(source.coords["tof"], [0, 0.01, 0.02, 0.04])
    np.testing.assert_allclose(source.coords["tof_width"], [0.01, 0.01, 0.02, 0.01])


def test_nxtomo_is_split_by_image_key(tmp_path):
    keys = np.array([2, 1, 0, 0, 3, 0, 1, 2])
    frames = write_nxtomo(tmp_path / "scan.nxs", keys)
    sources = open_nxtomo(tmp_path / "scan.nxs")
    assert list(sources) == ["sample", "open_beam", "dark"]
    for name, key in {"sample": 0, "open_beam": 1, "dark": 2}.items():
        source = sources[name]
        assert source.dims == ("angle", "y", "x") and source.array.dtype == np.dtype("u2")
        np.testing.assert_array_equal(source.array[ALL], frames[keys == key])
        np.testing.assert_allclose(source.coords["angle"], np.linspace(0, 180, 8)[keys == key])
        assert source.attrs["frames_left_out"] == 1
    np.testing.assert_array_equal(sources["sample"].array[1:3, 1:, :2], frames[[3, 5], 1:, :2])
    np.testing.assert_array_equal(open_hdf5(tmp_path / "scan.nxs").array[ALL], frames[keys == 0])
    assert open_hdf5(tmp_path / "scan.nxs", "entry/data/data").array.shape == frames.shape


@few
@given(keys=st.lists(st.integers(0, 3), min_size=1, max_size=12), data=st.data())
def test_nxtomo_rows_of_any_order(tmp_path, keys, data):
    frames = write_nxtomo(tmp_path / "scan.nxs", keys)
    for name, source in open_nxtomo(tmp_path / "scan.nxs").items():
        rows = np.flatnonzero(np.asarray(keys) == {"sample": 0, "open_beam": 1, "dark": 2}[name])
        a, b = sorted((data.draw(st.integers(0, len(rows))), data.draw(st.integers(0, len(rows)))))
        np.testing.assert_array_equal(source.array[a:b, :, 1:], frames[rows][a:b, :, 1:])


def test_nxtomo_angles_in_degrees_and_absent_kinds(tmp_path):
    write_nxtomo(tmp_path / "scan.nxs", [0, 0], units="degrees", angles=[0.0, 90.0])
    sources = open_nxtomo(tmp_path / "scan.nxs")
    assert list(sources) == ["sample"] and list(sources["sample"].coords["angle"]) == [0, 90]
    write_nxtomo(tmp_path / "scan.nxs", [0, 0], angles=[1.0])
    assert "1 values for 2 frames" in open_nxtomo(tmp_path / "scan.nxs")["sample"].attrs["rotation_angle"]
    write_nxtomo(tmp_path / "scan.nxs", [0, 0], units="turns")
    with pytest.raises(UserError, match="units 'turns'; allowed: degree"):
        open_nxtomo(tmp_path / "scan.nxs")
    write_nxtomo(tmp_path / "scan.nxs", [1, 2])
    with pytest.raises(UserError, match="open_beam and dark frames but none of the sample"):
        open_hdf5(tmp_path / "scan.nxs")


def test_nxtomo_several_entries_need_a_name(tmp_path):
    write_nxtomo(tmp_path / "scan.nxs", [0, 0], name="one")
    write_nxtomo(tmp_path / "scan.nxs", [0, 0, 0], name="two", mode="a")
    with pytest.raises(UserError, match=r"2 groups .*needed: one"):
        open_nxtomo(tmp_path / "scan.nxs")
    for place in ("two", "/two/data", "two/data/data", "two/instrument/detector/image_key"):
        assert open_nxtomo(tmp_path / "scan.nxs", place)["sample"].array.shape == (3, 2, 3)


def test_nxtomo_refuses_keys_that_do_not_fit(tmp_path, cube):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["e/data"], file["e/image_key"] = cube, [0, 1]
    with pytest.raises(UserError, match=r"a\.h5:/e/data: shape \(4, 5, 6\), image_key of 2"):
        open_nxtomo(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["e/data"] = cube
    with pytest.raises(UserError, match=r"a\.h5: 0 groups with data and image_key"):
        open_nxtomo(tmp_path / "a.h5")


def test_refuses_what_is_no_stack(tmp_path, cube):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["complex"], file["line"] = cube + 1j, cube[0, 0]
        file["empty"], file["none"], file["text"] = cube[:, :0], h5py.Empty("f4"), ["a", "b"]
    expected = {"complex": "complex128", "line": r"\(6,\)", "empty": r"\(4, 0, 6\)", "none": "", "text": "object"}
    for name, words in expected.items():
        with pytest.raises(UserError, match=rf"a\.h5:/{name}: .*{words}"):
            open_hdf5(tmp_path / "a.h5", name)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["line"] = cube[0, 0]
    with pytest.raises(UserError, match=r"b\.h5: 0 datasets of 2 or 3 dimensions \(none\)"):
        open_hdf5(tmp_path / "b.h5")


@pytest.mark.parametrize("link", [h5py.SoftLink("/nowhere"), h5py.ExternalLink("gone.h5", "/image")])
def test_a_link_to_nowhere_is_told(tmp_path, link):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["image"] = link
    with pytest.raises(UserError, match=r"a\.h5: 'image' is a link to what is not there"):
        open_hdf5(tmp_path / "a.h5", "image")


def test_broken_files_are_named(tmp_path, cube):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        noise = np.random.default_rng(0).random((4, 50, 50))
        file.create_dataset("image", data=noise, chunks=(1, 50, 50), compression=4)
    source = open_hdf5(tmp_path / "a.h5")
    content = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.h5").write_text("hello")
    for name in ("cut.h5", "text.h5"):
        with pytest.raises(UserError, match=rf"{name}: not a whole HDF5 file"):
            open_hdf5(tmp_path / name)
    with pytest.raises(UserError, match=r"gone\.h5: no such file"):
        open_hdf5(tmp_path / "gone.h5")
    middle = len(content) // 2
    (tmp_path / "a.h5").write_bytes(content[:middle] + bytes(3000) + content[middle + 3000 :])
    with pytest.raises(UserError, match=r"a\.h5:/image: cannot be read"):
        source.array[ALL]


def test_missing_filter_is_named(tmp_path):
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((1, 4))
    plist.set_filter(40000, h5py.h5z.FLAG_OPTIONAL)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        h5py.h5d.create(file.id, b"image", h5py.h5t.NATIVE_FLOAT, h5py.h5s.create_simple((4, 4)), plist)
    with pytest.raises(UserError, match=r"a\.h5:/image: compressed with .*40000.*install hdf5plugin"):
        open_hdf5(tmp_path / "a.h5")


@pytest.mark.filterwarnings("ignore:os.fork")  # JAX, where another test has loaded it, warns of every fork
def test_threads_pickles_and_forks_read_the_same(tmp_path, cube):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["image"] = cube
    array = open_hdf5(tmp_path / "a.h5").array
    assert len(pickle.dumps(array)) < 1000
    results = []
    threads = [threading.Thread(target=lambda: results.append(array[ALL])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        results.append(pool.submit(array.__getitem__, ALL).result(timeout=30))
    assert len(results) == 9 and all(np.array_equal(result, cube) for result in results)
    with h5py.File(tmp_path / "a.h5", "a") as file:  # nothing of ours holds it open
        file["image"][0] = 0
