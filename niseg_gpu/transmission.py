"""Transmission: open beam, dark current and dose, and the checks that they belong to the sample.

Every function takes one block (NumPy or CuPy) first and gives a block of the same kind.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from niseg_gpu.backend import backend_of
from niseg_gpu.chunks import Work
from niseg_gpu.errors import UserError
from niseg_gpu.findings import count
from niseg_gpu.images import read_image
from niseg_gpu.options import check_options
from niseg_gpu.stack import tell_bins_left_out, tell_source

SAME_BIN = 0.05  # of its width: one bin of 20 that were joined may be missing from one run; rounded times differ less


def normalize(sample: Any, *, open_beam: Any, dark: Any = None, dose: Any = None, minus_log: bool = False) -> Any:
    """Turn counts into transmission, (sample - dark) / (open beam - dark).

    Parameters
    ----------
    sample : (N, Y, X) or (Y, X) array
        Counts.
    open_beam, dark : (Y, X) or (N, Y, X) array
        Single or averaged frames, or one frame per ToF bin. `dark` may be None.
    dose : (N,) array or float, optional
        Open-beam dose over sample dose, per frame.
    minus_log : bool
        Give attenuation, -log(transmission), instead.

    Returns
    -------
    float32 array
        NaN, and counted, where the open beam holds nothing above the dark current (or, with `minus_log`, where
        the transmission is not positive).
    """
    check_options(normalize, minus_log=minus_log)
    sample, open_beam = (read_image(given, who="normalize") for given in (sample, open_beam))
    dark = None if dark is None else read_image(dark, who="normalize")
    for name, frames in (("open_beam", open_beam), ("dark", dark)):
        if frames is not None and frames.shape not in (sample.shape, sample.shape[-2:]):
            raise UserError(
                f"normalize: {name} has shape {frames.shape}, the sample {sample.shape}; allowed: the sample's, or one "
                "frame of it"
            )
    xp = backend_of(sample).xp
    result, beam = xp.astype(sample, xp.float32), xp.astype(open_beam, xp.float32)
    if dark is not None:
        result, beam = result - dark, beam - dark
    lit = beam > 0
    count("values without open beam (NaN)", ~lit, times=result.size // lit.size)
    result = xp.where(lit, result / xp.where(lit, beam, xp.asarray(1.0, dtype=xp.float32)), xp.nan)
    if dose is not None:
        dose = _read_dose(dose, sample.shape, xp=xp)
        result = result * (xp.reshape(dose, (-1, 1, 1)) if result.ndim == 3 else dose)
    if minus_log:
        positive = result > 0
        count("values of no positive transmission (NaN)", ~positive & ~xp.isnan(result))
        result = xp.where(positive, -xp.log(xp.where(positive, result, xp.asarray(1.0, dtype=xp.float32))), xp.nan)
    return xp.astype(result, xp.float32)


def _read_dose(dose: Any, shape: tuple[int, ...], *, xp: Any) -> Any:
    """The dose as an array of one value, or one a frame."""
    try:
        found = xp.asarray(dose, dtype=xp.float32)
    except (TypeError, ValueError):
        found = None
    if found is None or found.shape not in ((), (1,), shape[:-2]):
        got = type(dose).__name__ if found is None else f"{found.size} values"
        raise UserError(f"normalize got a dose of {got}; allowed: one number, or one a frame ({shape[:-2]})")
    return found


def fit_normalize(
    before: Any,
    *,
    dose_roi: tuple[int, int, int, int] | None = None,
    dose_by_shutter_counts: bool = False,
    minus_log: bool = False,
) -> dict[str, Any]:
    """Average the open beam and dark frames and measure the dose.

    The steps before this one have been applied to open beam and dark current too, as far as they have the axes.

    Parameters
    ----------
    dose_roi : (int, int, int, int), optional
        Region beside the sample, x0 y0 x1 y1 in pixels (x1 and y1 not included), whose mean tells the dose of a frame.
    dose_by_shutter_counts : bool
        Take the dose from the triggers of each shutter window instead.
    minus_log : bool
        Give attenuation, -log(transmission), instead of transmission.
    """
    info = before.info
    beam = _reference(before.open_beam, info)
    dark = None if before.dark is None else _reference(before.dark, info)
    dose = None
    if dose_roi is not None:
        region = _region(dose_roi, info)
        dose = _dose(beam, dark, region) / _dose(before.data, dark, region)
    elif dose_by_shutter_counts:
        dose = _trigger_ratio(info, before.open_beam.info)
    if dose is not None:
        dose = _check_dose(np.asarray(dose, dtype=np.float32), info)
    return {"open_beam": beam, "dark": dark, "dose": dose, "minus_log": minus_log}


def check_normalize(
    before: Any, *, dose_roi: Any = None, dose_by_shutter_counts: bool = False, minus_log: bool = False
) -> None:
    """Refuse what can't be right, before any data are read."""
    if before.open_beam is None:
        raise UserError("normalize needs an open beam; give input.open_beam (--open-beam): a file, folder or glob")
    if dose_roi is not None and dose_by_shutter_counts:
        raise UserError("normalize got both dose_roi and dose_by_shutter_counts; allowed: one of them")
    if not before.info.quantity.startswith("counts"):
        raise UserError(f"normalize works on counts, the stack holds {before.info.quantity}; let it come before")
    if dose_roi is not None:
        _region(dose_roi, before.info)
    if dose_by_shutter_counts:
        if before.info.quantity == "counts per trigger":
            raise UserError(
                "normalize got dose_by_shutter_counts, but overlap_correct has divided by the triggers (per_trigger); "
                "allowed: one of them"
            )
        _trigger_ratio(before.info, before.open_beam.info)
    for frames, what in ((before.open_beam, "open beam"), (before.dark, "dark current")):
        if frames is not None:
            _check_reference(frames.info, before.info, what)
            _check_counts(frames, what)


