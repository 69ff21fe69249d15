"""The two devices as twins with the same members; nothing outside of this package names their libraries.

Choose once with `select`; after that follow the data: ``backend_of(block)`` gives the twin of the block's own
type, so no method asks where it runs. A twin never changes: another choice of kernels is another twin, which whoever
hands blocks to methods names with `working_on`.
"""

from niseg_gpu.backend.choose import (
    CPU,
    GPU,
    TWINS,
    backend_of,
    select,
    why_no_gpu,
    with_kernels,
    working_on,
)
from niseg_gpu.backend.cpu import Cpu
from niseg_gpu.backend.gpu import Gpu
from niseg_gpu.backend.machine import count_cores, count_memory_limit, cpu_model, limit_threads
from niseg_gpu.backend.twin import Cleaned, Clusters

__all__ = [
    "CPU",
    "GPU",
    "TWINS",
    "Cleaned",
    "Clusters",
    "Cpu",
    "Gpu",
    "backend_of",
    "count_cores",
    "count_memory_limit",
    "cpu_model",
    "limit_threads",
    "select",
    "why_no_gpu",
    "with_kernels",
    "working_on",
]
