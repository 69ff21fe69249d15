"""Transfer learning: a training that begins with what another one has learnt."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from niseg_gpu.errors import UserError
from niseg_gpu.unet.config import UNetConfig
from niseg_gpu.unet.folder import load_unet, read_about
from niseg_gpu.unet.model import init_weights

ALIKE = ("spatial_dims", "base_depth", "levels", "block", "attention", "norm", "output")


def take_weights(
    path: str | Path, config: UNetConfig, *, channels: tuple[str, ...], seed: int
) -> tuple[tuple[Any, Any], str, str]:
    """Read the weights of a model for the training of another one.

    Parameters
    ----------
    path : str or Path
        Folder of a model.
    config : UNetConfig
        Of the network that is to be trained. It may have other classes: its last layer then begins anew.
    channels : tuple of str
        What it is shown. Values are brought to one scale by the new images' statistics.
    seed : int
        Of a last layer that begins anew.

    Returns
    -------
    (params, state) : tuple of nested dict of ndarray
    sum : str
        SHA-256 over the weights' files.
    said : str
        What was taken, in words.

    Raises
    ------
    UserError
        No model, or one of another network or of other channels.
    """
    model = load_unet(path)
    for name in ALIKE:
        theirs, ours = getattr(model.config, name), getattr(config, name)
        if theirs != ours:
            raise UserError(f"start_from {path} is a unet with {name} {theirs}, not {ours}; train one that is alike")
    if model.normalisation.channels != channels:
        theirs, ours = (", ".join(names) for names in (model.normalisation.channels, channels))
        raise UserError(f"start_from {path} was shown the channels {theirs}, not {ours}; show the same")
    params, said = dict(model.params), f"began with the weights of {path}"
    if model.config.out_classes != config.out_classes:
        params["head"] = init_weights(config, seed=seed)[0]["head"]
        said += f", but for the last layer: {config.out_classes} classes instead of {model.config.out_classes}"
    files = json.dumps(sorted(read_about(path)["files"].items()))
    return (params, model.state), hashlib.sha256(files.encode()).hexdigest(), said
