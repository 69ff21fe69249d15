"""Simulated roots: repeatable, the same for any blocks, and with a truth that agrees with itself."""

from __future__ import annotations

import csv
import json
import math

import dask
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import label
from scipy.stats import norm

from niseg_gpu.errors import UserError
from niseg_gpu.figures_roots import draw_previews
from niseg_gpu.io.open import open_stack
from niseg_gpu.io.save import save_together
from niseg_gpu.simulate.counter import draw_normal, make_key
from niseg_gpu.simulate.roots import make_root_sample, simulate_roots, stack_scene
from niseg_gpu.simulate.roots_growth import BOX, CYLINDER, Container, RootSystem, grow_roots
from niseg_gpu.simulate.roots_raster import cut_capsules, draw_capsules
from niseg_gpu.simulate.roots_scene import RootScene, build_scene, render_scene
from niseg_gpu.simulate.soil import add_crack, add_gaps, draw_grains, draw_waves

POT = Container(CYLINDER, 2.0, 50.0, (1.0, 51.0), (1.0, 51.0))
SLAB = Container(BOX, 2.0, 50.0, (0.0, 5.0), (1.0, 51.0))
SHAPES = {"slab": (96, 120), "pot": (48, 40, 44)}


def build(shape: tuple[int, ...], **options) -> RootScene:
    """Build a scene from the defaults of `simulate_roots`."""
    import inspect

    known = inspect.signature(simulate_roots).parameters
    defaults = {n: p.default for n, p in known.items() if p.kind is p.KEYWORD_ONLY}
    return build_scene(**{**defaults, **options, "shape": shape})


def straight(a, b, radius, end=None) -> RootSystem:
    nodes = np.array([a, b], float)
    length = np.linalg.norm(nodes[1] - nodes[0])
    ends = np.array([radius, radius if end is None else end], float)
    return RootSystem(nodes, ends, np.array([0.0, length]), np.array([0, 2]), np.array([1]), np.array([-1]))


@pytest.fixture(scope="module", params=SHAPES)
def scene(request) -> RootScene:
    return build(SHAPES[request.param], seed=5, voxel_size_um=400.0, n_cracks=2, air_gaps=0.05, habit="fibrous")


@pytest.mark.parametrize("container", [POT, SLAB], ids=["pot", "slab"])
@pytest.mark.parametrize("habit", ["taprooted", "fibrous"])
def test_roots_stay_inside_and_hang_together(container, habit):
    roots = grow_roots(container, seed=3, habit=habit, n_plants=2, age=2.0)
    down, y, x = roots.nodes_mm.T
    reach = roots.radius_mm - 1e-9
    if container.kind == CYLINDER:
        assert (np.hypot(y - 26.0, x - 26.0) + reach <= 25.0 + 0.5).all()
    else:
        assert (y >= 0.0).all() and (y <= 5.0).all() and (x - reach >= 1.0 - 0.5).all()
    assert (down >= 2.0).all() and (down <= 50.0).all()
    axes = list(roots)
    for i, axis in enumerate(axes):
        steps = np.linalg.norm(np.diff(roots.nodes_mm[axis], axis=0), axis=1)
        np.testing.assert_allclose(np.diff(roots.path_mm[axis]), steps, atol=1e-9)
        assert (np.diff(roots.path_mm[axis]) > 0).all() and (np.diff(roots.radius_mm[axis]) <= 0).all()
        bearer = roots.parent[i]
        if bearer < 0:
            assert roots.order[i] == 1 and roots.path_mm[axis][0] == 0.0
            continue
        assert bearer < i and roots.order[bearer] == roots.order[i] - 1
        nodes, path = roots.nodes_mm[axes[bearer]], roots.path_mm[axes[bearer]]
        on_it = [np.interp(roots.path_mm[axis][0], path, nodes[:, j]) for j in range(3)]
        np.testing.assert_allclose(roots.nodes_mm[axis][0], on_it, atol=1e-9)
        assert roots.radius_mm[axis][0] <= roots.radius_mm[axes[bearer]].max()


