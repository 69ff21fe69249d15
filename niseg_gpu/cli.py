"""The command line: arguments in, one call, one exit status out.

Exit status: 0 done; 2 the user must mend something (one line); 1 a fault of ours; 130 interrupted; 143 told to end
by SIGTERM, as batch systems do; 141 nobody reads the output any more, as behind ``| head`` (what a shell shows for
SIGPIPE, and git and the coreutils end with).
"""

from __future__ import annotations

import argparse
import atexit
import errno
import gc
import logging
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from niseg_gpu.cli_bench import add_bench
from niseg_gpu.cli_knn import add_knn
from niseg_gpu.cli_options import add_command, add_fields, given_fields, say
from niseg_gpu.cli_output import (
    NOBODY_READS,
    drop_unwritten,
    flush_output,
    is_output_closed,
    open_missing_streams,
    show_any_name,
    stand_in_for_home,
)
from niseg_gpu.cli_plan import add_plan
from niseg_gpu.cli_signals import INTERRUPTED, TERMINATED, Terminated, ending_on_request
from niseg_gpu.cli_simulate import add_simulate
from niseg_gpu.cli_unet import add_unet
from niseg_gpu.errors import UserError, notes_of, suggest
from niseg_gpu.pages import share_store

MANY_OBJECTS = 250_000  # between two searches for cycles: the libraries make 200,000 while they are imported
EPILOG = "Every command explains itself with --help."


