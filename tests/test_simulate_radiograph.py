"""Simulated radiographs: repeatable, true to their truth, and as hard as the measured ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from niseg_gpu import cli
from niseg_gpu.backend import CPU
from niseg_gpu.errors import UserError
from niseg_gpu.io.open import open_stack
from niseg_gpu.simulate import radiograph, radiograph_frames
from niseg_gpu.simulate.radiograph import make_radiograph_frame, make_radiograph_sample, simulate_radiograph
from niseg_gpu.simulate.spots import add_spots, draw_spots, expect_marked, extract_spots

SMALL = {"height": 96, "width": 130, "n_frames": 3, "seed": 4}


def read_all(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("radiograph") / "small"
    simulate_radiograph(out, **SMALL)
    return out


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One frame of 1024 x 1024 of each of three seeds."""
    folder = tmp_path_factory.mktemp("radiograph")
    for seed in range(1, 4):
        simulate_radiograph(folder / str(seed), height=1024, width=1024, seed=seed)
    return [folder / str(seed) for seed in range(1, 4)]


def test_the_same_seed_gives_the_same_files_whatever_the_workers(small, tmp_path):
    simulate_radiograph(tmp_path / "again", workers=1, **SMALL)
    assert read_all(tmp_path / "again") == read_all(small)
    simulate_radiograph(tmp_path / "other", **SMALL | {"seed": 5})
    assert read_all(tmp_path / "other")["dark.tif"] != read_all(small)["dark.tif"]


def test_a_frame_does_not_depend_on_how_many_there_are(small, tmp_path):
    simulate_radiograph(tmp_path / "one", **SMALL | {"n_frames": 1})
    one, three = read_all(tmp_path / "one"), read_all(small)
    assert one["images/image_00000.tif"] == three["images/image_00000.tif"]
    assert three["images/image_00001.tif"] != three["images/image_00000.tif"]


@pytest.mark.parametrize("options", [{}, {"spots": 0.03, "blur_pixels": 0.0, "open_beam_neutrons": 500.0}])
def test_a_sample_in_memory_is_what_is_written(tmp_path, options):
    simulate_radiograph(tmp_path / "run", **SMALL, **options)
    truth = {name: tifffile.imread(tmp_path / "run" / "truth" / f"{name}.tif") for name in ("mask", "deposit", "clean")}
    image, mask = make_radiograph_sample((96, 130), seed=4, **options)
    assert image.dtype == np.uint16 and mask.dtype == np.uint8
    np.testing.assert_array_equal(image, tifffile.imread(tmp_path / "run" / "images" / "image_00000.tif"))
    np.testing.assert_array_equal(mask, truth["mask"][0])
    frame = make_radiograph_frame((96, 130), seed=4, frame=2, **options)
    np.testing.assert_array_equal(frame.image, tifffile.imread(tmp_path / "run" / "images" / "image_00002.tif"))
    for name, expected in truth.items():
        np.testing.assert_array_equal(getattr(frame, name), expected[2], err_msg=name)
    assert (make_radiograph_sample((96, 130), seed=5, **options)[0] != image).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (96, 96, 96)}, r"shape=\(96, 96, 96\); give 2 sides"),
        ({"shape": (96, 8)}, r"shape=\(96, 8\); give 2 sides of 32 to 65536, such as 512x512"),
        ({"spot": 0.02}, "a sample of simulate_radiograph has no parameter 'spot'; did you mean 'spots'"),
        ({"n_frames": 2}, "has no parameter 'n_frames'"),
        ({"spots": 2.0}, "spots=2.0 is out of range"),
        ({"frame": -1}, "frame=-1 is out of range"),
    ],
)
def test_samples_that_make_no_sense_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        make_radiograph_frame(**{"shape": (96, 96), "seed": 1, **options})


def test_known_values(small):
    """Sums that another machine or library must give too; change them only with the model."""
    image = tifffile.imread(small / "images" / "image_00002.tif")
    assert [int(image.sum()), int(tifffile.imread(small / "truth" / "mask.tif").sum())] == [88615229, 355]


def test_files_are_as_described(small):
    assert open_stack(small / "images").shape == (3, 96, 130)
    kinds = {"mask": np.uint8, "deposit": np.float32, "clean": np.uint16}
    for name, kind in kinds.items():
        page = tifffile.imread(small / "truth" / f"{name}.tif")
        assert page.shape == (3, 96, 130) and page.dtype == kind
    for name in ("open_beam", "dark"):
        assert tifffile.imread(small / f"{name}.tif").shape == (96, 130)
    summary = json.loads((small / "truth" / "simulation.json").read_text())
    assert summary["seed"] == 4 and summary["n_marked"] == tifffile.imread(small / "truth" / "mask.tif").sum()


