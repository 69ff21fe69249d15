"""Masks, scores and label maps against the truth: scikit-learn's figures, chunkings, what is undefined."""

from __future__ import annotations

import itertools
import json

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics

from niseg_gpu.errors import UserError
from niseg_gpu.evaluate import evaluate_labels, evaluate_mask, evaluate_scores, pieces
from niseg_gpu.evaluate.labels import find_known
from niseg_gpu.figures import NO_DATA_COLOUR, PALETTE
from niseg_gpu.figures_evaluate import HIT_COLOURS, draw_hits, draw_threshold_curve, draw_wrong

SHAPES = hnp.array_shapes(min_dims=2, max_dims=3, max_side=9)


@st.composite
def pairs(draw, first, second):
    """Two arrays of one shape."""
    shape = draw(SHAPES)
    return draw(hnp.arrays(first[0], shape, elements=first[1])), draw(hnp.arrays(second[0], shape, elements=second[1]))


masks = pairs((bool, st.booleans()), (np.uint8, st.sampled_from([0, 255])))
scored = pairs((np.float32, st.integers(-3, 3).map(lambda n: n / 4)), (bool, st.booleans()))
labelled = pairs((np.uint8, st.integers(0, 5)), (np.int64, st.sampled_from([-7, 0, 3, 1000])))


@given(masks)
def test_a_masks_figures_are_scikit_learns(pair) -> None:
    found, true = evaluate_mask(*pair), pair[1] != 0
    p, t = pair[0].ravel(), true.ravel()
    assert [found.tn, found.fp, found.fn, found.tp] == metrics.confusion_matrix(t, p, labels=[0, 1]).ravel().tolist()
    assert sum(found.rates.values()) == pytest.approx(1)
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(t, p, average="binary", zero_division=np.nan)
    expected = {
        "precision": precision,
        "recall": recall,
        "f1": f1 if (t | p).any() else np.nan,
        "iou": metrics.jaccard_score(t, p) if (t | p).any() else np.nan,
        "balanced_accuracy": metrics.balanced_accuracy_score(t, p) if t.any() and not t.all() else np.nan,
    }
    if 0 < t.sum() < t.size and 0 < p.sum() < p.size:
        expected["matthews"] = metrics.matthews_corrcoef(t, p)
    else:
        assert found.matthews is None
    for name, value in expected.items():
        got = getattr(found, name)
        assert (got is None) == bool(np.isnan(value)), name
        assert got is None or got == pytest.approx(value), name
    assert found.dice == found.f1
    undefined = [name for name in expected if getattr(found, name) is None]
    assert all(any(word in note.lower() for note in found.notes) for word in (u.split("_")[0] for u in undefined) if
               word not in ("f1", "iou"))  # fmt: skip


def count_components(mask: np.ndarray) -> list[set[tuple[int, int]]]:
    """8-connected components of one frame, by walking."""
    left, found = {tuple(at) for at in np.argwhere(mask).tolist()}, []
    while left:
        spot, edge = set(), [left.pop()]
        while edge:
            y, x = edge.pop()
            spot.add((y, x))
            for at in itertools.product((y - 1, y, y + 1), (x - 1, x, x + 1)):
                if at in left:
                    left.remove(at)
                    edge.append(at)
        found.append(spot)
    return found


@given(masks, st.sampled_from([0.0, 0.1, 0.5, 2 / 3, 1.0]))
def test_spots_are_counted_frame_by_frame(pair, fraction) -> None:
    found = evaluate_mask(*pair, found_fraction=fraction)
    expected = np.zeros(4, int)
    for predicted, truth in zip(*(mask.reshape(-1, *mask.shape[-2:]) for mask in pair), strict=True):
        given, true = count_components(predicted), count_components(truth)
        hit = [len(spot & {tuple(at) for at in np.argwhere(predicted).tolist()}) for spot in true]
        reached = [n > 0 and n / len(spot) >= fraction for n, spot in zip(hit, true, strict=True)]
        touching = {tuple(at) for at in np.argwhere(truth).tolist()}
        expected += [len(true), sum(reached), len(given), sum(not spot & touching for spot in given)]
    assert [found.true_spots, found.found_spots, found.predicted_spots, found.false_alarms] == expected.tolist()
    assert found.spot_recall == (expected[1] / expected[0] if expected[0] else None)


