"""The commands ``niseg-gpu simulate tof``, ``simulate radiograph`` and ``simulate roots``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from niseg_gpu.cli_options import add_command, say


def add_simulate(commands: Any) -> None:
    """Add the commands; their options come from the signatures of what they call."""
    simulate = commands.add_parser("simulate", help="Simulate data with known truth.")
    kinds = simulate.add_subparsers(metavar="KIND", required=True)
    _add_tof(kinds)
    _add_radiograph(kinds)
    _add_roots(kinds)


def _add_tof(kinds: Any) -> None:
    from niseg_gpu.pipeline.parameters import add_keywords
    from niseg_gpu.simulate.tof import simulate_tof

    parser = add_command(kinds, "tof", _simulate_tof, "Simulate a time-of-flight run with its open beam and its truth.")
    parser.add_argument("output", metavar="OUT", help="folder to make")
    add_keywords(parser, simulate_tof)


def _add_radiograph(kinds: Any) -> None:
    from niseg_gpu.pipeline.parameters import add_keywords
    from niseg_gpu.simulate.radiograph import simulate_radiograph

    text = "Simulate radiographs with spots, their open beam and dark image and the truth."
    parser = add_command(kinds, "radiograph", _simulate_radiograph, text)
    parser.add_argument("output", metavar="OUT", help="folder to make")
    add_keywords(parser, simulate_radiograph)


def _add_roots(kinds: Any) -> None:
    from niseg_gpu.pipeline.parameters import add_keywords
    from niseg_gpu.simulate.roots import simulate_roots

    text = "Simulate roots in soil, as a radiograph of a slab or a tomogram of a pot, with the truth."
    parser = add_command(kinds, "roots", _simulate_roots, text)
    parser.add_argument("output", metavar="OUT", help="folder to make")
    add_keywords(parser, simulate_roots)


def _simulate_tof(options: argparse.Namespace) -> None:
    from niseg_gpu.figures_simulate import picture_tof
    from niseg_gpu.simulate.tof import simulate_tof

    _simulate(options, simulate_tof, picture_tof)


def _simulate_radiograph(options: argparse.Namespace) -> None:
    from niseg_gpu.figures_simulate import picture_radiograph
    from niseg_gpu.simulate.radiograph import simulate_radiograph

    _simulate(options, simulate_radiograph, picture_radiograph)


def _simulate(options: argparse.Namespace, simulate: Any, picture: Any) -> None:
    """Call a generator with its options and put a picture of what it made beside it."""
    from niseg_gpu.pipeline.parameters import keywords_of

    out = Path(options.output)

    def draw(folder: Path) -> None:
        (folder / "preview.png").write_bytes(picture(folder).light)

    summary = simulate(out, draw, **{name: getattr(options, name) for name in keywords_of(simulate)})
    clipped = summary["n_clipped"]
    say(options, f"wrote {out}, see {out / 'preview.png'}" + (f"; {clipped} values clipped" if clipped else ""))


def _simulate_roots(options: argparse.Namespace) -> None:
    from niseg_gpu.figures_roots import draw_previews
    from niseg_gpu.pipeline.parameters import keywords_of
    from niseg_gpu.simulate.roots import simulate_roots

    named = {name: getattr(options, name) for name in keywords_of(simulate_roots)}
    simulate_roots(Path(options.output), draw_previews, **named)
    say(options, f"wrote {options.output}; pictures: {Path(options.output) / 'preview'}")