def test_truth_agrees_with_itself_and_the_images(small):
    mask, deposit, clean = (tifffile.imread(small / "truth" / f"{n}.tif") for n in ("mask", "deposit", "clean"))
    images = np.stack([tifffile.imread(p) for p in sorted((small / "images").iterdir())])
    np.testing.assert_array_equal(mask, deposit > 2)
    np.testing.assert_array_equal(images[deposit == 0], clean[deposit == 0])
    added = images.astype(np.int64) - clean
    assert added.min() >= 0 and (added[mask == 1] > 0).all()
    sigma = added[deposit > 20] / deposit[deposit > 20]
    assert 15 < sigma.min() and sigma.max() < 60


def test_the_noise_is_what_the_truth_says(tmp_path):
    """The scatter of clean frames is the sigma that the deposits are measured in."""
    simulate_radiograph(tmp_path / "run", height=256, width=256, n_frames=16, spots=0.05, seed=2)
    clean, deposit = (tifffile.imread(tmp_path / "run" / "truth" / f"{n}.tif") for n in ("clean", "deposit"))
    measured = clean.astype(np.float64).std(axis=0, ddof=1)
    images = np.stack([tifffile.imread(p) for p in sorted((tmp_path / "run" / "images").iterdir())])
    strong = (deposit > 10) & (images < 65535)
    sigma = (images.astype(np.float64) - clean)[strong] / deposit[strong]
    ratio = np.broadcast_to(measured, deposit.shape)[strong] / sigma
    assert np.sqrt(np.mean(ratio**2)) == pytest.approx(1, abs=0.01)


def test_spots_are_as_many_as_asked_for(large):
    for run in large:
        assert 0.005 < tifffile.imread(run / "truth" / "mask.tif").mean() < 0.015
    assert np.mean([tifffile.imread(r / "truth" / "mask.tif").mean() for r in large]) == pytest.approx(0.01, rel=0.1)


def test_a_fixed_threshold_does_as_on_measured_images(large):
    """The lecture has precision .998 and recall .07 to .09 for a distance of 1000 counts from the 3 x 3 median."""
    found = np.zeros((len(large), 3))
    for run, row in zip(large, found, strict=True):
        image = tifffile.imread(run / "images" / "image_00000.tif")
        mask = tifffile.imread(run / "truth" / "mask.tif") > 0
        far = abs(image.astype(np.int32) - CPU.median(image, size=(3, 3))) > 1000
        row[:] = (far & mask).sum(), far.sum(), mask.sum()
    precision, recall = found[:, 0] / found[:, 1], found[:, 0] / found[:, 2]
    assert (precision > 0.99).all() and (0.06 < recall).all() and (recall < 0.11).all()
    assert 0.996 < found[:, 0].sum() / found[:, 1].sum() and 0.07 < found[:, 0].sum() / found[:, 2].sum() < 0.09


def test_strengths_follow_the_power_law():
    limits = {"exponent": 1.7, "counts_range": (20.0, 1e8)}
    place, counts = draw_spots(200_000, height=4000, width=4000, rng=np.random.default_rng(1), **limits)
    assert place.min() >= 0 and place.max() < 4000 * 4000 and counts.max() <= 1e8
    n_above = [np.count_nonzero(counts > limit) for limit in (100, 1000, 10_000)]
    assert n_above[1] / n_above[0] == pytest.approx(10**-0.7, rel=0.02)
    assert n_above[2] / n_above[1] == pytest.approx(10**-0.7, rel=0.04)
    assert n_above[0] / 200_000 == pytest.approx(expect_marked(np.array([100.0]), **limits), rel=0.02)


@pytest.mark.parametrize("out", ["taken", "file/run"])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path, out):
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"exists|can't be made"):
        simulate_radiograph(tmp_path / out, **SMALL)
    assert {p.name for p in tmp_path.iterdir()} == {"taken", "file"}


def test_folders_above_are_made(tmp_path):
    simulate_radiograph(tmp_path / "beam_time" / "run", **SMALL)
    assert (tmp_path / "beam_time" / "run" / "truth" / "simulation.json").is_file()


def test_nothing_is_left_of_a_failed_run(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(radiograph, "expose_frame", fail)
    with pytest.raises(UserError, match="No space left"):
        simulate_radiograph(tmp_path / "run", **SMALL)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "value"), [("height", 8), ("spots", 0.5), ("exponent", 1.0), ("n_frames", 0)])
def test_values_out_of_range_are_refused(tmp_path, name, value):
    with pytest.raises(UserError, match=f"{name}=.* out of range"):
        simulate_radiograph(tmp_path / "run", **SMALL | {name: value})


def test_clipped_values_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(radiograph_frames, "SPOT_COUNTS", (30_000.0, 90_000.0))
    summary = simulate_radiograph(tmp_path / "run", **SMALL)
    images = np.stack([tifffile.imread(p) for p in sorted((tmp_path / "run" / "images").iterdir())])
    full = np.count_nonzero(images == 65535)
    assert 0 < summary["n_clipped"] == full


