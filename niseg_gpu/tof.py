"""The time-of-flight axis: choosing bins, joining bins, wavelength."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from annotated_types import Ge, Gt

from niseg_gpu.backend import backend_of
from niseg_gpu.chunks import Work
from niseg_gpu.errors import UserError
from niseg_gpu.images import read_image
from niseg_gpu.options import check_options
from niseg_gpu.stack import StackInfo

PLANCK_OVER_NEUTRON_MASS = 3956.0340  # Å m / s, h / m_n from CODATA 2018


def wavelength_of(
    tof_s: np.ndarray, *, flight_path_m: Annotated[float, Gt(0)], time_offset_s: float = 0.0
) -> np.ndarray:
    """Return the wavelength in Å of neutrons that need ``tof_s + time_offset_s`` for the flight path."""
    check_options(wavelength_of, flight_path_m=flight_path_m, time_offset_s=time_offset_s)
    times = np.asarray(tof_s)
    if times.dtype.kind not in "iuf":
        raise UserError(f"wavelength_of got tof_s of type {times.dtype}; allowed: numbers, in s")
    return PLANCK_OVER_NEUTRON_MASS * (times + time_offset_s) / flight_path_m


def need_tof(info: StackInfo, step: str) -> np.ndarray:
    """Return the ToF coordinate, or say that `step` can't do without."""
    if "tof" not in info.dims:
        raise UserError(f"{step} needs a ToF axis, the stack has {info.dims}; name the axes with input.dims (--dims)")
    if "tof" not in info.coords:
        raise UserError(f"{step} needs the time of each bin; put the run's *_Spectra.txt beside its frames")
    return np.asarray(info.coords["tof"])


def select_tof(stack: Any, *, first: int, last: int) -> Any:
    """Keep the ToF bins `first` to `last`, inclusive, of an (N, ...) block."""
    stack = read_image(stack, who="select_tof", frames=False)
    if not all(isinstance(bin_, Integral) for bin_ in (first, last)) or not 0 <= first <= last < len(stack):
        raise UserError(
            f"select_tof got first {first} and last {last}; allowed: 0 <= first <= last <= {len(stack) - 1}"
        )
    return stack[first : last + 1, ...]


def fit_select_tof(
    before: Any,
    *,
    first: int | None = None,
    last: int | None = None,
    tof_s: tuple[float, float] | None = None,
    wavelength_angstrom: tuple[float, float] | None = None,
) -> dict[str, int]:
    """Resolve the choice to bin numbers.

    Parameters
    ----------
    first, last : int, optional
        Bins to keep, inclusive, from 0; the ends of the run by default.
    tof_s : (float, float), optional
        Keep the bins that begin in this range of ToF in s, ends included.
    wavelength_angstrom : (float, float), optional
        Keep the bins whose middle lies in this range of wavelength in Å, ends included.
    """
    info = before.info
    ways = [first is not None or last is not None, tof_s is not None, wavelength_angstrom is not None]
    if sum(ways) != 1:
        raise UserError("select_tof takes one of: first and last, tof_s, wavelength_angstrom")
    if "tof" not in info.dims:
        need_tof(info, "select_tof")
    n = info.sizes["tof"]
    if ways[0]:
        first, last = 0 if first is None else first, n - 1 if last is None else last
        if not 0 <= first <= last < n:
            raise UserError(f"select_tof got first {first} and last {last}; allowed: 0 <= first <= last <= {n - 1}")
        return {"first": first, "last": last}
    if tof_s is not None:
        axis, values, span, unit = "tof_s", need_tof(info, "select_tof"), tof_s, "s"
    else:
        axis, values, span, unit = "wavelength_angstrom", info.coords.get("wavelength"), wavelength_angstrom, "Å"
        if values is None:
            raise UserError("select_tof by wavelength_angstrom needs assign_wavelength before it")
    inside = np.flatnonzero((values >= span[0]) & (values <= span[1]))
    if not len(inside):
        raise UserError(
            f"select_tof got {axis} {list(span)}: no bin lies there; "
            f"the run has {values.min():g} to {values.max():g} {unit}"
        )
    return {"first": int(inside[0]), "last": int(inside[-1])}


def describe_select_tof(info: StackInfo, *, first: int, last: int) -> StackInfo:
    """The axes after `select_tof`."""
    keep = slice(first, last + 1)
    coords = {name: values[keep] for name, values in info.coords.items()}
    attrs: dict[str, Any] = {"shutter_windows": None, "shutter_counts": None}
    for name in ("files", "bin_triggers"):
        if len(info.attrs.get(name) or ()) == info.shape[0]:
            attrs[name] = list(info.attrs[name])[keep]
    return info.with_(shape=(last - first + 1, *info.shape[1:]), coords=coords, attrs=attrs)


