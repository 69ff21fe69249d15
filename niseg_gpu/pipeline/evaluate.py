"""Two files compared: what the command ``evaluate`` does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from niseg_gpu.errors import UserError, suggest
from niseg_gpu.evaluate.labels import LabelEvaluation, evaluate_labels, find_known, no_data_of
from niseg_gpu.evaluate.masks import evaluate_mask
from niseg_gpu.evaluate.pieces import check_shapes, map_pieces
from niseg_gpu.evaluate.scores import ScoreEvaluation, evaluate_scores
from niseg_gpu.evaluate.strengths import evaluate_strengths
from niseg_gpu.io.open import open_stack, split_inner
from niseg_gpu.io.record import program_version
from niseg_gpu.pipeline.evaluate_text import format_results
from niseg_gpu.pipeline.files import check_file_target, write_file

if TYPE_CHECKING:
    import xarray as xr

KINDS = ("auto", "mask", "scores", "labels")


@dataclass(frozen=True)
class Compared:
    """What came of a comparison: results by name, the mask in question and the threshold it was made with."""

    results: Mapping[str, Any]
    mask: xr.DataArray | None = None
    threshold: float | None = None


def evaluate_files(
    predicted: str,
    truth: str,
    *,
    kind: str = "auto",
    scores: str | None = None,
    strength: str | None = None,
    threshold: float | None = None,
    found_fraction: float = 0.0,
    no_data: int | None = None,
    same_numbers: bool = False,
    json: str | None = None,
    picture: str | None = None,
    frame: int = 0,
    curve: str | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Compare what was found with the truth, file with file.

    Parameters
    ----------
    predicted, truth : str
        Whatever `open_stack` reads, of one shape.
    kind : {"auto", "mask", "scores", "labels"}
        What PREDICTED holds: mask, scores or labels; auto looks into the files
    scores : str, optional
        File of the scores that the mask PREDICTED was made from, for AUC and curve
    strength : str, optional
        File of how strong the true spots are, such as truth/deposit.tif of a simulated radiograph: recall by strength
    threshold : float, optional
        Where scores become a mask; without it where F1 is largest
    found_fraction : float
        Share of a true spot that must be predicted for it to count as found; 0: any pixel
    no_data : int, optional
        Label of pixels to leave out; without it 255, or 65535 in 16-bit maps
    same_numbers : bool
        A label means the class of its number; else clusters are assigned to classes, but of maps by segment_unet
    json : str, optional
        .json file for programs to read
    picture : str, optional
        .png file for the hit map of a mask, or of what is wrong in labels
    frame : int
        Which frame of a stack the picture shows, from 0
    curve : str, optional
        .png file for precision, recall and F1 of scores against the threshold
    overwrite : bool
        Replace files that exist

    Returns
    -------
    list of str
        The lines to print.

    Raises
    ------
    UserError
        Files that can't be read, differ in shape or don't hold what `kind` says; files that exist.
    """
    ends = {"json": (json, ".json"), "picture": (picture, ".png"), "curve": (curve, ".png")}
    targets = {name: Path(path) for name, (path, _) in ends.items() if path}
    inputs = {"predicted": predicted, "truth": truth, "scores": scores, "strength": strength}
    inputs = {name: path for name, path in inputs.items() if path}
    for name, path in targets.items():
        check_file_target(path, ending=ends[name][1], overwrite=overwrite)
    read = {split_inner(path)[0].absolute() for path in inputs.values()}
    if len({path.absolute() for path in targets.values()} - read) < len(targets):
        raise UserError("one name for two files to write, or for one to read and one to write; give each its own")
    stacks = {name: open_stack(path) for name, path in inputs.items()}
    check_shapes({inputs[name]: stack.shape for name, stack in stacks.items()})
    kind = _choose_kind(kind, inputs, stacks)
    _refuse_misfits(
        kind,
        scores=scores,
        strength=strength,
        threshold=threshold,
        picture=picture,
        curve=curve,
        no_data=no_data,
        same_numbers=same_numbers or None,
    )
    if threshold is not None and threshold != threshold:
        raise UserError("--threshold is nan, which no score reaches; give a number, or leave it out")
    if kind == "labels":
        _check_integers(inputs, stacks)
        if no_data is None:
            _refuse_masks(inputs, stacks)
        quantity = stacks["predicted"].attrs.get("quantity")
        numbers = same_numbers or quantity == "classes"
        found = evaluate_labels(stacks["predicted"], stacks["truth"], no_data=no_data, same_numbers=numbers)
        if quantity == "labels" and not numbers:  # k-means numbers its clusters as they come
            found = replace(found, accuracy_by_number=None)
        compared = Compared({"labels": found})
    else:
        compared = _compare_mask(kind, inputs, stacks, threshold=threshold, found_fraction=found_fraction)
    contents = {}
    if picture and kind == "labels":
        pair = _take_frame([stacks["predicted"], stacks["truth"]], frame=frame, truth_path=truth)
        contents["picture"] = _picture_wrong(*pair, compared.results["labels"], no_data=no_data)
    elif picture:
        contents["picture"] = _picture_hits(compared.mask, stacks["truth"], frame=frame, truth_path=truth)
    if curve:
        contents["curve"] = _picture_curve(compared.results["scores"], truth_path=truth)
    if json:
        contents["json"] = _as_json(kind, inputs, compared)
    for name, path in targets.items():
        write_file(path, contents[name])
    return [*format_results(compared.results, threshold=compared.threshold), *(f"wrote {p}" for p in targets.values())]


