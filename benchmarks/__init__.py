"""Measurements that anyone can run again: ``niseg-gpu bench --help``.

A folder of the sources, and ``niseg_gpu.benchmarks`` where the package is installed; so its modules import each other
relatively, and what runs in a process of its own is started by its path.
"""
