"""Checkpoints of a training: one an epoch, whole or not there, enough to go on as if nothing had happened."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from niseg_gpu.errors import UserError
from niseg_gpu.io.staged import staged
from niseg_gpu.unet.weights import BrokenWeights, read_weights, write_weights

log = logging.getLogger(__name__)

KEPT = 2  # the last, and the one before in case the disk lost it


def save_checkpoint(
    folder: Path, *, learner: Any, history: list[dict[str, Any]], best: tuple[int, Any], record: dict[str, Any]
) -> None:
    """Write the state after an epoch; older ones than the last two go."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"epoch-{len(history):05d}"
    with staged(folder / name) as partial:
        partial.mkdir()
        weights = {"learner": _leaves(learner), "best": _leaves(best[1])}
        files = write_weights(partial / "weights", weights)
        about = {"record": record, "history": history, "best_epoch": best[0], "files": files}
        (partial / "about.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    for old in _list(folder)[:-KEPT]:
        shutil.rmtree(old)


def load_checkpoint(folder: Path, *, like: Any, record: dict[str, Any]) -> tuple[Any, list[dict[str, Any]], Any] | None:
    """Read the last whole checkpoint: learner, history, and (best epoch, its weights); None where there is none yet.

    Raises
    ------
    UserError
        All are broken, or it is of a training with other images or parameters.
    """
    found = _list(folder)
    if not found:
        log.info("%s holds no checkpoint yet: the training begins", folder)
        return None
    for path in found[::-1]:
        try:
            about = json.loads((path / "about.json").read_text(encoding="utf-8"))
            files, history, best_epoch = about["files"], about["history"], int(about["best_epoch"])
            check_record(about["record"], record, folder)
            weights = read_weights(path / "weights", files)
        except (BrokenWeights, OSError, ValueError, KeyError, TypeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            log.warning("%s is a broken checkpoint (%s); it is left out", path, reason)
            continue
        best = _tree(weights["best"], (like.mean, like.state))
        return _tree(weights["learner"], like), history, (best_epoch, best)
    raise UserError(f"{folder} holds broken checkpoints only; train anew with --overwrite")


def check_record(found: dict[str, Any], record: dict[str, Any], folder: Path) -> None:
    """Raise a UserError where a folder is of another training than that of the record."""
    given = json.loads(json.dumps(record))
    for name in sorted(given.keys() | found.keys()):
        if given.get(name) != found.get(name):
            raise UserError(
                f"{folder} is of a training with {name} {found.get(name)}, not {given.get(name)}; "
                "resume with what it began with, or train anew with --overwrite"
            )


def _list(folder: Path) -> list[Path]:
    return sorted(folder.glob("epoch-*")) if folder.is_dir() else []


def _leaves(tree: Any) -> dict[str, np.ndarray]:
    return {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}


def _tree(leaves: dict[str, Any], like: Any) -> Any:
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[str(i)] for i in range(len(leaves))])