@given(scored)
def test_areas_under_curves_are_scikit_learns_with_ties(pair) -> None:
    scores, truth = pair
    found, s, t = evaluate_scores(scores, truth), scores.ravel(), truth.ravel()
    if not t.any():
        assert (found.roc_auc, found.average_precision, found.best_f1, found.best_threshold) == (None,) * 4
        assert len(found.curve["f1"]) == 0 and "no positive pixel" in found.notes[0]
        return
    assert found.average_precision == pytest.approx(metrics.average_precision_score(t, s))
    if t.all():
        assert found.roc_auc is None and "no negative pixel" in found.notes[0]
    else:
        assert found.roc_auc == pytest.approx(metrics.roc_auc_score(t, s))
    f1 = [metrics.f1_score(t, s >= value) for value in found.curve["threshold"]]
    np.testing.assert_allclose(found.curve["f1"], f1)
    assert found.curve["threshold"].tolist() == np.unique(s).tolist()
    assert found.best_f1 == pytest.approx(max(f1))
    assert evaluate_mask(scores >= found.best_threshold, truth).f1 == pytest.approx(found.best_f1)


def test_a_long_curve_is_thinned_and_keeps_the_best() -> None:
    rng = np.random.default_rng(1)
    truth = rng.random((80, 90)) < 0.05
    scores = np.exp(rng.normal(size=truth.shape) + 2 * truth)
    found = evaluate_scores(scores, truth)
    curve = found.curve
    assert 100 < len(curve["threshold"]) <= 200 and (np.diff(curve["threshold"]) > 0).all()
    assert (curve["threshold"][0], curve["threshold"][-1]) == (scores.min(), scores.max())
    assert curve["f1"].max() == found.best_f1 and found.best_threshold in curve["threshold"]
    assert np.abs(np.diff(curve["recall"])).max() < 0.02
    precision, recall, _ = metrics.precision_recall_curve(truth.ravel(), scores.ravel())
    at = {r: p for p, r in zip(precision, recall, strict=True)}
    assert max(2 * p * r / max(p + r, 1e-9) for r, p in at.items()) == pytest.approx(found.best_f1)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int16, np.uint8, bool])
def test_scores_in_bins_keep_to_their_margin(dtype) -> None:
    rng = np.random.default_rng(2)
    truth = rng.random((3, 70, 80)) < 0.1
    scores = (rng.normal(size=truth.shape) + truth) * 30
    scores = np.abs(scores).astype(dtype) if dtype == np.uint8 else scores.astype(dtype)
    exact, binned = evaluate_scores(scores, truth), evaluate_scores(scores, truth, exact_pixels=0)
    assert abs(binned.roc_auc - exact.roc_auc) <= binned.auc_margin + 1e-12
    assert exact.auc_margin == 0 < binned.auc_margin and any("bins" in note for note in binned.notes)
    assert binned.best_f1 == pytest.approx(exact.best_f1, abs=2e-3)
    assert binned.average_precision == pytest.approx(exact.average_precision, abs=2e-3)
    mask = evaluate_mask(scores.astype(np.float32) >= binned.best_threshold, truth)
    assert mask.f1 == pytest.approx(binned.best_f1, abs=1e-9)


@pytest.mark.parametrize("exact_pixels", [0, 100])
def test_scores_without_a_value_are_left_out_and_infinite_ones_kept(exact_pixels) -> None:
    scores = np.array([[-np.inf, -2.0, -0.0, 0.0, 1.0, np.inf, np.nan, np.nan]])
    truth = np.array([[0, 0, 1, 0, 1, 1, 1, 0]])
    found = evaluate_scores(scores, truth, exact_pixels=exact_pixels)
    assert (found.no_score, found.positives, found.negatives) == (2, 3, 3)
    known = np.r_[-9.0, -2, 0, 0, 1, 9]
    assert found.roc_auc == pytest.approx(metrics.roc_auc_score(truth[0, :6], known))
    assert found.curve["threshold"][[0, -1]].tolist() == [-np.inf, np.inf]
    assert "2 pixels without a score" in found.notes[0]
    json.dumps(found.as_mapping(), allow_nan=False)