class Group(NamedTuple):
    """Bins that make a new one: `first` to `last`, inclusive, the outer two by their shares, and when it begins."""

    first: int
    last: int
    of_first: float = 1.0
    of_last: float = 1.0
    start_s: float | None = None

    @property
    def weight(self) -> float:
        """How many old bins go into the new one."""
        whole = self.last - self.first - 1
        return self.of_first if self.first == self.last else self.of_first + self.of_last + whole


def rebin_tof(stack: Any, *, groups: Sequence[Group], mean: bool) -> Any:
    """Join ToF bins of an (N, ...) block.

    Parameters
    ----------
    stack : (N, ...) array
    groups : sequence of Group
        Bins that make each new one.
    mean : bool
        Divide by the sum of the weights: right for transmission, where counts are summed.

    Returns
    -------
    (len(groups), ...) float32 array
    """
    stack = read_image(stack, who="rebin_tof", frames=False)
    _check_groups(groups, n_bins=len(stack))
    xp = backend_of(stack).xp
    out = xp.empty((len(groups), *stack.shape[1:]), dtype=xp.float32)
    for i, group in enumerate(groups):
        first, last, of_first, of_last, _ = group
        if of_first == of_last == 1:
            total = xp.sum(stack[first : last + 1, ...], axis=0, dtype=xp.float32)
        else:
            total = xp.astype(stack[first, ...], xp.float32) * of_first
            if last > first:
                total = total + xp.astype(stack[last, ...], xp.float32) * of_last
            if last > first + 1:
                total = total + xp.sum(stack[first + 1 : last, ...], axis=0, dtype=xp.float32)
        out[i, ...] = total / group.weight if mean else total
    return out


def _check_groups(groups: Any, *, n_bins: int) -> None:
    """Refuse groups that are none, or of bins that are not there."""
    if not isinstance(groups, Sequence) or not groups or not all(isinstance(group, Group) for group in groups):
        raise UserError(
            "rebin_tof got groups that are no list of Group; give such, or apply_steps the step with a factor"
        )
    for group in groups:
        if not 0 <= group.first <= group.last < n_bins:
            raise UserError(
                f"rebin_tof got a group of the bins {group.first} to {group.last}; allowed: 0 to {n_bins - 1}"
            )


def fit_rebin_tof(
    before: Any,
    *,
    factor: Annotated[int, Ge(1)] | None = None,
    edges_s: Sequence[float] | None = None,
    how: Literal["auto", "sum", "mean"] = "auto",
) -> dict[str, Any]:
    """Resolve the new bins to groups of old ones.

    Parameters
    ----------
    factor : int, optional
        Join this many bins of a shutter window. What is left at its end goes into the joined bin before it if it is
        less than half of that many, else (or where there is none before it) it makes a narrower bin: no count is lost
        and none is taken for one of another time, before the shutter was closed. A few bins alone hold few counts, and
        the mean of a ratio of few counts is too large.
    edges_s : sequence of float, optional
        Edges of the new bins in s; an old bin cut by an edge is shared in proportion to time.
    how : {"auto", "sum", "mean"}
        ``auto`` sums counts and averages everything else (transmission, scaled spectra).
    """
    info = before.info
    if (factor is None) == (edges_s is None):
        raise UserError("rebin_tof takes one of: factor, edges_s")
    if "tof" not in info.dims:
        need_tof(info, "rebin_tof")
    n = info.sizes["tof"]
    if factor is not None:
        if not 1 <= factor <= n:
            raise UserError(f"rebin_tof got factor {factor}; allowed: 1 to the number of bins, {n}")
        ends = [*_borders(info), n]
        windows = zip([0, *ends], ends, strict=False)
        groups = [group for first, end in windows for group in _join(first, end, factor)]
    else:
        groups = _cut(need_tof(info, "rebin_tof"), np.asarray(info.coords["tof_width"]), edges_s)
    return {"groups": groups, "mean": how == "mean" or (how == "auto" and not info.quantity.startswith("counts"))}


def _join(first: int, end: int, factor: int) -> list[Group]:
    """Groups of `factor` bins from `first` to before `end`; less than half of one is added to the last."""
    starts = list(range(first, end, factor))
    if len(starts) > 1 and 2 * (end - starts[-1]) < factor:
        starts.pop()
    return [Group(a, b - 1) for a, b in zip(starts, [*starts[1:], end], strict=True)]


