"""The report of a run: what the page says, what the pictures show, and that it stands alone."""

import base64
import io
import json
import re
import time
from html.parser import HTMLParser

import numpy as np
import pytest
import xarray as xr
import zarr
from matplotlib.image import imread

from niseg_gpu import report_cards
from niseg_gpu.errors import UserError
from niseg_gpu.figures import NO_DATA_COLOUR, PALETTE
from niseg_gpu.report import tell_bytes, tell_seconds, write_report
from niseg_gpu.report_cards import tell_percent

RUN = {
    "niseg_gpu": "0.1.0",
    "started": "2026-03-04T14:05:31+01:00",
    "seconds": 12.34,
    "device": {"name": "cpu", "hardware": "two cores", "workers": 2, "reason": "auto: no usable GPU"},
    "versions": {"numpy": "2.2.1"},
    "pipeline": {
        "input": {"path": "run42/"},
        "steps": [{"remove_spots": {"size": 3, "threshold": 20.5}}, {"kmeans": {"n_clusters": 3, "seed": 2018}}],
        "output": {"path": "out/"},
        "compute": {"device": "auto"},
    },
    "input": {
        "path": "data/run42", "shape": [30, 40, 50], "dims": ["tof", "y", "x"], "dtype": ">i2", "bytes": 250_000_000,
        "files": 30, "quantity": "counts",
    },
    "steps": [
        {"name": "read", "seconds": 0.5, "bytes": 250_000_000, "gb_per_s": 0.5},
        {"name": "kmeans", "seconds": 75.0, "bytes": 2_500_000_000, "gb_per_s": 0.0333},
    ],
    "peak_memory_gb": 0.812,
    "findings": ["0 values are NaN", "frame_0007.fits: 12 values saturated at 65535", "open beam: 30 frames averaged"],
    "results": {"labels": {"n_clusters": 3}},
}  # fmt: skip


class Page(HTMLParser):
    """Tags with their attributes, and the text as a reader sees it."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def sources(self):
        return [a[k] for _, a in self.tags for k in ("src", "href", "srcset", "data", "poster") if k in a]

    def headings(self):
        return [a["alt"].split(".")[0] for tag, a in self.tags if tag == "img"]


def make_run(folder, arrays, *, coords=None, attrs=None, run=RUN):
    folder.mkdir(exist_ok=True)
    xr.Dataset(arrays, coords or {}, attrs=attrs or {}).to_zarr(
        folder / "result.zarr", mode="w", consolidated=False, zarr_format=3
    )
    (folder / "run.json").write_text(json.dumps(run))
    return folder


LABELS = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)


def make_tof_run(folder, *, k=3, wavelength=True, no_data=False, only=(), **options):
    rng = np.random.default_rng(0)
    labels = (np.arange(40 * 50).reshape(40, 50) % k).astype(np.uint8)
    if no_data:
        labels[:5] = 255
    count = np.zeros((40, 50), np.uint32)
    count[3, 4], count[10, 10] = 29, 1
    tof = np.r_[np.arange(15), np.arange(20, 35)] * 1e-5 + 1e-3
    coords = {"tof": tof, **({"wavelength": ("tof", tof * 240)} if wavelength else {})}
    arrays = {
        "labels": (("y", "x"), labels),
        "mean_image": (("y", "x"), rng.normal(100, 10, (40, 50)).astype(np.float32)),
        "spot_count": (("y", "x"), count),
        "spectra": (("cluster", "tof"), rng.normal(100, 5, (k, 30)) + 20 * np.arange(k)[:, None]),
        "centroids": (("cluster", "tof"), np.zeros((k, 30))),
    }
    arrays = {name: array for name, array in arrays.items() if not only or name in only}
    return make_run(folder, arrays, coords=coords, attrs={"quantity": "counts"}, **options)


def make_volume_run(folder, *, n=30, labels=None, run=RUN, chunks=None):
    volume = np.random.default_rng(1).normal(1, 0.1, (n, 20, 24)).astype(np.float32)
    data = xr.DataArray(volume, dims=("z", "y", "x"))
    data.encoding["chunks"] = chunks or (1, 20, 24)
    arrays = {"image": data, "mean_image": (("y", "x"), volume.mean(0))}
    if labels is not None:
        arrays["labels"] = (("z", "y", "x"), labels)
    given = {**run, "input": {"shape": [n, 20, 24], "dims": ["z", "y", "x"]}, "results": {}}
    return make_run(folder, arrays, attrs={"quantity": "transmission"}, run=given)


def read_page(path):
    page = Page(path.read_text(encoding="utf-8"))
    raw = path.read_text(encoding="utf-8")
    assert all(source.startswith("data:image/png;base64,") for source in page.sources())
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    assert "http" not in raw and "@import" not in raw and "url(" not in raw
    return page


def check_pictures(folder):
    """Every preview and every picture in the page shows something; return the previews' names."""
    names = []
    for path in sorted((folder / "preview").iterdir()):
        pixels = imread(path)[..., :3] if imread(path).ndim == 3 else imread(path)
        assert pixels.var() > 1e-3, path
        names.append(path.stem)
    for source in Page((folder / "report.html").read_text(encoding="utf-8")).sources():
        assert imread(io.BytesIO(base64.b64decode(source.split(",")[1]))).var() > 1e-3
    return names


