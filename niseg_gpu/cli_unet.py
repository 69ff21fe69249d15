"""The commands ``niseg-gpu unet train``, ``unet predict`` and ``unet info``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from niseg_gpu.cli_options import add_command, add_fields, given_fields, say

STEP = "segment_unet"
FLAGS = ("resume", "overwrite", "quiet")
PAIRS = {
    "image": "image or stack to learn from",
    "mask": "its mask: 0 for background, one other value for spots, or numbers of classes",
    "validation-image": "image to validate on",
    "validation-mask": "its mask",
}


def add_unet(commands: Any) -> None:
    """Add the commands; their options come from the signatures of what they call."""
    unet = commands.add_parser("unet", help="Segment by U-Nets: train a model, apply it, tell what is in it.")
    kinds = unet.add_subparsers(metavar="ACTION", required=True)
    _add_train(kinds)
    _add_predict(kinds)
    _add_info(kinds)


def _add_train(kinds: Any) -> None:
    train = add_command(kinds, "train", _train, "Train a U-Net on images with masks.")
    train.add_argument("model", metavar="MODEL", help="folder to write")
    train.add_argument("--settings", metavar="FILE", help="YAML file of the options below; those given here come first")
    for name, text in PAIRS.items():
        train.add_argument(f"--{name}", action="append", metavar="FILE", help=f"{text}; may be given again")
    leave_out = [*_lists(), *FLAGS]
    add_fields(train.add_argument_group("parameters"), _train_model(), leave_out=leave_out)
    train.add_argument("--resume", action="store_true", help="go on after the last checkpoint")
    train.set_defaults(when_interrupted="run the same command again with --resume, to go on after the last epoch")
    train.add_argument("--overwrite", action="store_true", help="replace MODEL and its training where they exist")


def _lists() -> list[str]:
    return [f"{name.replace('-', '_')}s" for name in PAIRS]


def _train_model() -> Any:
    from niseg_gpu.pipeline.learn import train_unet
    from niseg_gpu.pipeline.parameters import model_of

    return model_of(train_unet, name="unet train")


def _add_predict(kinds: Any) -> None:
    from niseg_gpu.pipeline.parameters import parameters_of
    from niseg_gpu.pipeline.parse import Compute, Input

    predict = add_command(kinds, "predict", _predict, "Segment an image, a stack or a volume with a trained U-Net.")
    predict.add_argument("input", metavar="IN", help="folder, glob or file to read")
    predict.add_argument("output", metavar="OUT", help="file to write: .zarr, .tif, .h5 or .npy")
    predict.add_argument("--model", required=True, metavar="MODEL", help="folder that niseg-gpu unet train wrote")
    add_fields(predict.add_argument_group("parameters"), parameters_of(STEP), leave_out=("model",))
    reading = predict.add_argument_group("reading and computing")
    add_fields(reading, Input, leave_out=("path", "open_beam", "dark"))
    add_fields(reading, Compute)
    predict.add_argument("--overwrite", action="store_true", help="replace OUT where it exists")


def _add_info(kinds: Any) -> None:
    info = add_command(kinds, "info", _info, "Tell what is in a model: network, normalisation, training, figures.")
    info.add_argument("model", metavar="MODEL", help="folder of a model")
    info.add_argument("--json", action="store_true", help="for programs to read")


def _train(options: argparse.Namespace) -> None:
    from niseg_gpu.pipeline.learn import train_unet
    from niseg_gpu.pipeline.parameters import check_model

    model = _train_model()
    given = _read_settings(options.settings) if options.settings else {}
    given |= given_fields(options, model)
    for name in PAIRS:
        files = getattr(options, name.replace("-", "_"))
        if files:
            given[f"{name.replace('-', '_')}s"] = files
    given |= {name: getattr(options, name) for name in FLAGS}
    for name in ("channels", "dims"):
        if isinstance(given.get(name), str):
            given[name] = [given[name]]
    values = check_model(model, given, where="unet train")
    parameters = {name: getattr(values, name) for name in type(values).model_fields}
    say(options, "\n".join(train_unet(Path(options.model), **parameters)))


def _read_settings(path: str) -> dict[str, Any]:
    """Options from a YAML file; relative names of images and masks start from its folder."""
    import yaml

    from niseg_gpu.errors import UserError

    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} can't be read as YAML: {' '.join(str(error).split())[:120]}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no options by name, such as epochs: 20")
    for name in _lists():
        if isinstance(found.get(name), list):
            found[name] = [str(Path(path).parent / str(file)) for file in found[name]]
    return found


def _predict(options: argparse.Namespace) -> None:
    from niseg_gpu.pipeline.parameters import parameters_of
    from niseg_gpu.pipeline.parse import Compute, Input, parse_pipeline
    from niseg_gpu.pipeline.transform import transform_file

    mapping = {
        "input": {"path": options.input, **given_fields(options, Input)},
        "steps": [{STEP: given_fields(options, parameters_of(STEP))}],
        "compute": given_fields(options, Compute),
    }
    lines = transform_file(
        parse_pipeline(mapping), Path(options.output), overwrite=options.overwrite, quiet=options.quiet
    )
    say(options, "\n".join(lines))


def _info(options: argparse.Namespace) -> None:
    import json

    from niseg_gpu.unet.about import describe_unet, format_unet

    about = describe_unet(options.model)
    print(json.dumps(about, indent=1) if options.json else format_unet(about))