def _compare_mask(
    kind: str,
    inputs: Mapping[str, str],
    stacks: Mapping[str, xr.DataArray],
    *,
    threshold: float | None,
    found_fraction: float,
) -> Compared:
    """Evaluate a mask, scores, or a mask and the scores it was made from."""
    predicted, truth = stacks["predicted"], stacks["truth"]
    for name in ("truth",) if kind == "scores" else ("truth", "predicted"):
        _check_mask(inputs[name], stacks[name])
    scored = predicted if kind == "scores" else stacks.get("scores")
    results: dict[str, Any] = {} if scored is None else {"scores": evaluate_scores(scored, truth)}
    if kind == "scores":
        threshold = results["scores"].best_threshold if threshold is None else threshold
        if threshold is None:
            return Compared(results)
        predicted = predicted >= threshold
    results["mask"] = evaluate_mask(predicted, truth, found_fraction=found_fraction)
    if "strength" in stacks:
        results["strengths"] = evaluate_strengths(predicted, truth, stacks["strength"])
    return Compared(results, predicted, threshold)


def _choose_kind(kind: str, inputs: Mapping[str, str], stacks: Mapping[str, xr.DataArray]) -> str:
    """Return what PREDICTED holds, from what the files say and hold."""
    if kind not in KINDS:
        raise UserError(f"kind is {kind!r}{suggest(kind, KINDS)}")
    if kind != "auto":
        return kind
    stack = stacks["predicted"]
    if stack.attrs.get("quantity") in ("labels", "classes") or split_inner(inputs["predicted"])[1] == "labels":
        return "labels"
    masklike = _is_masklike(_find_values(stack))
    if stack.dtype.kind == "f":
        return "mask" if masklike else "scores"
    return "mask" if masklike and _is_masklike(_find_values(stacks["truth"])) else "labels"


def _find_values(stack: xr.DataArray) -> list[Any]:
    """The distinct values of a stack where they are two at most, else three of them; NaN is a value too."""
    found = map_pieces(_find_three, stack=stack)
    return list(dict.fromkeys(value for values in found for value in values))[:3]


def _find_three(block: np.ndarray) -> list[Any]:
    values, rest = [], block.ravel()
    while rest.size and len(values) < 3:
        values.append(rest[0].item())
        rest = rest[rest != rest[0]]
    return values


def _is_masklike(values: list[Any]) -> bool:
    return len(values) == 1 and values[0] == values[0] or len(values) == 2 and 0 in values


