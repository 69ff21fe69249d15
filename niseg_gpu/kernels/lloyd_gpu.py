"""One pass of k-means over a table of pixels on a CUDA GPU; see `lloyd_cuda` for how, and `lloyd` for the CPU's.

Nothing here has run on a GPU yet. The kernels compile for one, and their results are checked in numba's simulator, that
``NUMBA_ENABLE_CUDASIM=1`` in the environment switches on before numba is imported; arrays are NumPy's there.

Sums are exact as the CPU's are: float64 takes values rounded to a quantum, or, where values and mean are whole numbers,
a register of 32 bit takes them as they are.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import config, cuda

from niseg_gpu.kernels import lloyd_cuda, lloyd_tile
from niseg_gpu.kernels.exact import Sums

if not config.ENABLE_CUDASIM:
    from numba.cuda import dispatcher

    dispatcher.config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # sums of blocks are added up by few; nobody need mend that

DTYPES = frozenset(map(np.dtype, ("uint8", "int16", "uint16", "float32")))
MOST_CLUSTERS = 64
EXACT_CLUSTERS = 16  # up to which a kernel is made for just that many; beyond, in steps of 4
MOST_TOTALS = 128  # registers that hold sums; all in all a thread has 255
MOST_ADDED = 65_535  # whole numbers of 16 bit whose sum fits into 32
RUN = 1024  # pixels whose sums are added up by one block, when they are read again
LEAST_VECTORS = 4  # of 16 bytes, from which on rows are padded
LEAST_GROUPS = 2  # or 8, so that a tile of close rows begins at a multiple of 16 bytes, whatever the dtype
SIMULATED = 2, 232_448  # multiprocessors and shared memory of the simulator; an H100 has 132


class Case(NamedTuple):
    """What a kernel is made for; see `lloyd_cuda.build`."""

    dtype: np.dtype
    clusters: int
    wide: bool
    whole: bool
    groups: int
    each: int


class Plan(NamedTuple):
    """How a pass is done.

    Attributes
    ----------
    case : Case
    fused : bool
        In one pass over the data, else in two.
    vectors : int
        Vectors of a row; four features where rows don't begin at multiples of 16 bytes.
    places : tuple of int
        Where in shared memory are, in words: the first tile and how far the second is from it, the centroids, the mean,
        the shares of products and how far one's are from the next one's.
    shared : int
        Bytes of shared memory.
    """

    case: Case
    fused: bool
    vectors: int
    places: tuple[int, ...]
    shared: int

    @property
    def rows(self) -> int:
        """Pixels of a tile."""
        return lloyd_tile.ROWS * self.case.groups

    @property
    def quads(self) -> int:
        return self.vectors * max(1, 16 // self.case.dtype.itemsize // 4 if self.case.wide else 1)


def pad_row(features: int, dtype: Any) -> int:
    """Values that a row should have room for, so that the kernel reads it fastest: an odd number of 16 bytes.

    The values beyond the features must be finite. Rows of less than 64 bytes are better left as they are.
    """
    per_vector = 16 // np.dtype(dtype).itemsize
    vectors = -(-features // per_vector)
    return (vectors | 1) * per_vector if vectors >= LEAST_VECTORS else features


def lies_well(pixels: Any) -> bool:
    """Whether (n, features) pixels are read as fast where they lie as from padded rows: 16 bytes at a time, or few."""
    if pixels.shape[1] * pixels.itemsize <= 16 * (LEAST_VECTORS - 1):
        return True
    return pixels.strides[0] % 16 == 0 and _address(pixels) % 16 == 0


def why_not(shape: tuple[int, ...], dtype: Any, n_clusters: int) -> str:
    """Return why these kernels can't take (n, features) pixels, or an empty string where they can."""
    if np.dtype(dtype) not in DTYPES:
        return f"it has none for {np.dtype(dtype)} pixels"
    if n_clusters > MOST_CLUSTERS:
        return f"it has none for {n_clusters} clusters, {MOST_CLUSTERS} at most"
    if shape[1] > 8192:
        return f"it has none for {shape[1]} features, 8192 at most"
    if not config.ENABLE_CUDASIM and cuda.get_current_device().compute_capability < (8, 0):
        return "it needs compute capability 8.0"
    return ""


