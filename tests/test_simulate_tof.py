import hashlib
import json

import numpy as np
import pytest
import tifffile
from astropy.io import fits
from scipy import stats

from niseg_gpu.errors import UserError
from niseg_gpu.simulate import detector
from niseg_gpu.simulate.bragg import compute_attenuation
from niseg_gpu.simulate.detector import draw_poisson
from niseg_gpu.simulate.scenes import SCENES, Scene, build_blocks
from niseg_gpu.simulate.timing import compute_spectrum, plan_timing
from niseg_gpu.simulate.tof import simulate_tof

SMALL = dict(n_bins=24, height=48, width=64, workers=2)


def read_frames(folder):
    frames = [fits.getdata(path) for path in sorted(folder.glob("run_*.fits"))]
    return np.stack(frames).astype(np.float64)


def read_table(folder, name):
    return np.loadtxt(folder / f"run_{name}.txt", delimiter="\t")


def correct_overlap(frames, window_bins, n_triggers):
    """Divide by 1 - P per window, written out plainly."""
    corrected = np.empty_like(frames)
    for (first, stop), triggers in zip(window_bins, n_triggers, strict=True):
        earlier = np.cumsum(frames[first:stop], axis=0) - frames[first:stop]
        corrected[first:stop] = frames[first:stop] / (1 - earlier / triggers)
    return corrected


