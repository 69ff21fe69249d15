import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from astropy.io import fits
from PIL import Image
from scipy import optimize, stats

from niseg_gpu.errors import UserError
from niseg_gpu.io.open import open_stack
from niseg_gpu.pipeline.api import apply_steps
from niseg_gpu.simulate import detector
from niseg_gpu.simulate.bragg import compute_attenuation, compute_bragg_edges
from niseg_gpu.simulate.scenes import Scene
from niseg_gpu.simulate.timing import compute_spectrum, plan_timing
from niseg_gpu.simulate.tof import simulate_tof

SMALL = dict(n_bins=24, height=48, width=64, workers=2)


def read_frames(folder):
    frames = [fits.getdata(path) for path in sorted(folder.glob("run_*.fits"))]
    return np.stack(frames).astype(np.float64)


def read_table(folder, name):
    return np.loadtxt(folder / f"run_{name}.txt", delimiter="\t")


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
    assert labels.shape == (48, 64) and thickness.shape == (3, 48, 64)
    assert labels.dtype == np.uint8 and thickness.dtype == np.float32
    assert names == {"0": "void", "1": "alpha_iron", "2": "austenitic_steel", "3": "aluminium"}
    assert sorted(np.unique(labels)) == [0, 1, 2, 3]
    assert thickness.max() == pytest.approx(1.0, abs=1e-3) and not thickness[:, 0, 0].any()
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
        mask = open_stack(tmp_path / "run" / "truth" / f"{name}.zarr")
        assert mask.dims == ("tof", "y", "x") and mask.dtype == np.uint8
        np.testing.assert_array_equal(np.argwhere(mask.values == 1), np.column_stack(place))
        assert len(amplitude) == pytest.approx(2e-3 * frames.size, rel=0.3)
        assert (amplitude > 0).all() and not dead[place[1:]].any()
        background = np.median(frames[:, ~dead], axis=1)[place[0]]
        # Every struck pixel holds at least its spot; the faintest spot is five times the noise of the brightest bin.
        assert (frames[place] >= amplitude).all()
        assert np.median(amplitude) > 5 * np.sqrt(background.max())


def test_found_spots_are_judged_by_the_truth(niseg, tmp_path, monkeypatch):
    monkeypatch.setattr("niseg_gpu.simulate.tof_truth.BLOCK_BYTES", 5 * 48 * 64)
    simulate_tof(tmp_path / "run", scene=build_slab(height=48, width=64), spots=2e-3, n_bins=24, dead_pixels=0)
    found, truth = tmp_path / "mask.zarr", tmp_path / "run" / "truth" / "spots.zarr"
    cleaned = tmp_path / "clean.zarr"
    assert niseg("remove-spots", tmp_path / "run" / "sample", cleaned, "--threshold", 500, "--mask", found)[0] == 0
    status, said, complaint = niseg("evaluate", found, truth, "--json", tmp_path / "figures.json")
    assert status == 0, complaint
    figures = json.loads((tmp_path / "figures.json").read_text())["mask"]
    assert figures["precision"] > 0.95 and figures["recall"] > 0.4 and "precision" in said


def test_spot_amplitudes_fall_as_a_power_law():
    faults = detector.Faults(overlap=False, dark_counts=0.0, spots=0.1, spot_counts=(100.0, 10_000.0))
    profile = np.ones(400 * 400, np.float32)
    profile[:400] = 0
    bins = detector._draw_spots(3, profile, faults=faults, rng=np.random.default_rng(1))
    assert len(bins) == 3
    for place, amplitude in bins:
        assert place.min() >= 400 and len(np.unique(place)) == len(place) == pytest.approx(0.095 * 160_000, rel=0.05)
        assert amplitude.min() >= 100 and amplitude.max() <= 10_000
        assert np.mean(amplitude >= 200) == pytest.approx(0.5, abs=0.03)
        assert np.mean(amplitude >= 1000) == pytest.approx(0.1, abs=0.02)


def test_overlap_is_inverted_to_1_percent(tmp_path):
    """By the package's own step, on the files, in every bin; uncorrected counts are far off at the end of a window."""
    options = dict(scene=build_slab(height=128, width=128), n_bins=150, spots=0.0, dead_pixels=0, open_beam=False)
    summary = simulate_tof(tmp_path / "seen", overlap=True, **options)
    simulate_tof(tmp_path / "true", overlap=False, **options)
    seen, true = (read_frames(tmp_path / name / "sample").sum(axis=(1, 2)) for name in ("seen", "true"))
    corrected = apply_steps(open_stack(tmp_path / "seen" / "sample"), ["overlap_correct"]).image
    ratio = corrected.values.sum(axis=(1, 2), dtype=np.float64) / true
    assert np.abs(ratio - 1).max() < 0.01
    # What is missing are the hits that blinded others of the same bin, which the correction leaves out.
    mean = true / (128 * 128 * np.repeat(summary["n_triggers"]["sample"], np.diff(summary["window_bins"])[:, 0]))
    np.testing.assert_allclose(ratio, 1 - mean / 2, atol=0.001)
    for first, stop in summary["window_bins"]:
        assert seen[first] / true[first] > 0.98 and seen[stop - 1] / true[stop - 1] < 0.8