def describe_normalize(info: Any, *, minus_log: bool = False, **_: Any) -> Any:
    """The stack after `normalize`."""
    quantity = "attenuation" if minus_log else "transmission"
    return info.with_(dtype=np.dtype(np.float32), attrs={"quantity": quantity, "shutter_counts": None})


def memory_normalize(info: Any, *, open_beam: Any, dark: Any = None, minus_log: bool = False, **_: Any) -> Work:
    """What it holds, in whole-array calls: three arrays and masks; of references the same, one frame or every bin."""
    values, frame = math.prod(info.shape), math.prod(info.shape[-2:])
    binned = any(hasattr(frames, "stages") for frames in (open_beam, dark))
    of_beam = 5 if dark is None else 9  # beside it: where it is lit, and no zeros; less the dark current
    return Work((12 + minus_log) * values + (5 * values if binned else of_beam * frame))


def _check_reference(frames: Any, info: Any, what: str) -> None:
    where = tell_source(frames.attrs)
    for axis in ("y", "x"):
        if frames.sizes[axis] != info.sizes[axis]:
            got, need = (f"{s['y']}x{s['x']}" for s in (frames.sizes, info.sizes))
            raise UserError(
                f"the {what} {where} has frames of {got} pixels, the sample of {need}; give one of its size"
            )
    n_frames = frames.shape[0] if len(frames.dims) == 3 and "tof" not in frames.dims else 1
    if what == "open beam" and "tof" in info.dims and 1 < info.sizes["tof"] <= n_frames:  # it has lost its times
        raise UserError(
            f"the {what} {where} has {n_frames} frames without times, whose mean is no bin's of the sample's "
            f"{info.sizes['tof']}; put its *_Spectra.txt beside them, name the axes with dims: [tof, y, x], or give "
            "one averaged frame"
        )
    if "tof" not in frames.dims or "tof" not in info.dims:
        return
    if frames.sizes["tof"] != info.sizes["tof"]:
        raise UserError(
            f"the {what} {where} has {frames.sizes['tof']} ToF bins, the sample {info.sizes['tof']}; "
            "give a run with the same time bins"
        )
    if (frames.attrs.get("bins_left_out") or []) != (info.attrs.get("bins_left_out") or []):
        lacking, ours = map(tell_bins_left_out, (frames.attrs, info.attrs))
        raise UserError(
            f"the {what} {where} lacks {lacking}, the sample {ours}; let the same bins be left out of both, or "
            "open them with bad_frames: interpolate"
        )
    for name, what_of in (("tof", "begins at"), ("tof_width", "has a width of")):
        if name in frames.coords and name in info.coords:
            theirs, ours = np.asarray(frames.coords[name]), np.asarray(info.coords[name])
            off = np.abs(theirs - ours) / np.asarray(info.coords.get("tof_width", np.inf))
            if off.max() > SAME_BIN:
                i = int(off.argmax())
                raise UserError(
                    f"the {what} {where} has other time bins: bin {i} {what_of} {theirs[i]:g} s, the sample's "
                    f"{ours[i]:g} s; give a run with the same, whole"
                )