def assign_and_sum_gpu(pixels: Any, *, centroids: Any, mean: Any, quantum: float, labels: Any, xp: Any) -> Sums:
    """Give each pixel its nearest centroid and sum the pixels of each cluster.

    Parameters
    ----------
    pixels : (n, features) array
        Of one of `DTYPES`; features run fastest. Rows may be padded, see `pad_row`.
    centroids : (k, features) float32 ndarray
        Less the mean.
    mean : (features,) float32 ndarray
    quantum : float
        See `niseg_gpu.kernels.lloyd.choose_quantum`.
    labels : (n,) int32 array
        Updated in place; of equally near centroids the first. Negative ones stay, their pixels are left out.
    xp : module
        Array namespace of pixels and labels: cupy, or numpy in the simulator.

    Returns
    -------
    Sums
        On the host: one small copy brings all of it.
    """
    k, features = centroids.shape
    if len(pixels) == 0:
        return Sums(np.zeros((k, features)), np.zeros(k, np.int64), 0)
    # whole numbers less a whole mean are whole: nothing is rounded
    whole = pixels.dtype.kind in "iu" and quantum <= 1 and bool((mean == np.rint(mean)).all())
    on_device = {"centroids": xp.asarray(centroids), "mean": xp.asarray(mean), "labels": labels}
    found = start_pass(pixels, **on_device, quantum=quantum, whole=whole, xp=xp)
    found = found if config.ENABLE_CUDASIM else found.get()
    clusters = (found.size - 1) // (features + 1)
    sums, sizes = found[: clusters * features].reshape(clusters, features), found[clusters * features : -1]
    return Sums(sums[:k], sizes[:k].astype(np.int64), int(found[-1]))


def start_pass(pixels: Any, *, centroids: Any, mean: Any, quantum: float, labels: Any, whole: bool, xp: Any) -> Any:
    """Do the same without waiting for it.

    Parameters
    ----------
    pixels, centroids, mean, quantum, labels, xp
        As `assign_and_sum_gpu` takes them, but all on the device, and one pixel at least.
    whole : bool
        Whether pixels and mean are whole numbers, and the quantum no more than 1.

    Returns
    -------
    (k' (features + 1) + 1,) float64 array
        On the device: sums and sizes of k' >= k clusters, labels that changed.
    """
    n, features = pixels.shape
    flat, length = _flatten(pixels, xp)
    aligned = _address(flat) % 16 == 0
    how = {"wide": aligned and length * pixels.itemsize % 16 == 0, "aligned": aligned, "whole": whole}
    plan = make_plan(features, length, pixels.dtype, k=len(centroids), **how, shared=_device()[1])
    table, norms = _lay_out(plan, centroids, features, xp)
    run = _pass_once if plan.fused else _pass_twice
    return run(plan, (flat, n, length, features), table, mean, norms, 1.5 * 2.0**52 * float(quantum), labels, xp)