def test_orders_and_age_do_what_they_say():
    assert set(grow_roots(POT, seed=1, n_orders=2).order) == {1, 2}
    young, old = (np.diff(grow_roots(POT, seed=1, age=a).first).sum() for a in (0.5, 2.0))
    assert old > 3 * young
    straight_down = grow_roots(POT, seed=1, age=1.0, n_orders=1)
    assert straight_down.path_mm[-1] == pytest.approx(48.0, rel=0.05)
    thin, thick = (grow_roots(POT, seed=1, thickness=t).radius_mm.max() for t in (0.5, 1.0))
    assert thick == pytest.approx(2 * thin)


def test_too_many_roots_are_refused(monkeypatch):
    monkeypatch.setattr("niseg_gpu.simulate.roots_growth.MAX_NODES", 100)
    with pytest.raises(UserError, match="age=2.0 with n_plants=1 makes more than 100 nodes"):
        grow_roots(POT, seed=1, age=2.0)


@pytest.mark.parametrize("radius", [0.2, 0.45, 0.6, 1.0, 2.5])
@pytest.mark.parametrize("end", [(52.0, 40.0, 23.0), (50.3, 31.7, 32.2)])
def test_the_volume_of_a_capsule_is_that_of_geometry(radius, end):
    start = (12.4, 30.2, 33.1)
    capsules = cut_capsules(straight(start, end, radius), voxel_mm=1.0)
    length = math.dist(start, end)
    exact = math.pi * radius**2 * length + 4 / 3 * math.pi * radius**3
    drawn = draw_capsules(capsules, (0, 0, 0), (64, 64, 64), reach=2.0, flat=False)
    assert drawn.filled.sum(dtype=float) == pytest.approx(exact, rel=0.05 if radius < 0.7 else 0.02)
    seen = math.dist(start[::2], end[::2])
    flat = draw_capsules(capsules, (0, 0, 0), (64, 1, 64), reach=2.0, flat=True)
    assert flat.filled.sum(dtype=float) == pytest.approx(2 * radius * seen + math.pi * radius**2, rel=0.03)
    assert flat.thickness.sum(dtype=float) == pytest.approx(exact, rel=0.03)


def test_the_volume_of_a_cone_is_that_of_geometry():
    capsules = cut_capsules(straight((10, 32, 32), (50, 32.4, 31.7), 4.0, 1.0), voxel_mm=1.0)
    drawn = draw_capsules(capsules, (0, 0, 0), (64, 64, 64), reach=2.0, flat=False)
    exact = math.pi * 40.0 / 3 * (16 + 4 + 1) + 2 / 3 * math.pi * (64 + 1)
    assert drawn.filled.sum(dtype=float) == pytest.approx(exact, rel=0.02)


def test_crossing_roots_add_up_along_the_beam_and_one_root_does_not():
    roots = RootSystem(
        np.array([[5, 1, 20], [20, 1, 20], [35, 1, 20], [20, 3, 5], [20, 3, 35]], float), np.full(5, 2.0),
        np.array([0, 15, 30, 0, 30.0]), np.array([0, 3, 5]), np.array([1, 1]), np.array([-1, -1]),
    )  # fmt: skip
    drawn = draw_capsules(cut_capsules(roots, voxel_mm=1.0), (0, 0, 0), (40, 1, 40), reach=2.0, flat=True)
    assert drawn.thickness[12, 0, 20] == pytest.approx(drawn.thickness[28, 0, 19], rel=1e-6)
    np.testing.assert_allclose(drawn.thickness[19:21, 0, 19:21], 2 * drawn.thickness[12, 0, 20], rtol=1e-5)