def test_command(tmp_path, capsys):
    arguments = ["simulate", "radiograph", str(tmp_path / "run"), "--height", "40", "--width", "50", "--n-frames", "2"]
    for status in (0, 2):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert (ended.value.code or 0) == status
    assert "exists" in capsys.readouterr().err
    assert (tmp_path / "run" / "preview.png").read_bytes().startswith(b"\x89PNG")
    assert open_stack(tmp_path / "run" / "images").shape == (2, 40, 50)


def test_spots_of_a_dark_image_are_found_and_added(large):
    dark = tifffile.imread(large[0] / "dark.tif")
    deposits = extract_spots(dark, threshold=60.0)
    assert deposits.dtype == np.float32 and deposits.shape == dark.shape
    assert 0.002 < np.mean(deposits > 0) < 0.05 and deposits[deposits > 0].min() > 60
    image = np.full((300, 1500), 65_000, np.uint16)
    struck, placed = add_spots(image, deposits, seed=3)
    np.testing.assert_array_equal(struck, np.minimum(65_000 + np.rint(placed), 65_535))
    np.testing.assert_array_equal(placed[:, :400], placed[:, 1024:1424])  # wider than the dark image: repeated
    assert np.isin(placed, deposits).all() and (placed > 0).any()
    np.testing.assert_array_equal(add_spots(image, deposits, seed=3)[0], struck)
    assert (add_spots(image, deposits, seed=4)[1] != placed).any()


def test_spots_of_measured_dark_frames_replace_drawn_ones(tmp_path, data_dir):
    path = data_dir / "radiograph_wood" / "dc_0000.tif"
    if not path.is_file():
        pytest.skip(f"no measured dark frame at {path}")
    summary = simulate_radiograph(tmp_path / "run", dark_frames=str(path), height=897, width=604)
    truth = {name: tifffile.imread(tmp_path / "run" / "truth" / f"{name}.tif") for name in ("mask", "deposit", "clean")}
    image = tifffile.imread(tmp_path / "run" / "images" / "image_00000.tif")
    added = image.astype(np.int64) - truth["clean"]
    # The dark frame, shifted round and perhaps mirrored: the same counts in other places.
    deposits = extract_spots(tifffile.imread(path), threshold=1.0)
    measured = np.sort(deposits[deposits > 0])[::-1][:100]
    np.testing.assert_array_equal(np.sort(added[added > 0])[::-1][:100], measured)
    assert summary["n_marked"] == truth["mask"].sum() > 100
    np.testing.assert_array_equal(added > 0, truth["deposit"] > 0)
    strong = truth["deposit"] > 20
    assert strong.sum() > 5 and (truth["mask"][strong] == 1).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_dark_frames_with_values_that_are_no_numbers_are_refused(tmp_path, value):
    dark = np.full((64, 64), 300, np.float32)
    dark[3, 3], dark[9, 9] = value, 900
    np.testing.assert_array_equal(np.flatnonzero(extract_spots(dark, threshold=10.0)), [9 * 64 + 9])
    np.save(tmp_path / "dark.npy", dark)
    with pytest.raises(UserError, match="holds 1 values that are NaN or Inf"):
        make_radiograph_sample((64, 64), seed=1, dark_frames=str(tmp_path / "dark.npy"))


def test_dark_frames_without_spots_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "flat.tif", np.full((64, 64), 300, np.uint16))
    with pytest.raises(UserError, match="has no pixel .* above its neighbours"):
        simulate_radiograph(tmp_path / "run", dark_frames=str(tmp_path / "flat.tif"), **SMALL)


def test_spots_have_the_sizes_of_their_kinds():
    """Two in five are single pixels; blobs, clusters and tracks have up to thirty above a tenth of their peak."""
    rng, sizes = np.random.default_rng(1), []
    for _ in range(2000):
        place, counts = draw_spots(1, height=200, width=200, exponent=1.7, counts_range=(1000.0, 40_000.0), rng=rng)
        sizes.append(len(np.unique(place[counts > 0.1 * counts.max()])))
    shares = np.histogram(sizes, [0, 1, 2, 5, 10, 20, 31, 1000])[0] / 2000
    np.testing.assert_allclose(shares, [0, 0.43, 0.08, 0.18, 0.20, 0.11, 0], atol=0.04)


def test_extracting_single_pixels_is_exact():
    dark = np.full((2, 20, 20), 300, np.uint16)
    dark[0, 5, 5], dark[1, 0, 19], dark[1, 9, 9] = 900, 410, 100
    expected = np.zeros((2, 20, 20), np.float32)
    expected[0, 5, 5], expected[1, 0, 19] = 600, 110
    np.testing.assert_array_equal(extract_spots(dark, threshold=100.0), expected)


def test_shapes_and_sizes_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match="size 4"):
        extract_spots(np.zeros((9, 9), np.uint16), size=4, threshold=5.0)
    with pytest.raises(UserError, match="add_spots got an array of shape"):
        add_spots(np.zeros(9, np.uint16), np.zeros((9, 9), np.float32), seed=1)