@cache
def make_plan(
    features: int, length: int, dtype: np.dtype, *, k: int, wide: bool, whole: bool, shared: int, aligned: bool = True
) -> Plan:
    """Choose how to go about pixels of some features, in rows of `length` values, with `shared` bytes a block.

    One pass copies 16 bytes at a time, from memory that is `aligned` to as many; slices of others' arrays may not be.
    """
    clusters = k if k <= EXACT_CLUSTERS else -(-k // 4) * 4
    each = -(-features // lloyd_tile.THREADS)
    vectors = length * dtype.itemsize // 16 if wide else -(-features // 4)
    if aligned and clusters <= EXACT_CLUSTERS and each * clusters * (1 if whole else 2) <= MOST_TOTALS:
        groups = lloyd_tile.THREADS
        while groups >= (LEAST_GROUPS if wide else 4 * LEAST_GROUPS):
            plan = _place(Plan(Case(dtype, clusters, wide, whole, groups, each), True, vectors, (), 0), length)
            if plan.shared <= shared:
                return plan
            groups //= 2
    return _place(Plan(Case(dtype, clusters, wide, whole, lloyd_tile.THREADS, 1), False, vectors, (), 0), length)


def _place(plan: Plan, length: int) -> Plan:
    """Find the places of everything in shared memory."""
    case, item = plan.case, plan.case.dtype.itemsize
    first = lloyd_tile.ORDER + (plan.rows if plan.fused else 0)
    span = lloyd_tile.SPAN
    row = length * item if plan.fused else (4 * span + 4) * 4 if case.wide else (4 * span + 1) * item
    step = plan.rows * row // 4
    table = first + 2 * step
    quads = plan.quads if plan.fused else 2 * span * (plan.quads // plan.vectors)
    mean = table + quads * 4 * case.clusters
    shares = mean + plan.quads * 4
    slab = plan.rows * case.clusters + (case.groups if case.groups < 32 else 0)  # apart in the banks
    n_shares = lloyd_tile.THREADS // case.groups
    end = shares + (slab * n_shares if n_shares > 1 else 0)
    # a thread beyond the last feature reads on behind the tile, and nobody looks at its sums
    end = max(end, table + lloyd_tile.THREADS)
    return plan._replace(places=(first, step, table, mean, shares, slab), shared=4 * end)


def _pass_once(plan: Plan, pixels: Any, table: Any, mean: Any, norms: Any, magic: float, labels: Any, xp: Any) -> Any:
    flat, n, length, features = pixels
    tiles = -(-n // plan.rows)
    blocks = max(min(tiles, _device()[0]), -(-tiles // (MOST_ADDED // plan.rows)))
    columns = plan.case.clusters * (features + 1) + 1
    partial = xp.empty(blocks * columns, dtype=np.float64)
    arguments = flat, n, length, features, plan.vectors, table, mean, norms, magic, labels, plan.places, partial
    _launch("fuse", plan.case, blocks, arguments, xp, shared=plan.shared)
    return _add_up(plan.case, partial, blocks, columns, xp)


def _pass_twice(plan: Plan, pixels: Any, table: Any, mean: Any, norms: Any, magic: float, labels: Any, xp: Any) -> Any:
    flat, n, length, features = pixels
    case = plan.case
    blocks = min(-(-n // plan.rows), 2 * _device()[0])
    partial = xp.empty(blocks * (case.clusters + 1), dtype=np.float64)
    arguments = flat, n, length, features, plan.vectors, table, mean, norms, labels, plan.places, partial
    _launch("assign", case, blocks, arguments, xp, shared=plan.shared)
    tallies = _add_up(case, partial, blocks, case.clusters + 1, xp)
    starts = xp.empty(case.clusters + 1, dtype=np.int64)
    starts[-1] = n
    starts[:-1] = n - xp.cumsum(tallies[:-1][::-1])[::-1]  # pixels left out come before all others
    order = xp.argsort(labels).astype(np.int64)
    runs = -(-n // RUN)
    partial = xp.empty((runs + case.clusters) * features, dtype=np.float64)
    grid = runs, -(-features // lloyd_tile.THREADS)
    _launch("sum_runs", case, grid, (flat, length, features, mean, magic, order, starts, RUN, partial), xp)
    sums = xp.empty(case.clusters * features, dtype=np.float64)
    _launch("add_runs", case, -(-sums.size // lloyd_tile.COLUMNS), (partial, starts, RUN, features, sums), xp)
    return xp.concatenate([sums, tallies])


def _lay_out(plan: Plan, centroids: Any, features: int, xp: Any) -> tuple[Any, Any]:
    """The centroids as the kernels read them, and their squared lengths."""
    clusters = plan.case.clusters
    table = xp.empty(plan.quads * 4 * clusters, dtype=np.float32)
    norms = xp.empty(clusters, dtype=np.float32)
    arguments = centroids.reshape(-1), len(centroids), features, plan.quads, table, norms
    _launch("prepare", plan.case, clusters, arguments, xp)
    return table, norms


def _add_up(case: Case, partial: Any, parts: int, columns: int, xp: Any) -> Any:
    out = xp.empty(columns, dtype=np.float64)
    _launch("add_parts", case, -(-columns // lloyd_tile.COLUMNS), (partial, parts, columns, out), xp)
    return out


def _flatten(pixels: Any, xp: Any) -> tuple[Any, int]:
    """The memory under (n, features) pixels as one line of values, and how long a row is in it."""
    n, features = pixels.shape
    item = pixels.itemsize
    if pixels.strides[1] != item or pixels.strides[0] < features * item:
        pixels = xp.ascontiguousarray(pixels)
    length = pixels.strides[0] // item if n > 1 else features
    return xp.lib.stride_tricks.as_strided(pixels, ((n - 1) * length + features,), (item,)), length


def _address(flat: Any) -> int:
    return flat.ctypes.data if config.ENABLE_CUDASIM else flat.data.ptr


@cache
def _device() -> tuple[int, int]:
    """Multiprocessors, and bytes of shared memory that a block may have."""
    if config.ENABLE_CUDASIM:
        return SIMULATED
    device = cuda.get_current_device()
    return device.MULTIPROCESSOR_COUNT, device.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN


@cache
def _kernel(name: str, case: Case) -> Any:
    return cuda.jit(lloyd_cuda.build(name, **case._asdict()))


def _launch(name: str, case: Case, blocks: Any, arguments: tuple[Any, ...], xp: Any, *, shared: int = 0) -> None:
    kernel = _kernel(name, case)
    stream = 0
    if not config.ENABLE_CUDASIM:
        arrays = "__cuda_array_interface__"
        arguments = tuple(cuda.as_cuda_array(a, sync=False) if hasattr(a, arrays) else a for a in arguments)
        kernel = _allow_shared(kernel.specialize(*arguments), shared)
        pointer = xp.cuda.get_current_stream().ptr
        stream = cuda.external_stream(pointer) if pointer else 0
    kernel[blocks, lloyd_tile.THREADS, stream, shared](*arguments)


@cache
def _allow_shared(kernel: Any, n_bytes: int) -> Any:
    """Let a kernel have more shared memory than the 48 KiB that it gets unasked; numba has no word for it yet."""
    if n_bytes > 48 * 1024:
        from numba.cuda.cudadrv.driver import binding, driver

        attribute = binding.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        function = next(iter(kernel.overloads.values()))._codelibrary.get_cufunc()
        driver.cuKernelSetAttribute(attribute, n_bytes, function.handle, function.device.id)
    return kernel