def _check_mask(path: str, stack: xr.DataArray) -> None:
    values = _find_values(stack)
    if not _is_masklike(values):
        listed = ", ".join(f"{value:g}" for value in values)
        raise UserError(
            f"{path} holds the values {listed}{', ...' if len(values) > 2 else ''}; a mask holds 0 and one other: "
            "say --kind labels if these are labels"
        )


def _check_integers(inputs: Mapping[str, str], stacks: Mapping[str, xr.DataArray]) -> None:
    for name, stack in stacks.items():
        if stack.dtype.kind not in "biu":
            raise UserError(f"{inputs[name]} holds {stack.dtype} values; labels are integers: save them as such")


def _refuse_masks(inputs: Mapping[str, str], stacks: Mapping[str, xr.DataArray]) -> None:
    """Complain of maps of 0 and 255: more likely masks, of which all that they mark would be left out as no data."""
    for name, stack in stacks.items():
        value = no_data_of(stack.dtype)
        if set(_find_values(stack)) == {0, value}:
            raise UserError(
                f"{inputs[name]} holds 0 and {value} only, and as a label {value} means no data; say --no-data -1 if "
                f"it is a class, --no-data {value} if it is not, or compare masks"
            )


def _refuse_misfits(kind: str, **options: Any) -> None:
    """Complain of an option that means nothing for this kind of comparison."""
    of_masks = ["scores", "strength", "threshold", "curve"]
    useless = {
        "mask": ["threshold", "no_data", "same_numbers"],
        "scores": ["scores", "no_data", "same_numbers"],
        "labels": of_masks,
    }[kind]
    if kind == "mask" and not options["scores"]:
        useless.append("curve")
    for name in useless:
        if options[name] is not None:
            why = {"mask": "a mask", "scores": "scores itself", "labels": "labels"}[kind]
            needed = {
                "curve": "scores (--scores FILE)",
                "threshold": "scores",
                "no_data": "labels",
                "same_numbers": "labels",
            }
            what = needed.get(name, "a mask")
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} needs {what}, but PREDICTED holds {why}; leave it out, or choose another --kind")


def _picture_hits(mask: xr.DataArray | None, truth: xr.DataArray, *, frame: int, truth_path: str) -> bytes:
    from niseg_gpu.figures_evaluate import draw_hits

    if mask is None:
        raise UserError(f"{truth_path} has no positive pixel, so no threshold is best; give one with --threshold")
    return draw_hits(*_take_frame([mask, truth], frame=frame, truth_path=truth_path)).light


def _picture_wrong(predicted: np.ndarray, truth: np.ndarray, found: LabelEvaluation, *, no_data: int | None) -> bytes:
    from niseg_gpu.figures_evaluate import draw_wrong

    known = find_known(predicted, truth, no_data=no_data)
    return draw_wrong(predicted, truth, classes=found.classes, clusters=found.clusters, known=known).light


def _take_frame(stacks: list[xr.DataArray], *, frame: int, truth_path: str) -> list[np.ndarray]:
    """One frame of each stack."""
    shape = stacks[0].shape
    frames = int(np.prod(shape[:-2]))
    if not 0 <= frame < frames:
        raise UserError(f"frame is {frame}; allowed: 0 to {frames - 1}, for {truth_path} has {frames} frame(s)")
    at = tuple(slice(i, i + 1) for i in np.unravel_index(frame, shape[:-2]))
    return [stack[at].values.reshape(shape[-2:]) for stack in stacks]


def _picture_curve(scores: ScoreEvaluation, *, truth_path: str) -> bytes:
    from niseg_gpu.figures_evaluate import draw_threshold_curve

    if scores.best_threshold is None:
        raise UserError(f"{truth_path} has no positive pixel with a score, so there is no curve; leave --curve out")
    return draw_threshold_curve(scores.curve, best_threshold=scores.best_threshold, label="threshold on score").light


def _as_json(kind: str, inputs: Mapping[str, str], compared: Compared) -> bytes:
    record = {
        "version": program_version(),
        "kind": kind,
        "files": dict(inputs),
        "threshold": compared.threshold,
        **{name: result.as_mapping() for name, result in compared.results.items()},
    }
    return (dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode(errors="backslashreplace")
