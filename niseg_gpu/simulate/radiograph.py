"""Simulate radiographs with spots, with the truth beside them."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from niseg_gpu.backend import count_cores
from niseg_gpu.io.paths import read_path
from niseg_gpu.options import check_options
from niseg_gpu.simulate.folders import appear_when_whole, write_summary
from niseg_gpu.simulate.radiograph_frames import (
    DARK_STREAM,
    OPEN_BEAM_STREAM,
    Frame,
    Setup,
    expose_frame,
    plan_beam,
    set_up,
)
from niseg_gpu.simulate.streams import check_limits, fill_options, read_shape


def simulate_radiograph(
    out: str | os.PathLike,
    draw: Callable[[Path], Any] | None = None,
    *,
    seed: int = 2018,
    height: int = 1024,
    width: int = 1024,
    n_frames: int = 1,
    open_beam_counts: float = 10_000.0,
    open_beam_neutrons: float = 10_000.0,
    photons_per_count: float = 10.0,
    read_noise_counts: float = 8.0,
    blur_pixels: float = 0.8,
    spots: float = 0.01,
    exponent: float = 1.73,
    dark_frames: str = "",
    workers: int | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write radiographs of a scintillator and camera, struck by gamma rays: images, open beam, dark and truth.

    ``out/images`` holds ``image_00000.tif`` and so on (uint16), ``out`` also ``open_beam.tif`` and ``dark.tif``, with
    spots of their own. ``out/truth`` holds, one page a frame, ``mask.tif`` (uint8, 1 where a pixel got more than 2
    sigma of its noise), ``deposit.tif`` (float32, what spots added in that sigma) and ``clean.tif`` (uint16, the same
    image and noise without spots), and ``simulation.json``. All frames show one scene, a packed column with rods and
    grains; noise and spots differ. The same arguments give the same data, whatever the workers.

    Parameters
    ----------
    out : path
        Folder to make. It appears when whole, else nothing is left.
    draw : callable, optional
        Called with the folder before it appears, to put pictures into it.
    seed : int, optional
        Of all random numbers.
    height, width : int, optional
        Pixels, at least 32.
    n_frames : int, optional
        Images to write.
    open_beam_counts : float, optional
        Counts above the dark image where the open beam is brightest.
    open_beam_neutrons : float, optional
        Neutrons detected there in each pixel; with the blur they set the noise of the beam.
    photons_per_count : float, optional
        Photons detected for one count; they set the noise of the light.
    read_noise_counts : float, optional
        Standard deviation of the camera's noise.
    blur_pixels : float, optional
        Standard deviation of the scintillator's blur.
    spots : float, optional
        Fraction of the pixels that the mask marks, about.
    exponent : float, optional
        The number of spots falls as this power of their peak. With the default a threshold of 1000 counts on the
        distance from the 3 x 3 median has precision .998 and recall .08, as on the lecture's radiograph.
    dark_frames : str, optional
        Folder or file of measured dark frames: their spots are added, at random places, and none are drawn.
    workers : int, optional
        Frames at a time; default one a core.
    overwrite : bool, optional
        Whether an earlier simulation of that name is replaced.

    Returns
    -------
    dict
        What ``truth/simulation.json`` holds, ``n_clipped`` (values that 16 bits don't hold) among it.

    Raises
    ------
    UserError
        Where ``out`` exists or can't be written, or an argument is out of range.
    """
    parameters = {
        name: value for name, value in locals().items() if name not in ("out", "draw", "workers", "overwrite")
    }
    _check_arguments({**parameters, "workers": workers})
    setup = set_up(**{name: value for name, value in parameters.items() if name != "n_frames"})
    with appear_when_whole(read_path(out, who="simulate_radiograph"), overwrite=overwrite) as folder:
        summary = {
            **parameters,
            **_write_frames(folder, setup, n_frames=n_frames, workers=workers),
            **_write_references(folder, setup),
        }
        write_summary(folder, summary)
        if draw is not None:
            draw(folder)
    return summary


