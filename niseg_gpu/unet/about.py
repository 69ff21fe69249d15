"""What is in a model's folder, for people and for programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from niseg_gpu.unet.folder import load_unet, read_about


def describe_unet(path: str | Path) -> dict[str, Any]:
    """Return what a model's folder says, and what follows from it, ready for JSON.

    Raises
    ------
    UserError
        A folder that is missing, none of a model, broken, or of a later version.
    """
    from niseg_gpu.unet.model import count_parameters

    about, model = read_about(path), load_unet(path)
    layers = count_parameters(model.config)
    follows = {"parameters": sum(layers.values()), "layers": layers, "grid": model.config.grid, "halo": model.halo}
    return {**about, "follows": {**follows, "reach": model.config.reach + model.normalisation.halo}}


def format_unet(about: dict[str, Any]) -> str:
    """The same in lines."""
    config, norm, follows = about["config"], about["normalisation"], about["follows"]
    kind = "images" if config["spatial_dims"] == 2 else "volumes"
    what = "spots or background" if config["out_classes"] == 1 else f"{config['out_classes']} classes"
    shape = f"{config['levels']} levels from {config['base_depth']} features, {config['block']} blocks"
    extras = [f"norm {config['norm']}"] * (config["norm"] != "none") + ["attention"] * config["attention"]
    extras += ["a ReLU for probability"] * (config["output"] == "relu")
    lines = [
        f"unet for {kind}: {what}; {', '.join([shape, *extras])}",
        f"{follows['parameters']:,} parameters; reaches {follows['reach']} pixels far, on a grid of {follows['grid']}",
        *(f"  {name:<26} {number:>10,}" for name, number in follows["layers"].items()),
        f"threshold {about['threshold']:g}",
    ]
    bow = ", then asinh" if norm["compress"] else ""
    for name, mean, scale in zip(norm["channels"], norm["means"], norm["scales"], strict=True):
        lines.append(f"channel {name}: ({name} - {mean:.6g}) / {scale:.6g}{bow}")
    for title in ("training", "metrics"):
        lines += [f"{title} {key}: {_short(value)}" for key, value in about[title].items()]
    return "\n".join([*lines, f"written by niseg-gpu {about['niseg_gpu']}"])


def _short(value: Any) -> str:
    text = _words(value)
    return text if len(text) <= 200 else f"{text[:200]} ..."


def _words(value: Any) -> str:
    """A value from JSON in words, ``-`` where there is none."""
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_words(item)}" for name, item in value.items()) or "-"
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value)) or "-"
    if value is None or isinstance(value, bool):
        return "-" if value is None else "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
