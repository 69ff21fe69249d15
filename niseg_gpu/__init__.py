"""niseg_gpu: segment neutron images at full size, on CPU or GPU."""

__version__ = "0.1.0"