class Parser(argparse.ArgumentParser):
    """Complains in one line, with the nearest right word."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} ({self.prog} --help lists what is allowed)")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            word = unknown[0].partition("=")[0]
            raise UserError(f"{self.prog} has no argument {word!r}{suggest(word, self._option_string_actions)}")
        return known, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            what = action.metavar or "/".join(action.option_strings)
            raise UserError(f"{self.prog} has no {what} {value!r}{suggest(str(value), map(str, action.choices))}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status."""
    logging.captureWarnings(True)
    gc.set_threshold(MANY_OBJECTS)
    atexit.register(gc.freeze)  # or Python takes down object after object what the system frees at once: most of 1 s
    complaint, options = "", None
    open_missing_streams()
    stand_in_for_home()
    show_any_name()
    try:
        try:
            options = build_parser().parse_args(argv)
            _set_up_logging(options)
            if getattr(options, "works_in_blocks", False):
                share_store()
            with ending_on_request():
                status = options.run(options) or 0
        except SystemExit as ended:  # of --help and --version
            status = int(ended.code or 0)
        flush_output()
    except UserError as error:
        complaint, status = _with_notes(str(error), error), 2
    except MemoryError as error:
        complaint = f"not enough memory; give smaller data or fewer workers, or free some ({error})"
        complaint, status = _with_notes(complaint, error), 2
    except KeyboardInterrupt as error:
        advice = getattr(options, "when_interrupted", "run the same command again")
        ended = isinstance(error, Terminated)
        what, status = ("ended by SIGTERM", TERMINATED) if ended else ("interrupted", INTERRUPTED)
        kept = _with_notes(what, error)
        complaint = kept if kept != what else f"{what}; nothing was left under a final name, {advice}"
    except Exception as error:
        if isinstance(error, BrokenPipeError) and is_output_closed():
            status = NOBODY_READS
        else:
            logging.getLogger("niseg_gpu").debug("the traceback of the fault", exc_info=True)
            complaint, status = _explain(error)
            complaint = _with_notes(complaint, error)
    if complaint:
        with suppress(OSError):
            print("niseg-gpu:", " ".join(complaint.split()), file=sys.stderr)
    drop_unwritten()
    sys.exit(status)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; the step commands come from the table of steps."""
    from niseg_gpu.pipeline.evaluate import evaluate_files
    from niseg_gpu.pipeline.parameters import add_keywords, summary_of
    from niseg_gpu.pipeline.steps import OPS

    parser = Parser(prog="niseg-gpu", description="Segment neutron images at full size, on CPU or GPU.", epilog=EPILOG)
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    run = add_command(commands, "run", _run, "Run a pipeline into a folder of results.")
    run.add_argument("pipeline", metavar="PIPELINE", help="YAML or TOML file")
    _add_run_options(run)
    run.set_defaults(works_in_blocks=True)
    run.add_argument("--resume", action="store_true", help="go on where a killed run of the same name was")
    check = add_command(commands, "check", _check, "Check a pipeline: everything that can be known without computing.")
    check.add_argument("pipeline", metavar="PIPELINE", help="YAML or TOML file")
    _add_run_options(check)
    add_plan(commands, add_options=_add_run_options, read=_read)

    demo = add_command(commands, "demo", _demo, "Simulate a time-of-flight run and segment it.")
    demo.set_defaults(works_in_blocks=True)
    demo.add_argument("--out", default="niseg-demo", help="folder to make (default: niseg-demo)")
    demo.add_argument(
        "--size", choices=("small", "full"), default="small", help="small: 256x256, full: 512x512 x 916 bins"
    )
    demo.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto")
    demo.add_argument("--kernels", choices=("auto", "library", "own"), default="auto", help="see compute.kernels")
    demo.add_argument("--overwrite", action="store_true", help="replace an earlier demo of the same name")

    evaluate = add_command(commands, "evaluate", _evaluate, "Compare a mask, scores or a label map with the truth.")
    evaluate.add_argument("predicted", metavar="PREDICTED", help="mask, scores or labels to judge")
    evaluate.add_argument("truth", metavar="TRUTH", help="true mask or labels, of the same shape")
    add_keywords(evaluate, evaluate_files)

    info = add_command(commands, "info", _info, "Show devices, libraries and which of them each step would use.")
    info.add_argument("--kernels", choices=("auto", "library", "own"), default="auto", help="see compute.kernels")
    info.add_argument("--json", action="store_true", help="for programs to read")

    add_bench(commands)
    add_simulate(commands)
    add_knn(commands)
    add_unet(commands)
    for name in OPS:
        _add_step(commands, name, summary_of(name))
    return parser


def _with_notes(complaint: str, error: BaseException) -> str:
    """The complaint, with what the error was told to add."""
    return "; ".join([complaint, *notes_of(error)])


def _explain(error: Exception) -> tuple[str, int]:
    """Complaint and status: what the machine has no more of is for the user to mend, all else a fault of ours."""
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return f"not enough memory; give smaller data or fewer workers, or free some ({error})", 2
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        where = error.filename or "the output, or for a temporary file"
        return f"no room for {where} ({error.strerror}); free some, or write elsewhere", 2
    told = f"{type(error).__name__}: {str(error)[:300]}"
    if "can't start new thread" in told:
        return f"no more threads may be started ({told}); raise the limits of memory or of processes", 2
    return f"a fault of ours: {told}; please report it with the traceback that --verbose shows", 1


def _version() -> str:
    import importlib.metadata

    return f"niseg-gpu {importlib.metadata.version('niseg-gpu')}"


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), help="overrides compute.device")
    parser.add_argument("--kernels", choices=("auto", "library", "own"), help="overrides compute.kernels")
    parser.add_argument(
        "--cluster", metavar="WHERE", help="overrides compute.cluster: gpus, tcp://HOST:PORT or a .json"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override, such as kmeans.n_clusters=4 or input.path=run43/",
    )


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    _add_overrides(parser)
    parser.add_argument("--out", help="overrides output.path")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier result of the same name")


def _add_step(commands: Any, step: str, text: str) -> None:
    from niseg_gpu.pipeline.parameters import parameters_of
    from niseg_gpu.pipeline.parse import Compute, Input
    from niseg_gpu.pipeline.steps import OPS

    parser = add_command(commands, step.replace("_", "-"), _step, text)
    parser.set_defaults(step=step, works_in_blocks=True)
    parser.add_argument("input", metavar="IN", help="folder, glob or file to read")
    parser.add_argument("output", metavar="OUT", help="file to write: .zarr, .tif, .h5 or .npy")
    add_fields(parser.add_argument_group("parameters"), parameters_of(step))
    reading = parser.add_argument_group("reading and computing")
    add_fields(reading, Input, leave_out=("path",))
    add_fields(reading, Compute)
    parser.add_argument("--overwrite", action="store_true", help="replace OUT where it exists")
    if OPS[step].mask:
        parser.add_argument("--mask", metavar="FILE", help="also write the mask of spots")
    if OPS[step].apply is None:
        parser.add_argument("--spectra", metavar="FILE.csv", help="also write the mean spectrum of each cluster")


def _set_up_logging(options: argparse.Namespace) -> None:
    level = logging.DEBUG if options.verbose else logging.ERROR if options.quiet else logging.WARNING
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("niseg-gpu: %(message)s"))
    handler.setLevel(level)
    if not options.verbose:  # what the libraries log of a broken file is in our one line
        logging.getLogger().addHandler(logging.NullHandler())
    logger = logging.getLogger("niseg_gpu")
    logger.handlers = [handler]
    logger.setLevel(logging.DEBUG)
    logger.propagate = False


def _read(options: argparse.Namespace) -> Any:
    from niseg_gpu.pipeline.parse import read_pipeline

    overrides = list(options.set)
    for name in ("device", "kernels", "cluster"):
        value = getattr(options, name)
        if value is not None:  # a file named here starts from where we are, not from the pipeline's folder
            overrides.append(_override(f"compute.{name}", Path(value).absolute() if value.endswith(".json") else value))
    if options.out is not None:
        overrides.append(_override("output.path", Path(options.out).absolute() if options.out.strip() else ""))
    return read_pipeline(options.pipeline, overrides=overrides)


def _override(key: str, text: object) -> str:
    """An override that YAML reads as the text it is: a name of a file may hold a colon, or a # after a space."""
    import json

    return f"{key}={json.dumps(str(text))}"