def test_hits_within_a_bin_blind_each_other(tmp_path):
    """Of the triggers that find a pixel awake, 1 - exp(-m) hit it when m neutrons arrive."""
    options = dict(
        scene=build_slab(), n_bins=1, shutters=1, spots=0.0, dead_pixels=0, dark_counts=0.0, n_triggers=20_000
    )
    for name, overlap in (("seen", True), ("true", False)):
        simulate_tof(tmp_path / name, overlap=overlap, open_beam=False, occupancy=0.2, **options)
    seen, true = (read_frames(tmp_path / name / "sample")[0, 18:22, 25:29].mean() for name in ("seen", "true"))
    triggers = read_table(tmp_path / "seen" / "sample", "ShutterCount")[0, 1]
    assert seen / triggers == pytest.approx(0.2, abs=0.003)
    assert seen == pytest.approx(triggers * -np.expm1(-true / triggers), rel=0.01)


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
    summary = simulate_tof(
        tmp_path / "run", scene=scene, n_bins=60, overlap=False, spots=0.0, dead_pixels=0, resolution=0.0
    )
    sample, open_beam = (read_frames(tmp_path / "run" / name).sum(axis=(1, 2)) for name in ("sample", "open_beam"))
    for beam, counts in (("sample", sample), ("open_beam", open_beam)):
        for (a, b), triggers in zip(summary["window_bins"], summary["n_triggers"][beam], strict=True):
            counts[a:b] /= triggers
    start_s = read_table(tmp_path / "run" / "sample", "Spectra")[:, :1]
    time_s = start_s + summary["bin_width_s"] * (np.arange(100) + 0.5) / 100
    wavelength = 6.62607015e-34 * time_s / (1.67492749804e-27 * 10.0) * 1e10
    depth = 0.7 * compute_attenuation("alpha_iron", wavelength) + 0.4 * compute_attenuation("copper", wavelength)
    transmission = np.exp(-depth)
    # Where an edge falls into a bin, the few wavelengths that a bin is averaged over tell.
    tolerance = np.where(np.ptp(transmission, axis=1) / transmission.mean(axis=1) > 0.03, 0.04, 0.012)
    assert (np.abs(sample / open_beam / transmission.mean(axis=1) - 1) < tolerance).all()


@pytest.mark.parametrize(
    ("name", "offset_s", "texture"),
    [("alpha_iron", 0.0, ""), ("gamma_iron", 2e-4, ""), ("austenitic_steel", -3e-4, "austenitic_steel:111:0.7")],
)
def test_edges_are_where_physics_puts_them(tmp_path, name, offset_s, texture):
    edge = compute_bragg_edges(name)[0]
    summary = simulate_tof(
        tmp_path / "run",
        scene=build_slab((name,), (1.0,)),
        texture=texture,
        wavelength_range=(edge - 0.1, edge + 0.1),
        n_bins=80,
        shutters=1,
        n_triggers=500_000,
        time_offset_s=offset_s,
        overlap=False,
        resolution=0.01,
        spots=0.0,
        dead_pixels=0,
    )
    sample, open_beam = (read_frames(tmp_path / "run" / beam).sum(axis=(1, 2)) for beam in ("sample", "open_beam"))
    time_s = read_table(tmp_path / "run" / "sample", "Spectra")[:, 0] + summary["bin_width_s"] / 2
    wavelength = 3956.034 * (time_s + offset_s) / 10.0

    def profile(wavelength, position, width, low, high, slope):
        return low + (high - low) * stats.norm.cdf(wavelength, position, width) + slope * (wavelength - edge)

    ratio = sample / open_beam
    found, _ = optimize.curve_fit(profile, wavelength, ratio, p0=(edge, 0.02, ratio.min(), ratio.max(), 0.0))
    assert found[0] == pytest.approx(edge, abs=0.002)
    assert found[1] * 2.3548 == pytest.approx(0.01 * edge, rel=0.08)