@given(labelled)
def test_label_maps_are_assigned_as_well_as_can_be(pair) -> None:
    predicted, truth = pair
    found = evaluate_labels(predicted, truth)
    p, t = predicted.ravel(), truth.ravel()
    classes, clusters = np.unique(t).tolist(), np.unique(p).tolist()
    assert list(found.classes) == classes and found.no_data == 0
    slots = [*clusters, *[None] * len(classes)]
    best = max(
        sum(((t == c) & (p == k)).sum() for c, k in zip(classes, chosen, strict=True) if k is not None)
        for chosen in itertools.permutations(slots, len(classes))
    )
    assert found.accuracy == pytest.approx(best / t.size)
    assert sorted([c for c in found.clusters if c is not None] + list(found.spare)) == clusters
    renamed = {k: c for c, k in zip(classes, found.clusters, strict=True)}
    as_classes = np.array([renamed.get(k, -99) for k in p])
    options = {"labels": classes, "average": None, "zero_division": 0}
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(t, as_classes, **options)
    iou = metrics.jaccard_score(t, as_classes, **options)
    rows = found.per_class
    for name, values in (("precision", precision), ("recall", recall), ("dice", f1), ("iou", iou)):
        np.testing.assert_allclose([row[name] or 0 for row in rows], values, err_msg=name)
    assert found.mean_iou == pytest.approx(iou.mean())
    assert all((row["precision"] is None) == (row["cluster"] is None) for row in rows)
    if found.adjusted_rand is None:
        assert len(classes) == len(clusters) == 1 or len(classes) == len(clusters) == t.size
    else:
        assert found.adjusted_rand == pytest.approx(metrics.adjusted_rand_score(t, p))


@given(labelled)
def test_labels_that_mean_the_same_classes_are_compared_as_numbered(pair) -> None:
    predicted, truth = pair
    found, best = evaluate_labels(predicted, truth, same_numbers=True), evaluate_labels(predicted, truth)
    p, t = predicted.ravel(), truth.ravel()
    assert found.accuracy == found.accuracy_by_number == best.accuracy_by_number == metrics.accuracy_score(t, p)
    options = {"labels": list(found.classes), "average": None, "zero_division": 0}
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(t, p, **options)
    for name, values in (("precision", precision), ("recall", recall), ("dice", f1)):
        np.testing.assert_allclose([row[name] or 0 for row in found.per_class], values, err_msg=name)
    assert found.clusters == tuple(c if c in p else None for c in found.classes)
    assert set(found.spare) == set(p.tolist()) - set(found.classes)
    assert found.pixels == best.pixels == t.size


def test_clusters_that_were_renumbered_are_told_with_what_the_numbers_give() -> None:
    truth = np.array([[0, 0, 1, 2]])
    swapped = evaluate_labels(np.array([[1, 1, 0, 2]]), truth)
    assert swapped.accuracy == 1 and swapped.accuracy_by_number == 0.25
    assert swapped.notes == [
        "clusters were renumbered to fit the truth; as they are numbered (--same-numbers) the accuracy is 0.2500"
    ]
    for predicted, numbers in ((truth, False), (np.array([[1, 1, 0, 2]]), True)):
        assert not evaluate_labels(predicted, truth, same_numbers=numbers).notes


def test_pixels_without_data_are_left_out_of_either_map() -> None:
    predicted = np.array([[0, 1, 1, 255, 0, 255]], np.uint8)
    truth = np.array([[7, 4, 4, 4, 65535, 65535]], np.uint16)
    found = evaluate_labels(predicted, truth)
    assert (found.no_data, found.pixels, found.accuracy, found.clusters) == (3, 3, 1, (1, 0))
    assert "3 pixels without data" in found.notes[0]
    assert evaluate_labels(predicted, truth, no_data=0).no_data == 2
    empty = evaluate_labels(np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8))
    assert (empty.accuracy, empty.mean_iou, empty.adjusted_rand) == (None, None, None)
    assert "everything is undefined" in empty.notes[1]
    json.dumps(empty.as_mapping(), allow_nan=False)