def _borders(info: StackInfo) -> list[int]:
    """The bins before which the shutter was closed: as its windows tell, or the time axis where it leaves a gap."""
    windows = info.attrs.get("shutter_windows") or [(0, 0)]
    whole = windows[-1][1] == info.sizes["tof"] - 1  # else they number the bins of another stack, which was cut
    found = {int(first) for first, _ in windows[1:]} if whole else set()
    if "tof" in info.coords and "tof_width" in info.coords:
        start, width = np.asarray(info.coords["tof"]), np.asarray(info.coords["tof_width"])
        gap = start[1:] - (start + width)[:-1]
        found.update((np.flatnonzero(gap > 0.5 * np.minimum(width[1:], width[:-1])) + 1).tolist())
    return sorted(found)


def _cut(start: np.ndarray, width: np.ndarray, edges_s: Sequence[float]) -> list[Group]:
    edges, end = np.asarray(edges_s, dtype=float), start + width
    if len(edges) < 2 or np.any(np.diff(edges) <= 0):
        raise UserError(f"rebin_tof got edges_s {list(edges_s)[:5]}; allowed: at least two, growing")
    groups = []
    for low, high in zip(edges, edges[1:], strict=False):
        share = (np.minimum(end, high) - np.maximum(start, low)) / width
        inside = np.flatnonzero(share > 1e-9)
        if not len(inside):
            raise UserError(
                f"rebin_tof: no data between the edges {low:g} and {high:g} s; "
                f"the run covers {start[0]:g} to {end[-1]:g} s"
            )
        share = np.where(share > 1 - 1e-9, 1.0, share)
        first, last = int(inside[0]), int(inside[-1])
        begin = max(float(low), float(start[first]))
        groups.append(Group(first, last, float(share[first]), float(share[last]), begin))
    return groups


def describe_rebin_tof(info: StackInfo, *, groups: Sequence[Group], mean: bool) -> StackInfo:
    """The axes after `rebin_tof`: a new bin begins where its first old one does and is as wide as all of them."""
    coords = {}
    if "tof" in info.coords:
        old = np.asarray(info.coords["tof"])
        coords["tof"] = np.array([old[g.first] if g.start_s is None else g.start_s for g in groups])
    for name, average in (("tof_width", False), ("wavelength", True)):
        if name in info.coords:
            values = np.asarray(info.coords[name])
            coords[name] = np.array([_gather(values, g, average) for g in groups])
    attrs: dict[str, Any] = {"shutter_windows": None, "shutter_counts": None}
    triggers = info.attrs.get("bin_triggers")
    if triggers is not None:
        attrs["bin_triggers"] = [_gather(np.asarray(triggers, dtype=float), g, True) for g in groups]
    if len(info.attrs.get("files") or ()) == info.shape[0]:
        attrs["files"] = [info.attrs["files"][g.first] for g in groups]
    return info.with_(shape=(len(groups), *info.shape[1:]), dtype=np.dtype(np.float32), coords=coords, attrs=attrs)


def memory_rebin_tof(info: Any, *, groups: Sequence[Group], **_: Any) -> Work:
    """What it holds: the result."""
    return Work(4 * len(groups) * math.prod(info.shape[1:]))


def _gather(values: np.ndarray, group: Group, average: bool) -> float:
    weights = np.ones(group.last - group.first + 1)
    weights[-1], weights[0] = group.of_last, group.of_first
    return float((weights * values[group.first : group.last + 1]).sum() / (weights.sum() if average else 1))


def assign_wavelength(stack: Any, *, flight_path_m: Annotated[float, Gt(0)], time_offset_s: float = 0.0) -> Any:
    """Tell the axes the wavelength of each bin; the data stay as they are.

    Parameters
    ----------
    stack : (N, ...) array
    flight_path_m : float
        Distance from source to detector in m.
    time_offset_s : float
        Added to the ToF of the files, in s: positive where the neutrons started before the trigger.
    """
    return stack


def describe_assign_wavelength(info: StackInfo, *, flight_path_m: float, time_offset_s: float = 0.0) -> StackInfo:
    """The axes with the wavelength in Å at the middle of each bin."""
    for name, value in (("flight_path_m", flight_path_m), ("time_offset_s", time_offset_s)):
        if not np.isfinite(value):
            raise UserError(f"assign_wavelength got {name} {value}; allowed: a finite number")
    middle = need_tof(info, "assign_wavelength") + 0.5 * np.asarray(info.coords.get("tof_width", 0.0))
    wavelength = wavelength_of(middle, flight_path_m=flight_path_m, time_offset_s=time_offset_s)
    if not wavelength.max() > 0:
        raise UserError(
            f"assign_wavelength got time_offset_s {time_offset_s:g}, but the last bin is at {middle.max():g} s, so all "
            "wavelengths would be negative; allowed: seconds that leave a time of flight"
        )
    return info.with_(coords={**info.coords, "wavelength": wavelength})
