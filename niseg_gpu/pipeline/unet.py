"""Applying U-Nets from file to file, and telling what is in a model's folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from niseg_gpu.pipeline.engine import Before, Stage
from niseg_gpu.pipeline.parse import Pipeline
from niseg_gpu.pipeline.progress import show_progress
from niseg_gpu.pipeline.run import Session, open_session
from niseg_gpu.pipeline.steps import OPS
from niseg_gpu.pipeline.transform import watched
from niseg_gpu.stack import StackInfo
from niseg_gpu.unet.config import UNetConfig
from niseg_gpu.unet.folder import read_about

if TYPE_CHECKING:
    import xarray as xr