def test_dark_counts_come_on_top(tmp_path):
    """Behind a metre of copper there is nothing else; dead pixels have none."""
    options = dict(scene=build_slab(("copper",), (100.0,)), n_bins=40, spots=0.0, open_beam=False, dead_pixels=50)
    simulate_tof(tmp_path / "run", dark_counts=1.5, **options)
    frames, dead = (
        read_frames(tmp_path / "run" / "sample"),
        tifffile.imread(tmp_path / "run" / "truth" / "dead.tif") > 0,
    )
    assert not frames[:, dead].any()
    assert frames[:, ~dead].mean() == pytest.approx(1.5, rel=0.02)
    assert frames[:, ~dead].var() == pytest.approx(1.5, rel=0.03)


def test_a_plan_is_what_is_seen(tmp_path):
    plan = np.zeros((40, 60), np.uint8)
    plan[5:35, 5:25], plan[5:35, 30:55] = 80, 200
    Image.fromarray(plan).save(tmp_path / "plan.png")
    simulate_tof(
        tmp_path / "run", scene=str(tmp_path / "plan.png"), materials="nickel, copper", thickness_cm=0.5, n_bins=30
    )
    labels = tifffile.imread(tmp_path / "run" / "truth" / "labels.tif")
    np.testing.assert_array_equal(labels, np.searchsorted([0, 80, 200], plan))
    simulate_tof(tmp_path / "same", scene=plan, materials="nickel, copper", thickness_cm=0.5, n_bins=30)
    assert hash_folder(tmp_path / "same") == hash_folder(tmp_path / "run")
    sample, open_beam = (read_frames(tmp_path / "run" / beam).sum(axis=0) for beam in ("sample", "open_beam"))
    ratio = [sample[labels == k].sum() / open_beam[labels == k].sum() for k in range(3)]
    assert ratio[1] < 0.6 < ratio[2] < 0.8 < ratio[0]


def test_memory_does_not_grow_with_the_bins(tmp_path):
    code = (
        "import resource, sys; from niseg_gpu.simulate.tof import simulate_tof\n"
        "simulate_tof(sys.argv[1], height=256, width=256, n_bins=int(sys.argv[2]), workers=2)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for n_bins in (20, 120):
        call = [sys.executable, "-c", code, str(tmp_path / str(n_bins)), str(n_bins)]
        peaks.append(int(subprocess.run(call, capture_output=True, text=True, check=True).stdout) / 1024)
    # 100 more bins of both beams are 26 MB.
    assert peaks[1] - peaks[0] < 12


def test_counts_are_poisson(tmp_path):
    scene = build_slab(height=64, width=64)
    simulate_tof(tmp_path / "a", seed=1, scene=scene, n_bins=30, overlap=False, spots=0.0, dead_pixels=0, shutters=1)
    frames = read_frames(tmp_path / "a" / "sample")
    profile = frames.mean(axis=0) / frames.mean()
    rate = frames.mean(axis=(1, 2))
    chi_squared = ((frames - profile * rate[:, None, None]) ** 2 / (profile * rate[:, None, None])).mean()
    assert chi_squared == pytest.approx((1 - 1 / 30) * (1 - 1 / 4096), rel=0.02)


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
    with pytest.raises(UserError, match="taken exists"):
        simulate_tof(tmp_path / "taken", **SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="run can't be made: .*file is not a folder"):
        simulate_tof(tmp_path / "file" / "run", **SMALL)


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
        ({"materials": "nickel"}, "scene 'blocks' has its own"),
        ({"texture": "nickel:111:0.7"}, "which is not in the scene"),
        ({"time_offset_s": 0.5}, "before the trigger"),
        ({"resolution": 0.5}, "resolution=0.5"),
        ({"dark_counts": -1.0}, "dark_counts=-1.0"),
        ({"wavelength_range": (1.0, 30.0)}, r"wavelength_range=\(1, 30\)"),
        ({"height": 8}, "height=8 is out of range; give 32 to 65536"),
        ({"width": 70_000}, "width=70000 is out of range"),
        ({"dead_pixels": 48 * 64}, "leave none of 48 x 64 pixels alive"),
        ({"chip_gap_pixels": 48}, "leave none of 48 x 64 pixels alive"),
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


def test_clipped_counts_are_counted_not_wrapped(tmp_path, monkeypatch):
    monkeypatch.setattr("niseg_gpu.simulate.tof._choose_spot_counts", lambda max_counts: (50_000.0, 60_000.0))
    summary = simulate_tof(tmp_path / "run", overlap=False, spots=1e-3, open_beam=False, **SMALL)
    frames = read_frames(tmp_path / "run" / "sample")
    assert summary["n_clipped"] == np.count_nonzero(frames == 32767) > 0
    assert frames.min() >= 0
