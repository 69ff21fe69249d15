"""The commands ``niseg-gpu knn train`` and ``niseg-gpu knn predict``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from niseg_gpu.cli_options import add_command, add_fields, given_fields, say


def add_knn(commands: Any) -> None:
    """Add the commands; their options come from the signatures of what they call."""
    knn = commands.add_parser("knn", help="Find spots by nearest neighbours: train a model, apply it.")
    kinds = knn.add_subparsers(metavar="ACTION", required=True)
    _add_train(kinds)
    _add_predict(kinds)


def _add_train(kinds: Any) -> None:
    from niseg_gpu.knn_model import fit_knn
    from niseg_gpu.pipeline.parameters import model_of
    from niseg_gpu.pipeline.parse import Compute, Input

    text = "Train a model of nearest neighbours from images and masks of their spots; normalize them first."
    train = add_command(kinds, "train", _train, text)
    train.add_argument("model", metavar="MODEL", help="file to write, .npz")
    train.add_argument(
        "--image", action="append", required=True, metavar="FILE", help="image or stack; may be given again"
    )
    train.add_argument(
        "--mask",
        action="append",
        required=True,
        metavar="FILE",
        help="its mask: 0 for background, one other value for spots",
    )
    add_fields(train.add_argument_group("parameters"), model_of(fit_knn, name="knn train"))
    reading = train.add_argument_group("reading and computing")
    add_fields(reading, Input, leave_out=("path", "open_beam", "dark", "tof", "bad_frames", "bad_values"))
    add_fields(reading, Compute, leave_out=("workers",))
    train.add_argument(
        "--picture", metavar="FILE", help=".png file: two features of the training images, and what the model decides"
    )
    train.add_argument("--overwrite", action="store_true", help="replace MODEL and FILE where they exist")


def _add_predict(kinds: Any) -> None:
    from niseg_gpu.pipeline.parse import Compute, Input

    predict = add_command(kinds, "predict", _predict, "Find the spots of an image or stack with a trained model.")
    predict.add_argument("input", metavar="IN", help="folder, glob or file to read")
    predict.add_argument("output", metavar="OUT", help="file to write: .zarr, .tif, .h5 or .npy; 1 for spots, else 0")
    predict.add_argument("--model", required=True, metavar="MODEL", help="file that niseg-gpu knn train wrote")
    predict.add_argument("--scores", action="store_true", help="write the spots' share of the votes instead, 0 to 1")
    predict.add_argument(
        "--approximate", action="store_true", help="look the answers up in a table instead of searching; two features"
    )
    reading = predict.add_argument_group("reading and computing")
    add_fields(reading, Input, leave_out=("path", "open_beam", "dark"))
    add_fields(reading, Compute)
    predict.add_argument("--overwrite", action="store_true", help="replace OUT where it exists")


def _train(options: argparse.Namespace) -> None:
    from niseg_gpu.knn_model import fit_knn
    from niseg_gpu.pipeline.classify import train_file
    from niseg_gpu.pipeline.parameters import check_model, model_of
    from niseg_gpu.pipeline.parse import Compute, Input

    model = model_of(fit_knn, name="knn train")
    given = given_fields(options, model)
    if isinstance(given.get("features"), str):
        given["features"] = [given["features"]]
    parameters = check_model(model, given, where="knn train").model_dump()
    reading = check_model(Input, {"path": options.image[0], **given_fields(options, Input)}, where="input")
    compute = check_model(Compute, given_fields(options, Compute), where="compute")
    lines = train_file(
        Path(options.model),
        images=options.image,
        masks=options.mask,
        **reading.model_dump(include={"dims", "unsigned"}),
        **compute.model_dump(include={"device"}),
        picture=Path(options.picture) if options.picture else None,
        overwrite=options.overwrite,
        **parameters,
    )
    say(options, "\n".join(lines))


def _predict(options: argparse.Namespace) -> None:
    from niseg_gpu.pipeline.classify import classify_file
    from niseg_gpu.pipeline.parameters import check_model
    from niseg_gpu.pipeline.parse import Compute, Input, Output, Pipeline

    reading = check_model(Input, {"path": options.input, **given_fields(options, Input)}, where="input")
    compute = check_model(Compute, given_fields(options, Compute), where="compute")
    assert isinstance(reading, Input) and isinstance(compute, Compute)
    lines = classify_file(
        Pipeline(reading, (), Output(), compute),
        Path(options.output),
        model=options.model,
        scores=options.scores,
        approximate=options.approximate,
        overwrite=options.overwrite,
        quiet=options.quiet,
    )
    say(options, "\n".join(lines))