def test_the_image_is_the_same_for_any_blocks(scene):
    whole = render_scene(scene)
    for block in ((7, 40, 44), (48, 11, 13)):
        stacks = stack_scene(scene, block=(block[0], 1, block[2]) if scene.flat else block)
        for name, field in {"image": "image", "mask": "mask", "path_length": "path_mm", "order": "order"}.items():
            np.testing.assert_array_equal(stacks[name].values, getattr(whole, field), err_msg=name)
    np.testing.assert_array_equal(stacks["skeleton"].values, whole.skeleton)


def test_each_block_is_rendered_once_and_soon_forgotten(scene, tmp_path, monkeypatch):
    """So memory is that of a few blocks, whatever the shape."""
    import weakref

    from niseg_gpu.simulate import roots_scene

    render, made, alive, most = roots_scene.render_block, [], set(), [0]

    def note(*arguments):
        rendered = render(*arguments)
        made.append(arguments[1])
        for field in ("image", "mask", "path_mm"):
            alive.add((arguments[1], field))
            weakref.finalize(getattr(rendered, field), alive.discard, (arguments[1], field))
        most[0] = max(most[0], len(alive))
        return rendered

    monkeypatch.setattr(roots_scene, "render_block", note)
    block = (4, 1, 30) if scene.flat else (4, 20, 22)
    with dask.config.set(scheduler="threads", num_workers=2):
        save_together({tmp_path / f"{name}.npy": s for name, s in stack_scene(scene, block=block).items()})
    assert len(made) == len(set(made)) == math.prod(-(-n // b) for n, b in zip(scene.shape, block, strict=True))
    assert most[0] <= 3 * 6


def test_truth_agrees_with_itself(scene):
    seen = render_scene(scene)
    mask, skeleton = seen.mask.astype(bool), seen.skeleton.astype(bool)
    assert 0.001 < mask.mean() < 0.6 and (mask | ~skeleton).all()
    near = np.ones((3,) * mask.ndim)
    assert label(skeleton, near)[1] == label(mask, near)[1] == 1
    np.testing.assert_array_equal(seen.order > 0, mask)
    assert set(np.unique(seen.order)) <= {0, 1, 2, 3} and seen.order.max() > 1
    assert (seen.path_mm[~mask] == 0).all() and seen.path_mm[mask].max() <= scene.roots.path_mm.max() + 1e-3


def test_path_length_grows_along_every_main_root():
    scene = build((128, 96, 96), seed=9, n_orders=1, habit="taprooted", age=0.9)
    path = render_scene(scene).path_mm
    nodes = np.floor(scene.roots.nodes_mm / scene.voxel_mm).astype(int)
    along = path[tuple(nodes.T)]
    assert (np.diff(along) >= 0).all() and along[-1] == pytest.approx(scene.roots.path_mm[-1], abs=0.5)
    np.testing.assert_allclose(along, scene.roots.path_mm, atol=0.4)


@pytest.mark.parametrize("kind", SHAPES)
def test_the_noise_is_as_asked(kind):
    shape = (150, 200) if kind == "slab" else (64, 48, 48)
    noisy, _ = make_root_sample(shape, seed=3, snr=20.0)
    clean, _ = make_root_sample(shape, seed=3, snr=math.inf)
    noise, scene = (noisy - clean).astype(float), build(shape, seed=3, snr=20.0)
    assert scene.noise_sigma == pytest.approx(scene.soil_signal / 20.0)
    if kind == "slab":  # counting: the variance goes with the signal
        noise /= np.sqrt(clean / scene.soil_signal)
    assert noise.std() == pytest.approx(scene.noise_sigma, rel=0.02) and abs(noise.mean()) < 0.02 * scene.noise_sigma
    assert abs(np.corrcoef(noise[1:].ravel(), noise[:-1].ravel())[0, 1]) < 0.03
    bare, _ = make_root_sample(shape, seed=3, snr=math.inf, n_orders=1, root_thickness=0.1, barrier=False, n_cracks=0,
                               air_gaps=0.0, water_gradient=0.0)  # fmt: skip
    middle = bare[tuple(slice(n // 3, -n // 5) for n in shape)]
    assert np.median(middle) == pytest.approx(scene.soil_signal, rel=0.2)


def test_seeds_and_known_values():
    """Sums that another machine or library must give too; change them only with the model."""
    image, mask = make_root_sample((64, 64, 64), seed=1)
    again = make_root_sample((64, 64, 64), seed=1, workers=1)
    np.testing.assert_array_equal(image, again[0])
    np.testing.assert_array_equal(mask, again[1])
    assert (make_root_sample((64, 64, 64), seed=2)[1] != mask).any()
    assert int(mask.sum()) == 1135 and float(image.sum(dtype=float)) == pytest.approx(90250.21256329252, rel=1e-7)


def test_options_show_in_the_image():
    plain = dict(seed=4, snr=math.inf, n_cracks=0, air_gaps=0.0, barrier=False, water_gradient=0.0, stem=False)
    shape = (64, 64, 64)
    base, mask = make_root_sample(shape, **plain)

    def change(**options) -> np.ndarray:
        image, other = make_root_sample(shape, **{**plain, **options})
        np.testing.assert_array_equal(other, mask)
        return image - base

    wetter = change(water_gradient=0.5)
    assert wetter.min() >= -1e-5 and wetter.max() > 0.1
    assert (change(water_gradient=-0.5) <= 1e-5).all()
    for hollow in (change(n_cracks=2), change(air_gaps=0.05)):
        assert hollow.max() <= 1e-5 and hollow.min() < -0.4 and 0.002 < (hollow < -0.2).mean() < 0.2
    layer = abs(change(barrier=True)).max(axis=(1, 2)) > 0.1
    assert 2 <= layer.sum() <= 6 and np.ptp(np.flatnonzero(layer)) == layer.sum() - 1
    assert (abs(change(stem=True))[20:] == 0).all() and change(stem=True)[:4].max() > 1.0
    rings = change(rings=0.1)
    assert rings.std() == pytest.approx(0.1 * build(shape).soil_signal, rel=0.3)
    np.testing.assert_allclose(rings, rings[:, ::-1, ::-1], atol=1e-5)
    lines = change(lines=0.1)
    assert (np.ptp(lines, axis=2) < 1e-5).all() and lines.std() > 0.03


def test_air_gaps_take_the_share_asked_for():
    for flat, shape in ((False, (100, 100, 100)), (True, (700, 1, 700))):
        air = np.zeros(shape, np.float32)
        add_gaps((5, 0, 9), key=make_key(1), share=0.05, radius_voxels=(2.0, 6.0), flat=flat, out=air)
        assert (air > (0 if flat else 0.5)).mean() == pytest.approx(0.05, rel=0.25)


@settings(max_examples=15)
@given(low=st.tuples(*[st.integers(0, 300)] * 3), size=st.floats(2.0, 9.0))
def test_soil_is_the_same_for_any_block(low, size):
    """Part of a block, made by itself, is that part of the block."""
    shape, cut = (9, 8, 10), (slice(3, 8), slice(2, 6), slice(4, 9))
    inner = tuple(a + s.start for a, s in zip(low, cut, strict=True))
    part_shape = tuple(s.stop - s.start for s in cut)
    whole, part = np.empty(shape, np.float32), np.empty(part_shape, np.float32)
    draw_grains(low, shape, key=make_key(7), grain_voxels=size, out=whole)
    draw_grains(inner, part_shape, key=make_key(7), grain_voxels=size, out=part)
    np.testing.assert_array_equal(whole[cut], part)
    waves = draw_waves(low, shape, key=make_key(8), length_voxels=size)
    np.testing.assert_array_equal(waves[cut], draw_waves(inner, part_shape, key=make_key(8), length_voxels=size))
    assert -1 <= waves.min() and waves.max() <= 1 and -1.5 <= whole.min() and whole.max() <= 1
    for at, out in ((low, whole), (inner, part)):
        out[:] = 0
        add_crack(at, key=make_key(9), extent=(300, 300, 300), width_voxels=20.0, flat=False, out=out)
    np.testing.assert_array_equal(whole[cut], part)


def test_random_numbers_by_place_are_normal_and_independent():
    key = make_key(1, 2)
    z = np.array([draw_normal(key, i) for i in range(20_000)])
    assert abs(z.mean()) < 0.03 and z.std() == pytest.approx(1, abs=0.02)
    assert np.abs(np.sort(norm.cdf(z)) - (np.arange(20_000) + 0.5) / 20_000).max() < 0.012
    assert abs(np.corrcoef(z[1:], z[:-1])[0, 1]) < 0.03
    assert make_key(1, 2) != make_key(2, 1) and draw_normal(make_key(1, 3), 0) != z[0]


@pytest.mark.parametrize(("kind", "ending"), [("slab", "tif"), ("pot", "zarr")])
def test_command(niseg, tmp_path, kind, ending):
    out = tmp_path / "run"
    shape = "x".join(map(str, SHAPES[kind]))
    arguments = ["simulate", "roots", out, "--shape", shape, "--seed", 7, "--format", ending, "--voxel-size-um", 400]
    status, printed, _ = niseg(*arguments)
    assert status == 0 and "preview" in printed
    names = {"image", *(f"truth/{name}" for name in ("mask", "skeleton", "order", "path_length"))}
    stacks = {name: open_stack(out / f"{name}.{ending}") for name in names}
    assert {stack.shape for stack in stacks.values()} == {SHAPES[kind]}
    assert stacks["image"].attrs["quantity"] == ("transmission" if kind == "slab" else "attenuation")
    image, mask = make_root_sample(SHAPES[kind], seed=7, voxel_size_um=400.0)
    np.testing.assert_array_equal(stacks["image"].values, image)
    np.testing.assert_array_equal(stacks["truth/mask"].values, mask)
    summary = json.loads((out / "truth" / "simulation.json").read_text())
    assert summary["seed"] == 7 and summary["shape"] == list(SHAPES[kind])
    with (out / "truth" / "roots.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len({row["root"] for row in rows}) == sum(summary["n_roots"].values())
    assert max(int(row["order"]) for row in rows) == max(map(int, summary["n_roots"]))
    for name in ("image", "truth"):
        assert (out / "preview" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    status, _, complaint = niseg(*arguments)
    assert status == 2 and "exists" in complaint


def test_nothing_is_left_of_a_run_whose_pictures_fail(tmp_path):
    def fail(_):
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left"):
        simulate_roots(tmp_path / "run", fail, shape="40x40")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("voxel_size_um", [1.0, 10.0, 10_000.0])
@pytest.mark.parametrize("habit", ["taprooted", "fibrous"])
def test_roots_grow_in_containers_of_any_size(voxel_size_um, habit):
    for age in (0.1, 2.0):
        scene = build((40, 36, 36), seed=1, voxel_size_um=voxel_size_um, habit=habit, age=age)
        assert 1 in scene.roots.order and render_scene(scene).skeleton.sum() > 2


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"age": 0}, "age=0 is out of range; give 0.1 to 10"),
        ({"habit": "fibros"}, "habit='fibros' is not known; did you mean 'fibrous'"),
        ({"format": "png"}, "format='png' is not known; allowed: zarr, tif, h5, npy"),
        ({"rings": 0.1, "shape": "64x64"}, "rings=0.1 needs a pot"),
    ],
)
def test_values_out_of_range_are_refused(tmp_path, options, complaint):
    with pytest.raises(UserError, match=complaint):
        simulate_roots(tmp_path / "run", **options)
    assert not list(tmp_path.iterdir())


def test_unknown_options_of_a_sample_are_refused():
    with pytest.raises(UserError, match="no parameter 'ages'; did you mean 'age'"):
        make_root_sample((64, 64), seed=1, ages=2)


def test_a_folder_without_images_has_no_previews(tmp_path):
    with pytest.raises(UserError, match="holds no image"):
        draw_previews(tmp_path)