def test_tof_run_tells_what_went_in_and_came_out(tmp_path):
    path = write_report(make_tof_run(tmp_path / "run"))
    assert path == tmp_path / "run" / "report.html"
    page = read_page(path)
    assert "a time-of-flight stack of 30 × 40 × 50 (tof, y, x), int16, 0.25 GB" in page.text
    assert "3 clusters, 30 spots replaced (0.05 %), in 12.3 s on CPU (two cores)" in page.text
    assert "667 px 33.4 %" in page.text and "666 px 33.3 %" in page.text
    assert "remove_spots size: 3 threshold: 20.5" in page.text and "seed: 2018" in page.text
    assert "1 min 15 s 2.5 GB 0.0333" in page.text
    assert "Peak memory 0.812 GB" in page.text and "numpy 2.2.1" in page.text
    assert "In more than half of the frames, like a hot or dead pixel: 1 pixel." in page.text
    assert "the shutter was closed" in page.text
    assert check_pictures(path.parent) == ["labels", "mean_image", "spectra", "spots"]


def test_findings_that_need_a_look_come_first(tmp_path):
    page = read_page(write_report(make_tof_run(tmp_path / "run", no_data=True, only=["labels"])))
    first, rest = page.text.split("Label map", 1)
    assert "12 values saturated" in first and "No data, so no label: 250 pixels (12.5 %)" in first
    assert "0 values are NaN" not in first and "0 values are NaN" in rest and "open beam: 30 frames" in rest


@pytest.mark.parametrize("wavelength", [True, False])
def test_spectra_have_a_wavelength_axis_only_where_it_is_known(tmp_path, wavelength):
    write_report(make_tof_run(tmp_path / "run", wavelength=wavelength, only=["spectra"]))
    height = imread(tmp_path / "run/preview/spectra.png").shape[0]
    assert (height > 500) == wavelength