class LikeCupy(np.ndarray):
    """Compared with whole numbers as CuPy does it: with no other than its type has."""

    __module__ = "numpy"

    def __ne__(self, other):
        limits = np.iinfo(np.int8 if self.dtype.kind == "b" else self.dtype)
        if type(other) is int and not limits.min <= other <= limits.max:
            raise OverflowError(f"Python integer {other} out of bounds for {limits.dtype}")
        return super().__ne__(other)


@pytest.mark.parametrize("dtype, no_data, left_out", [
    ("int8", None, 0), ("bool", None, 0), ("uint8", 300, 0), ("bool", 1, 4), ("uint8", 1, 4), ("int8", -1, 0),
])  # fmt: skip
def test_a_label_that_the_type_does_not_have_leaves_nothing_out(dtype: str, no_data, left_out: int) -> None:
    labels = np.array([[0, 1, 0], [1, 1, 1]], dtype)
    found = [evaluate_labels(a, a, no_data=no_data) for a in (labels, labels.view(LikeCupy))]
    assert found[0].no_data == found[1].no_data == left_out
    np.testing.assert_array_equal(found[0].confusion, found[1].confusion)


@pytest.mark.parametrize("dtype", ["int8", "bool", "uint8", "uint16", "int32"])
def test_label_maps_of_any_integers_are_compared(backend, dtype: str) -> None:
    labels = np.random.default_rng(3).integers(0, 2, (5, 40, 30)).astype(dtype)
    for no_data in (None, 0, 300):
        here, there = (evaluate_labels(b, b[::-1], no_data=no_data) for b in (labels, backend.from_host(labels)))
        np.testing.assert_array_equal(here.confusion, there.confusion)
        assert here.as_mapping() == there.as_mapping()


def test_spare_clusters_and_missing_classes_are_told() -> None:
    more = evaluate_labels(np.array([[0, 0, 1, 2]]), np.array([[5, 5, 5, 6]]))
    assert (more.clusters, more.spare, more.confusion.tolist()) == ((0, 2), (1,), [[2, 0, 1], [0, 1, 0]])
    assert more.notes == ["clusters that stand for no class: 1"]
    fewer = evaluate_labels(np.zeros((1, 4), bool), np.array([[5, 5, 5, 6]]))
    assert fewer.clusters == (0, None) and fewer.per_class[1]["precision"] is None
    assert fewer.mean_iou == pytest.approx(0.75 / 2) and "no cluster stands for class 6" in fewer.notes[0]