def _run(options: argparse.Namespace) -> None:
    from niseg_gpu.pipeline.run import run_pipeline

    out = run_pipeline(_read(options), overwrite=options.overwrite, resume=options.resume, quiet=options.quiet)
    say(options, summarize(out))


def summarize(out: Path) -> str:
    """Say in a few lines how a run ended and where its report is."""
    import json

    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    gigabytes = record["input"]["bytes"] / 1e9
    lines = [
        f"{gigabytes:.3g} GB in {record['seconds']:.3g} s on {record['device']['name']} "
        f"({record['device']['hardware']}), "
        f"peak memory {record['peak_memory_gb']:.3g} GB"
    ]
    if not record["device"]["reason"].startswith(("asked", "a usable")):
        lines.append(record["device"]["reason"])
    lines += record["findings"]
    lines.append(f"report: {out / 'report.html'}")
    return "\n".join(lines)


def _check(options: argparse.Namespace) -> None:
    from niseg_gpu.io.folders import check_folder
    from niseg_gpu.pipeline.results import SIGN
    from niseg_gpu.pipeline.run import check_steps, open_session
    from niseg_gpu.pipeline.workers import tell_workers

    pipeline = _read(options)
    check_folder(Path(pipeline.output.path), overwrite=options.overwrite, sign=SIGN)
    session = open_session(pipeline, reading=False)
    sample = session.inputs.sample
    lines = [f"{'input':<18} {_axes(sample.dims, sample.shape)} {sample.dtype}, {sample.nbytes / 1e9:.3g} GB"]
    for stage in check_steps(session):
        lines.append(
            f"{stage.name:<18} {_axes(stage.info.dims, stage.info.shape)} {stage.info.dtype} {stage.info.quantity}"
        )
    lines += tell_workers(pipeline.compute)
    lines.append(f"device {session.engine.backend.name} ({session.reason}), {session.workers} workers; all is well")
    say(options, "\n".join(lines))


def _axes(dims: Sequence[str], shape: Sequence[int]) -> str:
    return " x ".join(f"{dim} {n}" for dim, n in zip(dims, shape, strict=True))


def _demo(options: argparse.Namespace) -> None:
    from niseg_gpu.pipeline.demo import run_demo

    out = run_demo(
        Path(options.out),
        size=options.size,
        device=options.device,
        kernels=options.kernels,
        overwrite=options.overwrite,
        quiet=options.quiet,
    )
    say(options, summarize(out))


def _info(options: argparse.Namespace) -> None:
    import json

    from niseg_gpu.pipeline.info import describe_machine, format_machine

    machine = describe_machine(kernels=options.kernels)
    print(json.dumps(machine, indent=2) if options.json else format_machine(machine))


def _evaluate(options: argparse.Namespace) -> None:
    from niseg_gpu.pipeline.evaluate import evaluate_files
    from niseg_gpu.pipeline.parameters import keywords_of

    named = {name: getattr(options, name) for name in keywords_of(evaluate_files)}
    say(options, "\n".join(evaluate_files(options.predicted, options.truth, **named)))


def _step(options: argparse.Namespace) -> None:
    from niseg_gpu.pipeline.parameters import parameters_of
    from niseg_gpu.pipeline.parse import Compute, Input, parse_pipeline
    from niseg_gpu.pipeline.transform import transform_file

    mapping = {
        "input": {"path": options.input, **given_fields(options, Input)},
        "steps": [{options.step: given_fields(options, parameters_of(options.step))}],
        "compute": given_fields(options, Compute),
    }
    extra = {name: getattr(options, name) for name in ("mask", "spectra") if getattr(options, name, None) is not None}
    written = transform_file(
        parse_pipeline(mapping), Path(options.output), overwrite=options.overwrite, quiet=options.quiet, **extra
    )
    for line in written:
        say(options, line)