def hash_folder(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def build_slab(materials=(), thickness=(), height=40, width=50):
    maps = np.zeros((len(materials), height, width), np.float32)
    maps += np.reshape(np.asarray(thickness, np.float32), (-1, 1, 1))
    return Scene(tuple(materials), np.full((height, width), bool(materials), np.uint8), maps)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("simulate") / "run"
    return out, simulate_tof(out, **SMALL)


def test_same_seed_same_bytes_whatever_the_workers(run, tmp_path):
    out, _ = run
    simulate_tof(tmp_path / "again", **SMALL | {"workers": 5})
    assert hash_folder(tmp_path / "again") == hash_folder(out)


def test_other_seed_other_counts(run, tmp_path):
    out, _ = run
    simulate_tof(tmp_path / "other", seed=7, **SMALL)
    assert not np.array_equal(read_frames(out / "sample"), read_frames(tmp_path / "other" / "sample"))


def test_frames_are_conforming_fits(run):
    out, summary = run
    for beam in ("sample", "open_beam"):
        spectra = read_table(out / beam, "Spectra")
        paths = sorted((out / beam).glob("run_*.fits"))
        assert [p.name for p in paths] == [f"run_{i:05d}.fits" for i in range(24)]
        for i, path in enumerate(paths):
            with fits.open(path) as hdus:
                hdus.verify("exception")
                header, data = hdus[0].header, hdus[0].data
                assert data.shape == (48, 64) and data.dtype == np.dtype(">i2") and header["BITPIX"] == 16
                assert header["TOF"] == pytest.approx(spectra[i, 0], abs=1e-12)
                assert header["TIMEBIN"] == pytest.approx(summary["bin_width_s"], abs=1e-14)
                assert header["N_COUNTS"] == data.sum(dtype=np.int64) == spectra[i, 1]
                window = next(w for w, (a, b) in enumerate(summary["window_bins"]) if a <= i < b)
                assert header["N_TRIGS"] == summary["n_triggers"][beam][window]


def test_text_files_agree_with_one_another(run):
    out, summary = run
    for beam in ("sample", "open_beam"):
        tof = read_table(out / beam, "Spectra")[:, 0]
        counts, times = read_table(out / beam, "ShutterCount"), read_table(out / beam, "ShutterTimes")
        assert counts.shape == (256, 2) and times.shape == (256, 3)
        assert np.array_equal(counts[:, 0], np.arange(256)) and np.array_equal(times[:, 0], np.arange(256))
        used = len(summary["window_bins"])
        assert (counts[:used, 1] > 0).all() and not counts[used:, 1].any() and not times[used:, 1:].any()
        end = 0.0
        for (first, stop), (delay, width) in zip(summary["window_bins"], times[:used, 1:], strict=True):
            assert end + delay == pytest.approx(tof[first], abs=1e-12)
            assert width == pytest.approx((stop - first) * summary["bin_width_s"], abs=1e-12)
            np.testing.assert_allclose(np.diff(tof[first:stop]), summary["bin_width_s"], atol=1e-12)
            end += delay + width


def test_layout_is_that_of_a_real_run(run, data_dir):
    out, _ = run
    real = data_dir / "tof_mcp_crop"
    if not real.is_dir():
        pytest.skip(f"no real run at {real}")
    for name in ("ShutterCount", "ShutterTimes", "Spectra"):
        theirs = next(real.glob(f"*_{name}.txt")).read_bytes()
        ours = (out / "sample" / f"run_{name}.txt").read_bytes()
        assert theirs.split(b"\r\n")[0].count(b"\t") == ours.split(b"\r\n")[0].count(b"\t")
        if name != "Spectra":
            assert theirs.count(b"\r\n") == ours.count(b"\r\n") == 256
    first = next(iter(sorted(real.glob("*.fits"))))
    theirs, ours = fits.getheader(first), fits.getheader(out / "sample" / "run_00000.fits")
    for keyword in ("BITPIX", "NAXIS", "TOF", "TIMEBIN", "N_COUNTS", "N_TRIGS"):
        assert type(theirs[keyword]) is type(ours[keyword])


def test_truth_fits_the_frames(run):
    out, summary = run
    labels = tifffile.imread(out / "truth" / "labels.tif")
    thickness = tifffile.imread(out / "truth" / "thickness_cm.tif")
    names = json.loads((out / "truth" / "materials.json").read_text())
    assert labels.shape == thickness.shape == (48, 64)
    assert labels.dtype == np.uint8 and thickness.dtype == np.float32
    assert names == {"0": "void", "1": "alpha_iron", "2": "austenitic_steel", "3": "aluminium"}
    assert sorted(np.unique(labels)) == [0, 1, 2, 3]
    assert thickness.max() == pytest.approx(1.0, abs=1e-3) and thickness[0, 0] == 0
    assert json.loads((out / "truth" / "simulation.json").read_text()) == summary
    assert summary["n_clipped"] == 0


def test_planted_spots_stand_out_and_dead_pixels_do_not_count(tmp_path):
    summary = simulate_tof(tmp_path / "run", spots=2e-3, chip_gap_pixels=2, **SMALL)
    dead = tifffile.imread(tmp_path / "run" / "truth" / "dead.tif").astype(bool)
    assert 10 < dead[:, :31].sum() + dead.sum() and dead[:, 31:33].all() and dead[23:25].all()
    for beam, name in (("sample", "spots"), ("open_beam", "open_beam_spots")):
        frames = read_frames(tmp_path / "run" / beam)
        assert not frames[:, dead].any()
        with np.load(tmp_path / "run" / "truth" / f"{name}.npz") as spots:
            place, amplitude = (spots["bin"], spots["y"], spots["x"]), spots["amplitude"]
        assert len(amplitude) == summary["n_spots"][beam]
        assert len(amplitude) == pytest.approx(2e-3 * frames.size, rel=0.3)
        assert (amplitude > 0).all() and not dead[place[1:]].any()
        background = np.median(frames[:, ~dead], axis=1)[place[0]]
        # Every struck pixel holds at least its spot; the faintest spot is five times the noise of the brightest bin.
        assert (frames[place] >= amplitude).all()
        assert np.median(amplitude) > 5 * np.sqrt(background.max())


def test_spot_amplitudes_fall_as_a_power_law():
    rng = np.random.default_rng(1)
    counts, alive = np.zeros((400, 400), np.float32), np.ones((400, 400), bool)
    spots = detector._add_spots(counts, alive=alive, free=None, spots=0.1, spot_counts=(100.0, 10_000.0), rng=rng)
    assert spots[:, 2].min() >= 100 and spots[:, 2].max() <= 10_000
    assert np.mean(spots[:, 2] >= 200) == pytest.approx(0.5, abs=0.03)
    assert np.mean(spots[:, 2] >= 1000) == pytest.approx(0.1, abs=0.02)
    assert counts.sum() == spots[:, 2].sum()


def test_overlap_is_inverted_within_statistics(tmp_path):
    options = dict(scene=build_slab(), n_bins=40, spots=0.0, dead_pixels=0, open_beam=False, n_triggers=20_000)
    summary = simulate_tof(tmp_path / "seen", overlap=True, **options)
    simulate_tof(tmp_path / "true", overlap=False, **options)
    seen, true = (read_frames(tmp_path / name / "sample") for name in ("seen", "true"))
    corrected = correct_overlap(seen, summary["window_bins"], summary["n_triggers"]["sample"])
    ratio = corrected.sum(axis=(1, 2)) / true.sum(axis=(1, 2))
    noise = np.sqrt(1 / true.sum(axis=(1, 2)) + 1 / seen.sum(axis=(1, 2)))
    assert (np.abs(ratio - 1) < 5 * noise).all()
    # Uncorrected counts are far off at the end of each window and right at its start.
    lost = 1 - seen.sum(axis=(1, 2)) / true.sum(axis=(1, 2))
    for first, stop in summary["window_bins"]:
        assert abs(lost[first]) < 5 * noise[first] and lost[stop - 1] > 0.2


def test_occupancy_is_reached_and_never_passes_one(tmp_path):
    options = dict(scene=build_slab(), n_bins=90, spots=0.0, dead_pixels=0, open_beam=False)
    summary = simulate_tof(tmp_path / "run", occupancy=0.4, **options)
    frames = read_frames(tmp_path / "run" / "sample")
    pairs = zip(summary["window_bins"], summary["n_triggers"]["sample"], strict=True)
    fullest = max(frames[a:b, 18:22, 25:29].sum(axis=0).mean() / triggers for (a, b), triggers in pairs)
    assert fullest == pytest.approx(0.4, abs=0.02)
    summary = simulate_tof(tmp_path / "full", occupancy=0.99, n_triggers=20, **options | {"spots": 0.01})
    frames = read_frames(tmp_path / "full" / "sample")
    for (a, b), triggers in zip(summary["window_bins"], summary["n_triggers"]["sample"], strict=True):
        assert frames[a:b].sum(axis=0).max() <= triggers


def test_transmission_of_layers_is_beer_lamberts(tmp_path):
    scene = build_slab(("alpha_iron", "copper"), (0.7, 0.4))
    summary = simulate_tof(tmp_path / "run", scene=scene, n_bins=60, overlap=False, spots=0.0, dead_pixels=0)
    sample, open_beam = (read_frames(tmp_path / "run" / name).sum(axis=(1, 2)) for name in ("sample", "open_beam"))
    for beam, counts in (("sample", sample), ("open_beam", open_beam)):
        for (a, b), triggers in zip(summary["window_bins"], summary["n_triggers"][beam], strict=True):
            counts[a:b] /= triggers
    middle_s = read_table(tmp_path / "run" / "sample", "Spectra")[:, 0] + summary["bin_width_s"] / 2
    wavelength = 6.62607015e-34 * middle_s / (1.67492749804e-27 * 10.0) * 1e10
    depth = 0.7 * compute_attenuation("alpha_iron", wavelength) + 0.4 * compute_attenuation("copper", wavelength)
    np.testing.assert_allclose(sample / open_beam, np.exp(-depth), rtol=0.01)


def test_counts_are_poisson(tmp_path):
    scene = build_slab(height=64, width=64)
    simulate_tof(tmp_path / "a", seed=1, scene=scene, n_bins=30, overlap=False, spots=0.0, dead_pixels=0, shutters=1)
    frames = read_frames(tmp_path / "a" / "sample")
    profile = frames.mean(axis=0) / frames.mean()
    rate = frames.mean(axis=(1, 2))
    chi_squared = ((frames - profile * rate[:, None, None]) ** 2 / (profile * rate[:, None, None])).mean()
    assert chi_squared == pytest.approx((1 - 1 / 30) * (1 - 1 / 4096), rel=0.02)


@pytest.mark.parametrize("mean", [0.0, 3.0, 29.9, 30.1, 120.0, 4000.0])
def test_draw_poisson_has_the_moments_of_poisson(mean):
    counts = draw_poisson(np.full(400_000, mean, np.float32), rng=np.random.default_rng(3)).astype(np.float64)
    assert np.array_equal(counts, np.rint(counts)) and counts.min() >= 0
    error = np.sqrt(mean / counts.size)
    assert abs(counts.mean() - mean) <= 5 * error
    assert abs(counts.var() - mean) <= 5 * np.sqrt((mean + 2 * mean**2) / counts.size)
    if mean:
        assert abs(stats.skew(counts) - mean**-0.5) <= 5 * np.sqrt(6 / counts.size)


@pytest.mark.parametrize("mean", [30, 100, 1000])
def test_fast_poisson_keeps_its_stated_error(mean):
    # The very formula of draw_poisson solved for z, so its distribution function is known without drawing.
    k = np.arange(int(mean + 12 * mean**0.5))
    slope = np.sqrt(mean - 5 / 36)
    root = np.sqrt(np.maximum(slope**2 - 2 / 3 * (mean - 1 / 6 - (k + 0.5)), 0))
    function = stats.norm.cdf(3 * (root - slope)) - stats.norm.cdf(-3 * (root + slope))
    assert np.abs(function - stats.poisson.cdf(k, mean)).max() < 0.0005
    drawn = draw_poisson(np.full(200_000, mean, np.float32), rng=np.random.default_rng(5))
    seen = np.searchsorted(np.sort(drawn), k, side="right") / drawn.size
    assert np.abs(seen - function).max() < 1.95 / np.sqrt(drawn.size)


def test_mixed_means_are_drawn_each_for_itself():
    mean = np.tile(np.array([0.0, 5.0, 50.0, 500.0], np.float32), (50_000, 1))
    counts = draw_poisson(mean, rng=np.random.default_rng(9))
    np.testing.assert_allclose(counts.mean(axis=0), mean[0], atol=0.5)
    assert not counts[:, 0].any()


def test_blocks_are_six_in_mixed_order():
    scene = build_blocks(height=256, width=256)
    rows, columns = (90, 170), (50, 128, 206)
    order = scene.labels[np.ix_(rows, columns)]
    assert sorted(order.ravel()) == [1, 1, 1, 2, 2, 2] and len({tuple(row) for row in order}) == 2
    steel = scene.labels[:, :, None] == [1, 2]
    np.testing.assert_allclose(scene.thickness_cm[:2, 90, 50].sum(), 1.0, atol=1e-4)
    assert scene.thickness_cm.sum(axis=0).max() <= 1.0 + 1e-5 and scene.thickness_cm.min() >= 0
    assert steel[..., 0].sum() == pytest.approx(steel[..., 1].sum(), rel=0.02)
    # The edge is spread over some pixels, not a jump.
    edge = np.diff(scene.thickness_cm[0, 90, 10:60])
    assert (edge > 0.02).sum() >= 3


def test_windows_share_the_open_beam_and_leave_gaps():
    timing = plan_timing(n_bins=250, shutters=4, wavelength_range=(1.5, 5.5), flight_path_m=10.0)
    flux = compute_spectrum(timing.wavelength_angstrom)
    shares = np.array([flux[a:b].sum() for a, b in timing.window_bins]) / flux.sum()
    np.testing.assert_allclose(shares, 0.25, atol=0.05)
    jumps = np.diff(timing.start_ticks) - timing.bin_ticks
    assert np.array_equal(np.flatnonzero(jumps) + 1, [b for _, b in timing.window_bins[:-1]])
    np.testing.assert_allclose(jumps[jumps > 0] * 1e-8, 320e-6)
    assert timing.wavelength_angstrom[0] == pytest.approx(1.5, abs=0.02)
    assert timing.wavelength_angstrom[-1] == pytest.approx(5.5, abs=0.03)


@pytest.mark.parametrize("shutters", [1, 5, 24, (4, 20), [8, 8, 8]])
def test_windows_hold_every_bin_once(shutters):
    timing = plan_timing(n_bins=24, shutters=shutters, wavelength_range=(1.0, 8.0), flight_path_m=30.0)
    assert [i for a, b in timing.window_bins for i in range(a, b)] == list(range(24))
    assert all(a < b for a, b in timing.window_bins)


def test_open_beam_can_be_left_out(tmp_path):
    summary = simulate_tof(tmp_path / "run", open_beam=False, **SMALL)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["sample", "truth"]
    assert list(summary["n_counts"]) == ["sample"]


def test_existing_folder_is_refused_and_untouched(run, tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match="'.*taken' exists"):
        simulate_tof(tmp_path / "taken", **SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]
    with pytest.raises(UserError, match="can't write to '.*nowhere'"):
        simulate_tof(tmp_path / "nowhere" / "run", **SMALL)


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), MemoryError(), OSError(28, "No space left on device")])
def test_nothing_is_left_of_a_failed_run(tmp_path, monkeypatch, fault):
    write, calls = detector.write_frame, []

    def fail_later(*args, **options):
        calls.append(args)
        if len(calls) == 20:
            raise fault
        write(*args, **options)

    monkeypatch.setattr(detector, "write_frame", fail_later)
    with pytest.raises(UserError if isinstance(fault, OSError) else type(fault)):
        simulate_tof(tmp_path / "run", **SMALL)
    assert list(tmp_path.iterdir()) == []
    assert len(calls) < 48


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scene": "block"}, "did you mean 'blocks'"),
        ({"height": 8}, "at least 32 x 32"),
        ({"n_bins": 0}, "n_bins=0"),
        ({"occupancy": 1.0}, "occupancy=1.0"),
        ({"occupancy": float("nan")}, "occupancy=nan"),
        ({"spots": -0.1}, "spots=-0.1"),
        ({"seed": -1}, "seed=-1"),
        ({"flight_path_m": 0}, "flight_path_m=0"),
        ({"wavelength_range": (3.0, 2.0)}, r"wavelength_range=\(3, 2\)"),
        ({"wavelength_range": (3.0, 3.01)}, "no room for 24 bins"),
        ({"shutters": 25}, "shutters=25"),
        ({"shutters": (10, 10)}, "add up to n_bins=24"),
        ({"shutters": ()}, "add up to n_bins=24"),
        ({"n_triggers": 2_000_000}, "a frame holds 32767"),
    ],
)
def test_errors_name_the_value_and_leave_nothing(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        simulate_tof(tmp_path / "run", **SMALL | options)
    assert list(tmp_path.iterdir()) == []


def test_scene_whose_maps_differ_in_shape_is_refused():
    with pytest.raises(UserError, match="thickness_cm"):
        Scene(("nickel",), np.zeros((4, 5), np.uint8), np.zeros((2, 4, 5), np.float32))


def test_clipped_counts_are_counted_not_wrapped(tmp_path, monkeypatch):
    monkeypatch.setattr("niseg_gpu.simulate.tof._choose_spot_counts", lambda max_counts: (50_000.0, 60_000.0))
    summary = simulate_tof(tmp_path / "run", overlap=False, spots=1e-3, open_beam=False, **SMALL)
    frames = read_frames(tmp_path / "run" / "sample")
    assert summary["n_clipped"] == np.count_nonzero(frames == 32767) > 0
    assert frames.min() >= 0


def test_scenes_are_listed_by_name():
    assert all(isinstance(build(height=40, width=40), Scene) for build in SCENES.values())