def make_radiograph_sample(shape: Sequence[int], *, seed: int, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return one radiograph with spots and their mask, in memory, for training.

    Parameters
    ----------
    shape : (Y, X)
        Pixels, at least 32 each. The scene scales with the shorter side: for samples with structures as large as those
        of a camera's image, draw one of its size and cut.
    seed : int
        Of all random numbers: each seed has a scene of its own.
    **options
        As those of `make_radiograph_frame`.

    Returns
    -------
    image : (Y, X) ndarray of uint16
    mask : (Y, X) ndarray of uint8
        1 where there is a spot.
    """
    frame = make_radiograph_frame(shape, seed=seed, **options)
    return frame.image, frame.mask


def make_radiograph_frame(shape: Sequence[int], *, seed: int, frame: int = 0, **options: Any) -> Frame:
    """Return one radiograph with all of its truth, in memory.

    Parameters
    ----------
    shape : (Y, X)
        Pixels, at least 32 each.
    seed : int
        Of all random numbers.
    frame : int, optional
        Which of the images of the seed's scene, from 0; noise and spots differ.
    **options
        As those of `simulate_radiograph`, which writes the same pixels.

    Returns
    -------
    Frame
        ``image``, ``mask``, ``deposit`` (what spots added, in sigma of the noise), ``clean`` (without spots),
        ``n_clipped``.
    """
    given = fill_options(
        simulate_radiograph, options, left_out=("n_frames", "workers", "overwrite", "seed", "height", "width")
    )
    height, width = read_shape(shape, n_sides=(2,))
    given |= {"seed": seed, "height": height, "width": width}
    _check_arguments({**given, "n_frames": 1, "workers": None})
    check_options(make_radiograph_frame, frame=frame)
    check_limits({"frame": frame}, {"frame": (0, 99_999)})
    setup = set_up(**given)
    return expose_frame(setup.sample, frame, setup=setup)


def _check_arguments(given: dict[str, Any]) -> None:
    """Refuse what can't be simulated, each with the value, the limits and what to do."""
    limits = {
        "seed": (0, math.inf),
        "height": (32, 65_536),
        "width": (32, 65_536),
        "n_frames": (1, 100_000),
        "open_beam_counts": (1, 60_000),
        "open_beam_neutrons": (1, 1e6),
        "photons_per_count": (0.01, 1000),
        "read_noise_counts": (0.1, 1000),
        "blur_pixels": (0, 10),
        "spots": (0, 0.1),
        "exponent": (1.01, 5),
        "workers": (1, 1024),
    }
    check_limits(given, limits)
    check_options(simulate_radiograph, **given)


def _expose_in_order(setup: Setup, *, n_frames: int, workers: int | None) -> Iterator[Frame]:
    """Simulate frames side by side and give them in order, no more in memory than there are workers and one."""
    workers = min(workers or count_cores(), n_frames)
    waiting: deque[Any] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for index in range(n_frames):
            waiting.append(pool.submit(expose_frame, setup.sample, index, setup=setup))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _write_frames(folder: Path, setup: Setup, *, n_frames: int, workers: int | None) -> dict[str, Any]:
    """Write images and truth frame by frame; return what was counted."""
    from tifffile import TiffWriter, imwrite

    (folder / "images").mkdir()
    (folder / "truth").mkdir()
    counted = {"n_marked": 0, "n_clipped": 0}
    height, width = setup.sample.sigma.shape
    big = n_frames * height * width * 4 > 2**31
    with (
        TiffWriter(folder / "truth" / "mask.tif", bigtiff=big) as masks,
        TiffWriter(folder / "truth" / "deposit.tif", bigtiff=big) as deposits,
        TiffWriter(folder / "truth" / "clean.tif", bigtiff=big) as cleans,
    ):
        for i, frame in enumerate(_expose_in_order(setup, n_frames=n_frames, workers=workers)):
            mask = frame.mask
            imwrite(folder / "images" / f"image_{i:05d}.tif", frame.image)
            for writer, page in ((masks, mask), (deposits, frame.deposit), (cleans, frame.clean)):
                writer.write(page, contiguous=True)
            counted["n_marked"] += int(mask.sum(dtype=np.int64))
            counted["n_clipped"] += frame.n_clipped
    return counted


def _write_references(folder: Path, setup: Setup) -> dict[str, Any]:
    """Write one image of the open beam and one without beam; return how many of its values were clipped."""
    clipped = {
        "open_beam": _write_reference(folder / "open_beam.tif", OPEN_BEAM_STREAM, setup.open_beam, setup),
        "dark": _write_reference(folder / "dark.tif", DARK_STREAM, np.zeros_like(setup.open_beam), setup),
    }
    return {f"n_clipped_{name}": number for name, number in clipped.items()}


def _write_reference(path: Path, stream: int, neutrons: np.ndarray, setup: Setup) -> int:
    from tifffile import imwrite

    frame = expose_frame(plan_beam(stream, neutrons, setup.camera), 0, setup=setup)
    imwrite(path, frame.image)
    return frame.n_clipped