@pytest.mark.parametrize(
    ("steps", "quantity", "levelled"),
    [
        ([{"rebin_tof": {"factor": 4}}], "counts", True),
        ([], "counts per trigger", True),
        ([{"rebin_tof": {"factor": 4, "how": "mean"}}], "counts", False),
        ([{"rebin_tof": {"factor": 4}}], "transmission", False),
    ],
)
def test_a_narrow_bin_does_not_look_like_an_edge(tmp_path, steps, quantity, levelled):
    """Of sums, that is: their last bin holds 3 of 4."""
    width = np.r_[np.full(29, 4e-5), 3e-5]
    tof, spectra = np.r_[0, np.cumsum(width[:-1])], np.tile(100 * width / width[0], (3, 1))
    tried = [
        {"n_clusters": 2, "pixels": [3, 3], "inertia": 2.0},
        {"n_clusters": 3, "pixels": [2, 2, 2], "inertia": 1.0},
    ]
    run = {**RUN, "pipeline": {"steps": steps}, "results": {"labels": {"n_clusters": 3, "tried": tried}}}
    maps = {"labels": (("y", "x"), LABELS), "labels_k2": (("y", "x"), LABELS % 2)}
    pictures = []
    for width_s in (width, np.full(30, 4e-5)):
        coords = {"tof": tof, "tof_width": ("tof", width_s)}
        arrays = {"spectra": (("cluster", "tof"), spectra), "spectra_k2": (("cluster_k2", "tof"), spectra[:2]), **maps}
        folder = tmp_path / f"run{len(pictures)}"
        page = read_page(write_report(make_run(folder, arrays, coords=coords, attrs={"quantity": quantity}, run=run)))
        pictures.append(page.text)
    assert ("Bins differ in width: drawn is what 0.04 ms hold" in pictures[0]) == levelled
    assert "Bins differ" not in pictures[1] and "Label maps of each number of clusters" in pictures[1]
    drawn = [imread(tmp_path / f"run{i}/preview/label_maps.png") for i in range(2)]
    assert np.array_equal(*drawn) != levelled, "the maps' spectra are levelled too"


@pytest.mark.parametrize("k", [1, 20])
def test_any_number_of_clusters_has_a_row_and_a_colour_each(tmp_path, k):
    path = write_report(make_tof_run(tmp_path / "run", k=k, only=["labels", "spectra"], run={**RUN, "results": {}}))
    colours = re.findall(r"<li><i style=\"background:(#\w{6})\">", path.read_text(encoding="utf-8"))
    assert colours == list(PALETTE[:k])
    assert ("one row for each cluster" in read_page(path).text) == (k > 12)
    check_pictures(path.parent)


def test_label_map_shows_the_colours_of_the_legend(tmp_path):
    write_report(make_tof_run(tmp_path / "run", k=2, no_data=True, only=["labels"], run={**RUN, "results": {}}))
    pixels = (imread(tmp_path / "run/preview/labels.png")[..., :3] * 255).round().astype(int)
    seen = {"#{:02X}{:02X}{:02X}".format(*colour) for colour in np.unique(pixels.reshape(-1, 3), axis=0)}
    assert {PALETTE[0], PALETTE[1], NO_DATA_COLOUR} <= seen and PALETTE[2] not in seen


def test_cluster_without_a_pixel_is_named(tmp_path):
    run = {**RUN, "results": {"labels": {"n_clusters": 5}}}
    page = read_page(write_report(make_tof_run(tmp_path / "run", only=["labels"], run=run)))
    assert "Clusters without a pixel: 3, 4" in page.text


def test_volume_has_frames_cut_and_histogram(tmp_path):
    labels = np.zeros((30, 20, 24), np.uint8)
    labels[:, :, 12:] = 1
    path = write_report(make_volume_run(tmp_path / "run", labels=labels))
    page = read_page(path)
    assert "a volume of 30 × 20 × 24 (z, y, x)" in page.text and "Shown and counted: z 15 of 30." in page.text
    names = ["cut", "frame_first", "frame_last", "frame_middle", "histogram", "labels", "mean_image"]
    assert check_pictures(path.parent) == names


