import numpy as np
import pytest
import tifffile
from PIL import Image

from niseg_gpu.errors import UserError
from niseg_gpu.simulate.scenes import SCENES, THICKNESS_STEPS, Scene, build_blocks, build_scene, read_plan


def test_blocks_are_six_in_mixed_order():
    scene = build_blocks(height=256, width=256)
    rows, columns = (90, 170), (50, 128, 206)
    order = scene.labels[np.ix_(rows, columns)]
    assert sorted(order.ravel()) == [1, 1, 1, 2, 2, 2] and len({tuple(row) for row in order}) == 2
    steel = scene.labels[:, :, None] == [1, 2]
    np.testing.assert_allclose(scene.thickness_cm[:2, 90, 50].sum(), 1.0, atol=1e-4)
    assert scene.thickness_cm.sum(axis=0).max() <= 1.0 + 1 / THICKNESS_STEPS and scene.thickness_cm.min() >= 0
    assert steel[..., 0].sum() == pytest.approx(steel[..., 1].sum(), rel=0.02)
    # The edge is spread over some pixels, not a jump.
    edge = np.diff(scene.thickness_cm[0, 90, 10:60])
    assert (edge > 0.02).sum() >= 3


def test_wedge_rises_in_eight_equal_steps():
    scene = build_scene("wedge", height=100, width=200, thickness_cm=1.6)
    middle = scene.thickness_cm[0, 50, 30:190:20]
    np.testing.assert_allclose(middle, 0.2 * np.arange(1, 9), atol=1e-6)
    assert (scene.labels[50, 22:178] == 1).all() and not scene.labels[50, :18].any() and not scene.labels[5].any()


def test_mixture_turns_from_one_phase_into_the_other():
    scene = build_scene("mixture", height=100, width=200)
    iron, steel = scene.thickness_cm[:, 50, 25:175]
    np.testing.assert_allclose(iron + steel, 1.0, atol=1 / THICKNESS_STEPS)
    assert (np.diff(steel) >= 0).all() and steel[0] == 0 and steel[-1] == 1 and 0.49 < steel[75] < 0.52
    assert (scene.labels[50, 25:99] == 1).all() and (scene.labels[50, 101:175] == 2).all()


@pytest.mark.parametrize("name", SCENES)
def test_few_sorts_of_pixels_make_a_scene(name):
    scene = build_scene(name, height=300, width=400)
    sorts = np.unique(scene.thickness_cm.reshape(len(scene.materials), -1), axis=1)
    assert sorts.shape[1] < 1200


@pytest.mark.parametrize("ending", [".png", ".tif", ".npy"])
def test_a_plan_becomes_a_scene(tmp_path, ending):
    plan = np.zeros((40, 60), np.uint8)
    plan[10:30, 10:50] = 7
    plan[10:30, 30:50] = 9
    path = tmp_path / f"plan{ending}"
    {".png": lambda: Image.fromarray(plan).save(path), ".tif": lambda: tifffile.imwrite(path, plan)}.get(
        ending, lambda: np.save(path, plan)
    )()
    scene = read_plan(path, materials=["copper", "zirconium"], thickness_cm=0.4)
    np.testing.assert_array_equal(scene.labels, np.searchsorted([0, 7, 9], plan))
    assert scene.materials == ("copper", "zirconium") and scene.thickness_cm.max() == np.float32(0.4)
    # Blurred edges keep the matter.
    np.testing.assert_allclose(scene.thickness_cm.sum(axis=(1, 2)), 0.4 * 400, rtol=2e-3)
    assert 0.05 < scene.thickness_cm[0, 20, 9] < 0.12


def test_a_plan_and_its_materials_must_fit(tmp_path):
    np.save(tmp_path / "plan.npy", np.arange(3, dtype=np.uint8) * np.ones((40, 1), np.uint8))
    with pytest.raises(UserError, match=r"has 2 values other than 0 \(1, 2\), but materials names 1"):
        build_scene(str(tmp_path / "plan.npy"), height=1, width=1, materials="nickel")
    for values in (np.zeros((40, 30), int), np.arange(1200).reshape(40, 30) % 257):
        np.save(tmp_path / "plan.npy", values)
        with pytest.raises(UserError, match=r"has (0|256) values other than 0; allowed: 1 to 255"):
            read_plan(tmp_path / "plan.npy", materials=["nickel"] * (len(np.unique(values)) - 1))
    np.save(tmp_path / "float.npy", np.zeros((4, 5)))
    with pytest.raises(UserError, match="give one grey image of whole numbers"):
        read_plan(tmp_path / "float.npy", materials=[])


def test_scene_whose_maps_differ_in_shape_is_refused():
    with pytest.raises(UserError, match="thickness_cm"):
        Scene(("nickel",), np.zeros((4, 5), np.uint8), np.zeros((2, 4, 5), np.float32))
