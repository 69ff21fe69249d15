"""Checkpoints of a training: one an epoch, whole or not there, enough to go on as if nothing had happened."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from niseg_gpu.errors import UserError
from niseg_gpu.io.staged import staged

KEPT = 2  # the last, and the one before in case the disk lost it


def save_checkpoint(
    folder: Path, *, learner: Any, history: list[dict[str, Any]], best: tuple[int, Any], record: dict[str, Any]
) -> None:
    """Write the state after an epoch; older ones than the last two go."""
    import orbax.checkpoint as ocp

    folder.mkdir(parents=True, exist_ok=True)
    name = f"epoch-{len(history):05d}"
    with staged(folder / name) as partial:
        partial.mkdir()
        with ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(partial / "weights", {"learner": _leaves(learner), "best": _leaves(best[1])})
        about = {"record": record, "history": history, "best_epoch": best[0]}
        (partial / "about.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    for old in _list(folder)[:-KEPT]:
        shutil.rmtree(old)


def load_checkpoint(folder: Path, *, like: Any, record: dict[str, Any]) -> tuple[Any, list[dict[str, Any]], Any]:
    """Read the last checkpoint: learner, history, and (best epoch, its weights).

    Raises
    ------
    UserError
        None is there, or it is of a training with other images or parameters.
    """
    import orbax.checkpoint as ocp

    found = _list(folder)
    if not found:
        raise UserError(f"{folder} holds no checkpoint to go on from; train without --resume")
    about = json.loads((found[-1] / "about.json").read_text(encoding="utf-8"))
    given = json.loads(json.dumps(record))
    for name in sorted(given.keys() | about["record"].keys()):
        if given.get(name) != about["record"].get(name):
            raise UserError(
                f"{folder} is of a training with {name} {about['record'].get(name)}, not {given.get(name)}; "
                "resume with what it began with, or train anew with --overwrite"
            )
    with ocp.PyTreeCheckpointer() as checkpointer:
        weights = checkpointer.restore((found[-1] / "weights").absolute())
    best = _tree(weights["best"], (like.mean, like.state))
    return _tree(weights["learner"], like), about["history"], (int(about["best_epoch"]), best)


def _list(folder: Path) -> list[Path]:
    return sorted(folder.glob("epoch-*")) if folder.is_dir() else []


def _leaves(tree: Any) -> dict[str, np.ndarray]:
    return {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}


def _tree(leaves: dict[str, Any], like: Any) -> Any:
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[str(i)] for i in range(len(leaves))])