@pytest.mark.parametrize(("quantity", "n"), [("classes", 30), ("classes", 5), ("classes", 1), ("mask", 5)])
def test_classes_are_shown_in_their_colours_and_counted(tmp_path, quantity, n):
    image = np.zeros((n, 20, 24), np.uint8)
    image[:, :, 12:], image[0, 0, 0] = 1, 2 if quantity == "classes" else 1
    arrays = {"image": (("z", "y", "x"), image), "mean_image": (("y", "x"), image.mean(axis=0).astype(np.float32))}
    if n == 1:
        arrays = {"image": (("y", "x"), image[0])}
    path = write_report(make_run(tmp_path / "run", arrays, attrs={"quantity": quantity}, run={}))
    page = read_page(path)
    names = ["frame_image"] if n == 1 else ["frame_first", "frame_last", "frame_middle"]
    expected = ["cut"] * (n >= report_cards.CUT_FRAMES) + names + ["mean_image"] * (quantity == "mask")
    assert check_pictures(path.parent) == sorted(expected)
    assert f"Out: {2 + (quantity == 'classes')} classes" in page.text and "Classes 0 " in page.text
    assert ("Counted below: all of" in page.text) == (n > 1)
    pixels = np.bincount(image.ravel())
    for number, count in enumerate(pixels):
        assert f"{number} {count:,} px {tell_percent(100 * count / image.size)}" in page.text
    shown = imread(path.parent / "preview" / f"{names[0]}.png")[..., :3]
    for number in range(len(pixels)):
        wanted = [int(PALETTE[number][i : i + 2], 16) / 255 for i in (1, 3, 5)]
        assert np.isclose(shown, wanted, atol=0.003).all(axis=2).any()
    assert "no data" not in page.text


def test_what_became_of_a_mask_is_no_mask(tmp_path):
    arrays = {"image": (("z", "y", "x"), np.full((5, 20, 24), 0.5, np.float32))}
    path = write_report(make_run(tmp_path / "run", arrays, attrs={"quantity": "mask"}, run={}))
    assert "histogram" in check_pictures(path.parent) and "Classes" not in read_page(path).text


def test_pixels_of_a_whole_volume_are_told_as_the_run_counted_them(tmp_path):
    run = {"results": {"labels": {"n_clusters": 2, "pixels": [14000, 300]}}}
    arrays = {"labels": (("z", "y", "x"), np.zeros((30, 20, 24), np.uint8))}
    page = read_page(write_report(make_run(tmp_path / "run", arrays, run=run)))
    assert "14,000 px 97.2 %" in page.text and "no data 100 px 0.69 %" in page.text and "the whole volume" in page.text


def test_large_stacks_are_sampled_and_frames_too_dear_are_left_out(tmp_path, monkeypatch):
    frame = 20 * 24 * 4
    monkeypatch.setattr(report_cards, "SAMPLE_BYTES", 4 * frame)
    stack = zarr.open_group(make_volume_run(tmp_path / "run", n=40) / "result.zarr", mode="r")["image"]
    sampled = list(report_cards.sample_frames(stack, wanted={0, 20, 39}))
    assert [index for index, _ in sampled] == [0, 13, 20, 26, 39]
    np.testing.assert_array_equal(sampled[2][1], stack[20])
    monkeypatch.setattr(report_cards, "FRAME_BYTES", 2 * frame)
    page = read_page(write_report(make_volume_run(tmp_path / "dear", n=40, chunks=(40, 4, 4))))
    assert page.headings() == ["Mean image"]


def test_single_image(tmp_path):
    image = np.random.default_rng(2).normal(5, 1, (33, 21)).astype(np.float32)
    image[4, 4] = np.nan
    run = {"input": {"shape": [33, 21]}, "findings": []}
    spots = (image > 7).astype(np.uint32)
    arrays = {
        "image": (("y", "x"), image),
        "spot_count": (("y", "x"), spots),
        "labels": (("y", "x"), (image > 5).astype(np.uint16)),
        "centroids": (("cluster", "feature"), [[4.25], [6.5]]),
    }
    page = read_page(write_report(make_run(tmp_path / "run", arrays, run=run)))
    assert "In: an image of 33 × 21." in page.text and "Orange: 1 pixel without" in page.text
    assert f"Replaced: {spots.sum()} pixels" in page.text and "mean 4.25" in page.text and "mean 6.5" in page.text
    assert check_pictures(tmp_path / "run") == ["frame_image", "histogram", "labels", "spots"]


