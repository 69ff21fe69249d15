"""The commands ``niseg-gpu unet info`` and ``niseg-gpu unet predict``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from niseg_gpu.cli_options import add_command, add_fields, given_fields, say

STEP = "segment_unet"


def add_unet(commands: Any) -> None:
    """Add the commands; their options come from the signatures of what they call."""
    unet = commands.add_parser("unet", help="Segment by U-Nets: apply a model, tell what is in one.")
    kinds = unet.add_subparsers(metavar="ACTION", required=True)
    _add_predict(kinds)
    _add_info(kinds)


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