def _check_counts(frames: Any, what: str) -> None:
    """Refuse frames without ToF bins where a step has changed what the sample's counts are counts of."""
    for step in frames.left_out:
        summed = step.name == "rebin_tof" and step.parameters["how"] != "mean"
        divided = step.name == "overlap_correct" and step.parameters["per_trigger"]
        if summed or divided:
            did = "summed the sample's bins" if summed else "divided the sample by its triggers"
            raise UserError(
                f"the {what} {tell_source(frames.info.attrs)} has no ToF bins, and {step.name} has {did}; let "
                "normalize come before it, or give a run with the same time bins"
            )


def _reference(frames: Any, info: Any) -> Any:
    """The reference itself where it has the sample's ToF bins, else the mean of its frames."""
    return frames if "tof" in frames.info.dims and "tof" in info.dims else frames.average()


def _region(dose_roi: tuple[int, int, int, int], info: Any) -> dict[str, slice]:
    x0, y0, x1, y1 = dose_roi
    width, height = info.sizes["x"], info.sizes["y"]
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise UserError(
            f"dose_roi is {list(dose_roi)} (x0 y0 x1 y1), the frames are {width} wide and {height} high; "
            "allowed: 0 <= x0 < x1 <= width, 0 <= y0 < y1 <= height"
        )
    return {"y": slice(y0, y1), "x": slice(x0, x1)}


def _dose(frames: Any, dark: Any, region: dict[str, slice]) -> np.ndarray:
    means = [
        (stack.data if hasattr(stack, "stages") else stack).isel(region).mean(("y", "x"), dtype=np.float64).values
        for stack in (frames, dark)
        if stack is not None
    ]
    return means[0] - means[1] if dark is not None else means[0]


def _trigger_ratio(info: Any, beam: Any) -> np.ndarray:
    ours, theirs = (i.attrs.get("bin_triggers") for i in (info, beam))
    if ours is None or theirs is None:
        which = "sample" if ours is None else "open beam"
        raise UserError(
            f"normalize: the {which} has no *_ShutterCount.txt, so dose_by_shutter_counts can't be used; use dose_roi"
        )
    for which, triggers, of in (("sample", ours, info), ("open beam", theirs, beam)):
        n_bins = of.sizes.get("tof", 1)
        if len(triggers) != n_bins:  # cut by other means than a step
            raise UserError(
                f"normalize: the {which} has {n_bins} ToF bins, but triggers of {len(triggers)}; cut it with the step "
                "select_tof, or use dose_roi"
            )
    return np.asarray(theirs, dtype=float) / np.asarray(ours, dtype=float)


def _check_dose(dose: np.ndarray, info: Any) -> Any:
    if not np.all(np.isfinite(dose)) or np.any(dose <= 0):
        raise UserError("normalize: the dose is zero or negative in some frame; choose a dose_roi in the open beam")
    if dose.ndim == 0 or len(info.dims) == 2:
        return float(dose.reshape(-1)[0]) if dose.size == 1 else dose
    import xarray as xr

    return xr.DataArray(np.broadcast_to(dose, info.shape[:1]), dims=info.dims[:1])
