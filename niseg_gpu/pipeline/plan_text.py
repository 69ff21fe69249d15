"""A plan for people."""

from __future__ import annotations

from collections.abc import Sequence

from niseg_gpu.pipeline.plan import Plan, Room, Seconds
from niseg_gpu.report import tell_bytes, tell_seconds


def format_plan(plan: Plan) -> str:
    """Return the lines of a plan."""
    table = [("step", "stack after it", "halo", "a block holds", "time")]
    for step in plan.steps:
        frames, pixels = step.halo
        reach = f"{frames} frames, {pixels} px" if frames else f"{pixels} px" if pixels else ""
        holds = tell_bytes(step.block_bytes) if step.block_bytes else ""
        ends = step is plan.steps[-1] and plan.seconds.iterations
        took = "" if step.seconds is None else f"{'up to' if ends else 'about'} {tell_seconds(step.seconds)}"
        table.append((step.name, f"{_axes(step.dims, step.shape)} {step.dtype} {step.quantity}", reach, holds, took))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip() for row in table]
    blocks, dims = plan.blocks, plan.steps[0].dims
    border = "" if blocks.shape == blocks.shape_read else f", read with its border {_sides(blocks.shape_read)}"
    lines += [
        "",
        f"device  {plan.device} ({plan.reason})",
        f"blocks  {blocks.number} of {_axes(dims, blocks.shape)}{border}; {blocks.workers} at once",
        *_tell_room("memory", plan.host),
        *(_tell_room("GPU", plan.gpu) if plan.gpu else []),
        *(f"        no figure {what}" for what in plan.unknown),
        f"disk    {tell_bytes(plan.disk.most)} at most, compressed about {tell_bytes(plan.disk.expected)}; "
        f"{tell_bytes(plan.disk.free)} free there",
        f"time    {_tell_time(plan.seconds)}",
    ]
    return "\n".join(lines)


def _axes(dims: Sequence[str], shape: Sequence[int]) -> str:
    return " x ".join(f"{dim} {n}" for dim, n in zip(dims, shape, strict=True))


def _sides(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _tell_room(name: str, room: Room) -> list[str]:
    """The peak, and the parts of each phase, largest first."""
    lines = [
        f"{name:<7} {tell_bytes(room.peak)} at most, of {tell_bytes(room.total)}; {tell_bytes(room.free)} are free"
    ]
    for phase, parts in room.phases.items():
        listed = sorted(((n, what) for what, n in parts.items() if n), reverse=True)
        told = ", ".join(f"{what} {tell_bytes(n)}" for n, what in listed)
        lines.append(f"        {phase}: {tell_bytes(sum(parts.values()))} ({told})")
    return lines


def _tell_time(seconds: Seconds) -> str:
    parts = [f"about {tell_seconds(seconds.before)} for doses and averaged frames"] if seconds.before else []
    parts.append(f"about {tell_seconds(seconds.blocks)} for the blocks")
    if seconds.iterations:
        parts.append(
            f"about {tell_seconds(seconds.last_start)} to start the last step and "
            f"{tell_seconds(seconds.last_iteration)} an iteration, {seconds.iterations} at most"
        )
    span = f"about {tell_seconds(seconds.least)}"
    if seconds.iterations > 1:
        span += f" to {tell_seconds(seconds.most)}"
    return f"{span}, and some seconds for start and report ({'; '.join(parts)})"