@pytest.mark.parametrize("chunks", [(2, 11, 13), (7, 3, 5), (1, 40, 50)])
def test_chunks_change_nothing(chunks, monkeypatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_PIXELS", 3 * 40 * 50)
    rng = np.random.default_rng(5)
    truth, scores = rng.random((7, 40, 50)) < 0.1, rng.normal(size=(7, 40, 50)).astype(np.float32)
    labels = rng.integers(0, 4, truth.shape)
    lazy_truth = xr.DataArray(da.from_array(truth, chunks=chunks), dims=("tof", "y", "x"))
    lazy_scores = da.from_array(scores, chunks=(3, 40, 50))
    assert evaluate_mask(lazy_scores > 1, lazy_truth, found_fraction=0.5) == evaluate_mask(
        scores > 1, truth, found_fraction=0.5
    )
    for exact_pixels in (0, 10**6):
        whole, cut = (evaluate_scores(s, t, exact_pixels=exact_pixels).as_mapping() for s, t in (
            (scores, truth), (lazy_scores, lazy_truth)
        ))  # fmt: skip
        assert whole == cut
    lazy_labels = da.from_array(labels, chunks=chunks)
    assert evaluate_labels(lazy_labels, truth).as_mapping() == evaluate_labels(labels, truth).as_mapping()


def test_memory_holds_a_few_frames_only() -> None:
    seen = []

    def frames(block_info=None):
        seen.append(block_info[None]["array-location"][0])
        return np.zeros((1, 1024, 1024), bool)

    stack = da.map_blocks(frames, chunks=((1,) * 40, 1024, 1024), dtype=bool, meta=np.empty((0, 0, 0), bool))
    sizes = pieces.map_pieces(lambda a, b: a.size, a=stack, b=stack)
    assert max(sizes) <= pieces.PIECE_PIXELS and sum(sizes) == 40 * 2**20 and len(seen) == 40


def test_misuse_is_told_in_one_line() -> None:
    mask = np.zeros((3, 4), bool)
    with pytest.raises(UserError, match="predicted is 3 x 4, truth is 4 x 3; both must have one shape"):
        evaluate_mask(mask, mask.T)
    with pytest.raises(UserError, match="2 or more axes"):
        evaluate_mask(mask[0], mask[0])
    with pytest.raises(UserError, match="found_fraction is x; allowed: 0"):
        evaluate_mask(np.zeros((2, 2)), np.zeros((2, 2)), found_fraction="x")
    with pytest.raises(UserError, match="found_fraction is 1.5; allowed: 0"):
        evaluate_mask(mask, mask, found_fraction=1.5)
    with pytest.raises(UserError, match="predicted holds NaN"):
        evaluate_mask(np.full((3, 4), np.nan), mask)
    with pytest.raises(UserError, match="truth holds float64 values; labels are integers"):
        evaluate_labels(mask, mask.astype(float))
    with pytest.raises(UserError, match="truth holds 3000 different values or more"):
        evaluate_labels(np.zeros((60, 50), int), 256 + np.arange(3000).reshape(60, 50))
    with pytest.raises(UserError, match="scores holds complex128"):
        evaluate_scores(mask.astype(complex), mask)


def test_spots_are_labelled_as_the_twin_does_it(backend) -> None:
    mask = np.zeros((2, 5, 5), bool)
    mask[0, [0, 1, 4], [0, 1, 4]] = True  # two touch at a corner
    mask[1, 4, 4] = True  # right behind one of frame 0
    labels, number = backend.label(backend.from_host(mask))
    assert int(number) == 3
    assert [len(np.unique(frame)) - 1 for frame in backend.to_host(labels)] == [2, 1]
    assert evaluate_mask(*[backend.from_host(mask)] * 2).found_spots == 3


# Machado et al. 2009 (doi:10.1109/TVCG.2009.113), severity 1, on linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


@pytest.mark.parametrize("vision", VISION)
def test_hits_and_misses_can_be_told_apart(vision: str) -> None:
    codes = np.array([[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for colour in HIT_COLOURS.values()])
    linear = np.where(codes <= 0.04045, codes / 12.92, ((codes + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.transpose(VISION[vision]), 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(seen @ to_xyz.T / to_xyz.sum(axis=1)).T
    lab = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)  # none is dark enough for the linear part
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2)) > 40


def colours_in(png: bytes) -> dict[tuple[int, ...], int]:
    import io

    from PIL import Image

    return {colour: n for n, colour in Image.open(io.BytesIO(png)).convert("RGB").getcolors(10**6)}


def test_the_hit_map_shows_every_kind_and_loses_no_single_pixel() -> None:
    codes = {name: tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for name, c in HIT_COLOURS.items()}
    truth, predicted = np.zeros((2, 4, 8), np.uint8)
    truth[:2], predicted[1:3] = 255, 1
    shown = colours_in(draw_hits(predicted, truth).light)
    areas = [shown[codes[name]] for name in codes]
    assert max(areas) < 1.1 * min(areas) and min(areas) > 10_000
    large, nothing = np.zeros((2, 2000, 1500), bool)
    key = colours_in(draw_hits(nothing, large).light)
    large[700, 801] = True
    shown = colours_in(draw_hits(nothing, large).light)
    assert shown[codes["false negative"]] > key[codes["false negative"]]


def test_what_is_wrong_in_labels_has_the_colour_of_the_class_that_was_missed() -> None:
    truth = np.repeat(np.uint8([0, 1, 2, 255]), 3)[None].repeat(4, axis=0)
    predicted = truth.copy()
    predicted[:2, :9], predicted[0, 9:] = np.repeat(np.uint8([1, 2, 0]), 3), 0
    found = evaluate_labels(predicted, truth, same_numbers=True)
    assert found.accuracy == 0.5
    known = find_known(predicted, truth)
    assert known.sum() == 36
    shown = colours_in(draw_wrong(predicted, truth, classes=(0, 1, 2), clusters=(0, 1, None), known=known).light)
    codes = [HIT_COLOURS["true negative"], NO_DATA_COLOUR, *PALETTE[:3]]
    areas = [shown[tuple(int(c[i : i + 2], 16) for i in (1, 3, 5))] for c in codes]
    pixel = areas[1] / 12
    assert pixel > 1000 and np.allclose(np.array(areas) / pixel, [12, 12, 6, 6, 12], atol=1.5), areas
    large = np.zeros((2, 2000, 1500), np.uint16)
    large[1, 700, 801] = 40
    how = {"classes": (0, 40), "clusters": (0, None), "known": np.ones(large.shape[1:], bool)}
    code = tuple(int(PALETTE[40][i : i + 2], 16) for i in (1, 3, 5))
    key = colours_in(draw_wrong(large[0], large[0], **how).light)
    assert colours_in(draw_wrong(*large, **how).light)[code] > key[code], "no single pixel is lost"


@pytest.mark.parametrize("scale", [1.0, 1e5])
def test_the_curve_is_drawn_whatever_the_scores(scale: float) -> None:
    rng = np.random.default_rng(3)
    truth = rng.random((30, 40)) < 0.1
    scores = np.where(truth, 2, 1) * rng.random(truth.shape) ** 2
    scores[0, 0] *= scale
    found = evaluate_scores(scores, truth)
    picture = draw_threshold_curve(found.curve, best_threshold=found.best_threshold)
    assert len(colours_in(picture.light)) > 20 and picture.light != picture.dark
    one = evaluate_scores(np.full((3, 3), np.inf), np.eye(3))
    assert draw_threshold_curve(one.curve, best_threshold=one.best_threshold).width > 0


def test_the_median_residue_finds_spots_painted_by_hand(data_dir, backend) -> None:
    from niseg_gpu.io.open import open_stack

    image, mask = (open_stack(data_dir / "spots_annotated" / f"{name}.png").values for name in ("image", "mask"))
    image = backend.from_host(image.astype(np.float32))
    scores = abs(image - backend.median(image, size=(3, 3)))
    truth = backend.from_host(mask)
    found = evaluate_scores(scores, truth)
    assert found.roc_auc > 0.71 and found.best_f1 > 0.5
    best = evaluate_mask(scores >= found.best_threshold, truth)
    assert best.f1 == pytest.approx(found.best_f1)
    assert best.spot_recall > 0.9 > 2 * best.recall  # nearly every spot is touched, hardly one is filled
    host = backend.to_host(scores).ravel()
    assert found.roc_auc == pytest.approx(metrics.roc_auc_score(mask.ravel() > 0, host))
    assert found.average_precision == pytest.approx(metrics.average_precision_score(mask.ravel() > 0, host))


@pytest.mark.parametrize("evaluate", [evaluate_mask, evaluate_scores, evaluate_labels], ids=lambda f: f.__name__)
def test_what_is_no_array_of_numbers_is_told_in_one_line(evaluate) -> None:
    first = "scores" if evaluate is evaluate_scores else "predicted"
    good = np.eye(4, dtype=np.uint8)
    for bad in (None, 3, "mask.tif", good.tolist()):
        with pytest.raises(UserError, match=rf"{first} is a \w+; needed: an array \(..., Y, X\)"):
            evaluate(bad, good)
        with pytest.raises(UserError, match=r"truth is a \w+; needed: an array"):
            evaluate(good, bad)
    for bad in (good * 1j, good.astype("M8[s]"), np.zeros((4, 4), [("a", "f4")])):
        with pytest.raises(UserError, match=f"{first} holds .* values; allowed: real numbers"):
            evaluate(bad, good)
    with pytest.raises(UserError, match=f"{first} is a masked array; needed: one that hides nothing"):
        evaluate(np.ma.masked_equal(good, 1), good)


def test_axes_in_another_order_are_not_compared_in_silence() -> None:
    here = xr.DataArray(np.tri(4), dims=("y", "x"))
    assert evaluate_mask(here, here.rename(y="row", x="column")).f1 == 1
    with pytest.raises(UserError, match="predicted has the axes y x x, truth x x y; needed: one order"):
        evaluate_mask(here, here.transpose("x", "y"))
