"""Pixels to be clustered, in parts: in memory, or read anew each time they are needed.

A part is some pixels with their labels. All that is done to pixels is a function of one part, and runs over the parts
in threads; what it gives is exact, or belongs to single pixels, so that neither the cut nor the threads can be told
from the result.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

Region = tuple[slice, ...]
PART_BYTES = 32 * 2**20
LEAST_PART_BYTES = 2**23  # of less, threads cost more than they save
READERS = 2  # threads that read ahead


@dataclass
class Part:
    """Some pixels.

    Attributes
    ----------
    number : int
        Of the part.
    backend : Cpu or Gpu
        Where they are worked on.
    source : array
        What is cut: NumPy, CuPy, or anything whose slices have ``compute``, such as a Dask array.
    axis : int
        Of the features in `source`.
    region : tuple of slice
        Along the other axes.
    labels : (n,) int32 array
        On the device. Negative: no data, in no cluster.
    keep : bool
        Whether what is read stays in the memory of the device.
    hold : bool
        Whether it stays in the host's, where the device has one of its own.
    memory : dict
        What a pass leaves for the next one.
    """

    number: int
    backend: Any
    source: Any
    axis: int
    region: Region
    labels: Any
    keep: bool = False
    hold: bool = False
    block: Any = None
    held: Any = None
    memory: dict[str, Any] = field(default_factory=dict)

    @property
    def is_near(self) -> bool:
        """Whether the pixels can be had without reading."""
        return self.block is not None or not hasattr(self.source, "compute")

    def read(self) -> Any:
        """The pixels as (n, features) on the device."""
        if self.block is not None:
            return self.block
        block = self.source[(*self.region[: self.axis], slice(None), *self.region[self.axis :])]
        if hasattr(block, "compute"):
            block = block.compute(scheduler="synchronous")
        rows = self.backend.as_rows(block, axis=self.axis)
        if self.keep:
            self.block = rows
        elif self.hold:
            self.held = self.backend.pin_rows(rows)
        return rows


class Points(ABC):
    """Pixels of a map in parts, wherever those are.

    Parameters
    ----------
    regions : sequence of tuple of slice
        What the parts cover of the map.
    map_shape : tuple of int
    n_features : int
    """

    def __init__(self, regions: Sequence[Region], *, map_shape: tuple[int, ...], n_features: int) -> None:
        self.regions, self.map_shape, self.n_features = list(regions), map_shape, n_features

    @property
    @abstractmethod
    def sums_changes(self) -> bool:
        """Whether a pass can sum the pixels alone whose labels change."""

    @abstractmethod
    def each(self, task: Callable[..., Any], **options: Any) -> Any:
        """Run ``task(part, pixels, **arguments)`` on every part; see `LocalPoints.each`."""

    def gather(self, task: Callable[..., Any], *, dtype: Any, **options: Any) -> np.ndarray:
        """Put what a task gives of each pixel together, in the order of the map, flat."""
        return self.gather_rows(task, 1, dtype=dtype, **options)[0]

    def gather_rows(self, task: Callable[..., Any], n: int, *, dtype: Any, **options: Any) -> np.ndarray:
        """Put `n` values of each pixel together, (n, pixels); the task gives (n, pixels) or (pixels,)."""
        found = np.empty((n, *self.map_shape), dtype)

        def put(number: int, values: np.ndarray) -> None:
            place = (slice(None), *self.regions[number])
            found[place] = values.reshape(found[place].shape)

        self.each(task, into=put, **options)
        return found.reshape(n, -1)

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """Fetch pixels by their numbers in the flat map, (m, features) in their own dtype, on the host."""
        places = np.unravel_index(numbers, self.map_shape)
        wanted = []
        for region in self.regions:
            inside = np.all([(p >= s.start) & (p < s.stop) for p, s in zip(places, region, strict=True)], axis=0)
            wanted.append(np.flatnonzero(inside))
        only = [i for i, which in enumerate(wanted) if which.size]
        rows = {}
        for i in only:
            local = [p[wanted[i]] - s.start for p, s in zip(places, self.regions[i], strict=True)]
            rows[i] = np.ravel_multi_index(local, [s.stop - s.start for s in self.regions[i]])
        found = self.each(take_rows, only=only, rows=rows)
        out = np.empty((len(numbers), self.n_features), found[0].dtype)
        for i, values in zip(only, found, strict=True):
            out[wanted[i]] = values
        return out


def take_rows(part: Part, pixels: Any, *, rows: dict[int, np.ndarray]) -> np.ndarray:
    """Copy some rows of a part to the host."""
    return part.backend.to_host(pixels[part.backend.from_host(rows[part.number])])


class LocalPoints(Points):
    """Pixels worked on by threads of this process.

    Parameters
    ----------
    parts : sequence of Part
    map_shape : tuple of int
        Of the pixels' map, which the regions cut.
    n_features : int
    workers : int
        Threads; parts on a GPU are taken by one.
    """

    def __init__(self, parts: Sequence[Part], *, map_shape: tuple[int, ...], n_features: int, workers: int) -> None:
        super().__init__([part.region for part in parts], map_shape=map_shape, n_features=n_features)
        self.parts = {part.number: part for part in parts}
        self.workers = min(workers, self.backend.threads)

    @property
    def backend(self) -> Any:
        return next(iter(self.parts.values())).backend

    @property
    def sums_changes(self) -> bool:
        return self.backend.sums_changes

    def each(
        self,
        task: Callable[..., Any],
        *,
        merge: Callable[[Any, Any], Any] | None = None,
        into: Callable[[int, Any], None] | None = None,
        only: Sequence[int] | None = None,
        reading: bool = True,
        **arguments: Any,
    ) -> Any:
        """Run ``task(part, pixels, **arguments)`` on every part.

        Parameters
        ----------
        task : callable
        merge : callable, optional
            ``(one, other) -> both``; which parts come first must not matter.
        into : callable, optional
            ``(number, result)``, called once for each part as it is done; nothing is returned then.
        only : sequence of int, optional
            The parts asked, by number; else all.
        reading : bool
            Whether the task wants the pixels; else it gets None.

        Returns
        -------
        list, or what `merge` makes of it
            In the order of the parts.
        """
        numbers = list(self.parts) if only is None else list(only)
        if not reading:
            found = ((i, task(self.parts[i], None, **arguments)) for i in numbers)
            return [result for _, result in found] if into is None else _pass_on(found, into)
        held = [(i, self.parts[i].held) for i in numbers if self.parts[i].held is not None]
        feed = Feed([(i, self.parts[i]) for i in numbers if self.parts[i].held is None], ahead=self.workers)
        results: dict[int, Any] = {}
        merged: list[Any] = []
        lock = threading.Lock()

        def work() -> None:
            for number, pixels in chain(self._bring(held), feed):
                result = task(self.parts[number], pixels, **arguments)
                del pixels
                with lock:
                    if into is not None:
                        into(number, result)
                    elif merge is None:
                        results[number] = result
                    else:
                        merged[:] = [merge(merged[0], result) if merged else result]

        workers = min(self.workers, len(numbers))
        if workers == 1 and not feed.unread:
            work()
        else:
            _run_threads(feed, work, workers)
        if into is not None:
            return None
        return merged[0] if merge is not None else [results[i] for i in numbers]

    def _bring(self, held: list[tuple[int, np.ndarray]]) -> Iterator[tuple[int, Any]]:
        """What the host holds, on the device; there is one thread that works for it."""
        for number, rows in self.backend.bring(held) if held else ():
            yield number, rows[:, : self.n_features]


def _pass_on(found: Iterable[tuple[int, Any]], into: Callable[[int, Any], None]) -> None:
    for number, result in found:
        into(number, result)


class Feed:
    """Hands parts to threads: what was just read first, what lies in memory while reading goes on.

    Parameters
    ----------
    parts : sequence of (int, Part)
    ahead : int
        Blocks that are read, or being read, before they are asked for.
    """

    def __init__(self, parts: Sequence[tuple[int, Part]], *, ahead: int) -> None:
        self.near = deque(item for item in parts if item[1].is_near)
        self.unread = deque(item for item in parts if not item[1].is_near)
        self.ready: deque[tuple[int, Any]] = deque()
        self.ahead, self.reading, self.stopped = ahead, 0, False
        self.changed = threading.Condition()

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        while (item := self._take()) is not None:
            yield item

    def _take(self) -> tuple[int, Any] | None:
        with self.changed:
            while not self.stopped:
                if self.ready:
                    self.changed.notify_all()
                    return self.ready.popleft()
                if self.near:
                    number, part = self.near.popleft()
                    break
                if not self.unread and not self.reading:
                    return None
                self.changed.wait()
            else:
                return None
        return number, part.read()

    def read_ahead(self) -> None:
        """Read what is unread, as far ahead as allowed; in a thread of its own."""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.stopped or len(self.ready) + self.reading < self.ahead)
                if self.stopped or not self.unread:
                    return
                number, part = self.unread.popleft()
                self.reading += 1
            pixels = part.read()
            with self.changed:
                self.ready.append((number, pixels))
                self.reading -= 1
                self.changed.notify_all()
            del pixels

    def stop(self) -> None:
        with self.changed:
            self.stopped = True
            self.changed.notify_all()


def _run_threads(feed: Feed, work: Callable[[], None], workers: int) -> None:
    """Work in threads, of which this is one, until nothing is left or one of them fails."""
    readers = min(READERS, len(feed.unread))
    with ThreadPoolExecutor(workers - 1 + readers) as pool:
        jobs = [pool.submit(feed.read_ahead) for _ in range(readers)] + [pool.submit(work) for _ in range(workers - 1)]
        try:
            for job in jobs:
                job.add_done_callback(lambda job: feed.stop() if job.exception() else None)
            work()
            for job in jobs:
                job.result()
        finally:
            feed.stop()


def cut_map(
    shape: tuple[int, ...], *, pixel_bytes: int, part_bytes: int, chunks: Sequence[Sequence[int]] | None = None
) -> list[Region]:
    """Cut a map of pixels into regions of `part_bytes` at most.

    Parameters
    ----------
    shape : tuple of int
    pixel_bytes : int
        Of all features of a pixel.
    part_bytes : int
    chunks : sequence of sequences of int, optional
        Lengths of the chunks along each axis; the cuts keep to them as far as they can.

    Returns
    -------
    list of tuple of slice
        In order, slowest axis first; every pixel in one.
    """
    edges = [np.cumsum([0, *sizes]) for sizes in chunks] if chunks else [np.array([0, n]) for n in shape]

    def cut(region: Region) -> Iterator[Region]:
        lengths = [s.stop - s.start for s in region]
        if math.prod(lengths) * pixel_bytes <= part_bytes or max(lengths) <= 1:
            yield region
            return
        inside = [[int(e) for e in edges[i] if s.start < e < s.stop] for i, s in enumerate(region)]
        chunked = [i for i, places in enumerate(inside) if places]
        axis = chunked[0] if chunked else next(i for i, length in enumerate(lengths) if length > 1)
        s = region[axis]
        middle = (s.start + s.stop) // 2
        place = min(inside[axis], key=lambda e: abs(e - middle)) if chunked else middle
        for part in (slice(s.start, place), slice(place, s.stop)):
            yield from cut((*region[:axis], part, *region[axis + 1 :]))

    return list(cut(tuple(slice(0, n) for n in shape)))


def choose_part_bytes(nbytes: int, *, workers: int, most: int = PART_BYTES) -> int:
    """Return a size of parts that gives every thread several, but none that is hardly worth a call."""
    return max(min(nbytes // (4 * workers), most), min(LEAST_PART_BYTES, most), 1)