@pytest.mark.parametrize(
    "run", [{}, {"steps": None, "device": None, "pipeline": {"steps": ["kmeans", {"scale": None}]}}]
)
def test_sparse_run_json_still_gives_a_page(tmp_path, run):
    arrays = {"mean_image": (("y", "x"), np.eye(8, dtype=np.float32))}
    page = read_page(write_report(make_run(tmp_path / "run", arrays, run=run)))
    assert page.headings() == ["Mean image"] and "Out: the corrected data." in page.text


def test_run_without_any_array_gives_a_page_without_pictures(tmp_path):
    page = read_page(write_report(make_run(tmp_path / "run", {}, run=RUN)))
    assert page.headings() == [] and "data/run42" in page.text


def test_names_from_outside_are_escaped(tmp_path):
    path = "in/<b>&x\"'<script>alert(1)</script>"
    steps = [{"<i>step</i>": {"a<b": "</style><b>"}}]
    run = {**RUN, "input": {"path": path}, "pipeline": {"steps": steps}, "findings": ["<img src=x> NaN"]}
    page = read_page(write_report(make_tof_run(tmp_path / "run", only=["mean_image"], run=run)))
    assert path in page.text and "<i>step</i>" in page.text and "<img src=x> NaN" in page.text


def test_the_same_folder_gives_the_same_bytes(tmp_path):
    folder = make_tof_run(tmp_path / "run", only=["labels", "spectra"])
    first = write_report(folder).read_bytes()
    before = {path.name: path.read_bytes() for path in (folder / "preview").iterdir()}
    assert write_report(folder).read_bytes() == first
    assert {path.name: path.read_bytes() for path in (folder / "preview").iterdir()} == before
    assert not list(folder.rglob("*.part"))


def test_large_images_make_a_small_page_soon(tmp_path):
    rng = np.random.default_rng(3)
    side = 2048
    arrays = {
        "labels": (("y", "x"), rng.integers(0, 64, (side, side), np.uint8)),
        "mean_image": (("y", "x"), rng.normal(size=(side, side)).astype(np.float32)),
        "spot_count": (("y", "x"), rng.poisson(0.01, (side, side)).astype(np.uint32)),
        "spectra": (("cluster", "tof"), rng.normal(size=(64, 1000))),
    }
    folder = make_run(tmp_path / "run", arrays, coords={"tof": np.arange(1000) * 1e-5})
    start = time.perf_counter()
    assert write_report(folder).stat().st_size < 3e6
    assert time.perf_counter() - start < 20  # about two seconds; far more would mean a loop over pixels


def test_a_folder_without_a_finished_run_is_the_users_to_mend(tmp_path):
    with pytest.raises(UserError, match="result.zarr is missing; give the folder"):
        write_report(tmp_path)
    folder = make_tof_run(tmp_path / "run")
    (folder / "run.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        write_report(folder)
    (folder / "run.json").write_text("[]")
    with pytest.raises(UserError, match="holds a list, not a mapping"):
        write_report(folder)
    (folder / "run.json").unlink()
    with pytest.raises(UserError, match="run.json is missing"):
        write_report(folder)
    (tmp_path / "empty" / "result.zarr").mkdir(parents=True)
    (tmp_path / "empty" / "run.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        write_report(tmp_path / "empty")


def test_numbers_are_told_as_one_reads_them():
    assert [tell_seconds(s) for s in (0.0123, 1.5, 59, 61, 3725)] == [
        "12.3 ms",
        "1.5 s",
        "59 s",
        "1 min 1 s",
        "1 h 2 min",
    ]
    assert [tell_bytes(n) for n in (512, 3_930_000, 120_000_000, 5.2e12)] == [
        "0.512 kB",
        "3.93 MB",
        "0.12 GB",
        "5,200 GB",
    ]
    assert [tell_percent(p) for p in (0, 1e-7, 0.0061, 12.34, 99.99, 100)] == [
        "0 %", "< 0.0001 %", "0.0061 %", "12.3 %", "> 99.9 %", "100.0 %",
    ]  # fmt: skip
