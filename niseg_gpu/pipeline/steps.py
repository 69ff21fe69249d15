"""The table of steps: all the engine and the command line know of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from niseg_gpu import correct, knn, spots, tof, transmission
from niseg_gpu.chunks import Work
from niseg_gpu.kmeans import step as kmeans
from niseg_gpu.unet import segment


def _no_halo(**_: Any) -> int:
    return 0


def _no_grid(**_: Any) -> tuple[int, int]:
    return 1, 1


def _same(info: Any, **_: Any) -> Any:
    return info


def _hold_nothing(info: Any, **_: Any) -> Work:
    return Work(0)


class Op(NamedTuple):
    """One step.

    Attributes
    ----------
    apply : callable or None
        ``(block, **state) -> block``, or ``(block, mask)`` where `mask` is true. None: the step ends the pipeline.
    fit : callable or None
        ``(before, **parameters) -> state``. None: the parameters are the state. With ``**`` in its signature, the
        keywords of `apply` are parameters too.
    check : callable or None
        ``(before, **parameters)``; raises what can be known without reading data. None: `fit` reads none and does it.
    describe : callable
        ``(info, **state) -> info``: axes, dtype and quantity afterwards.
    halo : callable
        ``(**state) -> pixels`` in y and x that a block must see beyond its border, or a pair: frames, pixels.
    grid : callable
        ``(**state) -> (frames, pixels)``: multiples along the first axis, and in y and x, that blocks start at.
    whole : frozenset of str
        Axes that a block may not split; a stack without them has no use for the step.
    mask : bool
        Whether `apply` also gives a mask.
    plane : callable or None
        ``(**state) -> Plane`` in which it tells spots, for the report's picture, or None where there is none.
    memory : callable
        ``(info, backend=twin, **state) -> Work``: what it holds for a block of the shape and dtype in `info`; nothing
        where `apply` gives back a part of the block, which then stays in memory whole. Of a step that ends the
        pipeline, for the whole stack, beside its table.
    """

    apply: Callable[..., Any] | None
    fit: Callable[..., Any] | None = None
    check: Callable[..., None] | None = None
    describe: Callable[..., Any] = _same
    halo: Callable[..., int | tuple[int, int]] = _no_halo
    grid: Callable[..., tuple[int, int]] = _no_grid
    whole: frozenset[str] = frozenset()
    mask: bool = False
    plane: Callable[..., Any] | None = None
    memory: Callable[..., Work] = _hold_nothing


TOF = frozenset({"tof"})

OPS: dict[str, Op] = {
    "overlap_correct": Op(
        correct.overlap_correct,
        fit=correct.fit_overlap_correct,
        describe=correct.describe_overlap_correct,
        whole=TOF,
        memory=correct.memory_overlap_correct,
    ),
    "assign_wavelength": Op(tof.assign_wavelength, describe=tof.describe_assign_wavelength),
    "select_tof": Op(tof.select_tof, fit=tof.fit_select_tof, describe=tof.describe_select_tof, whole=TOF),
    "rebin_tof": Op(
        tof.rebin_tof,
        fit=tof.fit_rebin_tof,
        describe=tof.describe_rebin_tof,
        whole=TOF,
        memory=tof.memory_rebin_tof,
    ),
    "remove_spots": Op(
        spots.remove_spots,
        fit=spots.fit_remove_spots,
        check=spots.check_remove_spots,
        halo=spots.halo_remove_spots,
        mask=True,
        plane=spots.plane_remove_spots,
        memory=spots.memory_remove_spots,
    ),
    "detect_spots": Op(
        knn.detect_spots,
        fit=knn.fit_detect_spots,
        halo=knn.halo_detect_spots,
        mask=True,
        plane=knn.plane_detect_spots,
        memory=knn.memory_detect_spots,
    ),
    "segment_unet": Op(
        segment.segment_unet,
        fit=segment.fit_segment_unet,
        describe=segment.describe_segment_unet,
        halo=segment.halo_segment_unet,
        grid=segment.grid_segment_unet,
        memory=segment.memory_segment_unet,
    ),
    "normalize": Op(
        transmission.normalize,
        fit=transmission.fit_normalize,
        check=transmission.check_normalize,
        describe=transmission.describe_normalize,
        memory=transmission.memory_normalize,
    ),
    "scale_spectra": Op(
        correct.scale_spectra,
        check=correct.check_scale_spectra,
        describe=correct.describe_scale_spectra,
        whole=TOF,
        memory=correct.memory_scale_spectra,
    ),
    "kmeans": Op(None, fit=kmeans.fit_kmeans, check=kmeans.check_kmeans, whole=TOF, memory=kmeans.memory_kmeans),
}
