"""k-means as an estimator with scikit-learn's parameters, for arrays of any size and place."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import numpy as np

from niseg_gpu.errors import UserError
from niseg_gpu.kmeans.arrays import open_points
from niseg_gpu.kmeans.cluster import cluster_points
from niseg_gpu.kmeans.lloyd import Measure, assign, measure_points, read_labels
from niseg_gpu.kmeans.seeding import METHODS, MOST_STARTS, count_candidates, is_method

log = logging.getLogger(__name__)


class KMeans:
    """k-means clustering by Lloyd's algorithm, one pass over the data an iteration.

    The result does not depend on chunks, threads or workers. From the same centroids it is scikit-learn's. The data
    are not copied (but on a GPU once, to rows that begin at multiples of 16 bytes, where half of its free memory takes
    them), and 8- and 16-bit integers are not widened; sums are made in float64, distances in float32 on data less their
    mean.

    Parameters
    ----------
    n_clusters : int
    init : {"k-means++", "random"}, (n_clusters, features) array, or a ``.npy`` file
    n_init : int or "auto"
        Starts, of which the one of least inertia is kept. ``auto``: 10 of random ones, else 1.
    max_iter : int
    tol : float
        Relative to the mean variance of the features; the iteration ends when the squared shift of the centroids is
        no larger.
    random_state : int, RandomState or None
        Drawn from in scikit-learn's order.
    feature_dim : str or int, optional
        Axis of the features: its name (xarray) or number; by default ``tof`` where there is one, else the last.
    init_sample : int, optional
        Draw the starts from so many pixels, iterate them on these, and let the best go on to all. By default the
        starts are drawn from all pixels, and each goes on to the end.
    device : {"auto", "cpu", "gpu"}
        For Dask arrays; others are worked on where they are.
    kernels : {"auto", "library", "own"}
        What makes the passes over the data: array calls of the device's library (NumPy, CuPy), or kernels of our own.
        ``auto`` takes our own on the CPU and the library's on a GPU. The choice is this estimator's alone.
    memory_budget : int, optional
        Bytes that a Dask array may take in memory, half of what there is by default; what is more is read anew in
        each pass. Not for a ``distributed`` client, whose workers hold all.
    workers : int, optional
        Threads; all cores by default.

    Attributes
    ----------
    cluster_centers_ : (n_clusters, features) float32 ndarray
    labels_ : int32 ndarray
        In the shape of the data without the axis of the features; -1 for pixels with NaN or Inf, which are left out.
    inertia_ : float
        Sum of squared distances to the nearest centroid.
    n_iter_ : int
    n_features_in_ : int

    References
    ----------
    S. Lloyd, Least squares quantization in PCM, 1982, https://doi.org/10.1109/TIT.1982.1056489

    Examples
    --------
    >>> import numpy as np
    >>> found = KMeans(2, random_state=0).fit(np.array([[1.0, 2.0], [1.0, 3.0], [9.0, 8.0]]))
    >>> bool(found.labels_[0] == found.labels_[1] != found.labels_[2])
    True
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Any = "k-means++",
        n_init: int | str = "auto",
        max_iter: int = 300,
        tol: float = 1e-4,
        random_state: Any = None,
        feature_dim: str | int | None = None,
        init_sample: int | None = None,
        device: str = "auto",
        kernels: str = "auto",
        memory_budget: int | None = None,
        workers: int | None = None,
    ) -> None:
        self.n_clusters, self.init, self.n_init = n_clusters, init, n_init
        self.max_iter, self.tol, self.random_state = max_iter, tol, random_state
        self.feature_dim, self.init_sample, self.device, self.kernels = feature_dim, init_sample, device, kernels
        self.memory_budget, self.workers = memory_budget, workers

    def fit(self, data: Any, y: Any = None) -> KMeans:
        """Find clusters.

        Parameters
        ----------
        data : (…, features) array
            NumPy, CuPy, Dask or xarray.
        y : ignored

        Raises
        ------
        UserError
            A parameter that is no such, or data that it does not fit.
        """
        n_init = self._check()
        points = self._open(data, beside=self._count_beside())
        found = cluster_points(
            points,
            n_clusters=self.n_clusters,
            init=self.init,
            n_init=n_init,
            max_iter=self.max_iter,
            tol=self.tol,
            random_state=_random_state(self.random_state),
            init_sample=self.init_sample,
        )
        self._measure = found.measure
        self.cluster_centers_, self.inertia_, self.n_iter_ = found.centroids, found.inertia, found.n_iter
        self.n_features_in_ = points.n_features
        self.labels_ = _read(points, found.measure)
        empty = int((found.sizes == 0).sum())
        if empty:
            log.warning(
                "kmeans: %d of %d clusters hold no pixel; are there enough different ones?", empty, self.n_clusters
            )
        return self

    def predict(self, data: Any) -> np.ndarray:
        """Return the nearest cluster of each pixel, as `labels_`.

        Parameters
        ----------
        data : (…, features) array
        """
        if not hasattr(self, "cluster_centers_"):
            raise UserError("this KMeans has no clusters yet; call fit first")
        points = self._open(data)
        if points.n_features != self.n_features_in_:
            raise UserError(f"predict got {points.n_features} features; fit had {self.n_features_in_}")
        own = measure_points(points)
        mean = self._measure.mean
        # its own quantum: the sums are thrown away, but must not overflow
        measure = Measure(own.n, mean, own.largest + float(np.abs(own.mean - mean).max()), own.total, own.variance)
        if own.n:
            assign(points, measure, self.cluster_centers_ - mean)
        return _read(points, own)

    def fit_predict(self, data: Any, y: Any = None) -> np.ndarray:
        """Find clusters and return the labels."""
        return self.fit(data).labels_

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters by name."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **parameters: Any) -> KMeans:
        """Change parameters."""
        known = self.get_params()
        for name, value in parameters.items():
            if name not in known:
                raise UserError(f"KMeans has no parameter {name!r}; allowed: {', '.join(known)}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self)).parameters
        shown = [f"{n}={v!r}" for n, v in self.get_params().items() if v is not defaults[n].default]
        return f"KMeans({', '.join(shown)})"

    def _open(self, data: Any, **more: int) -> Any:
        names = ("feature_dim", "device", "kernels", "memory_budget", "workers")
        return open_points(data, **{name: getattr(self, name) for name in names}, **more)

    def _count_beside(self) -> int:
        """Bytes for each pixel beside the data: label, whether it has data, and the most that is needed at a time."""
        relocating = 4 + 8 + 4  # distances, their order, labels
        seeding = 4 * (1 + count_candidates(self.n_clusters)) if is_method(self.init) and not self.init_sample else 0
        return 4 + 1 + max(relocating, seeding)

    def _check(self) -> int:
        """Refuse parameters that make no sense; return the number of starts."""
        for name in ("n_clusters", "max_iter", "init_sample", "workers"):
            value = getattr(self, name)
            if value is None and name in ("init_sample", "workers"):
                continue
            if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
                raise UserError(f"{name} is {value!r}; allowed: a whole number from 1 on")
        if not isinstance(self.tol, int | float | np.number) or not self.tol >= 0:
            raise UserError(f"tol is {self.tol!r}; allowed: a number from 0 on")
        if isinstance(self.init, str) and not is_method(self.init) and not self.init.endswith(".npy"):
            raise UserError(f"init is {self.init!r}; allowed: {', '.join(METHODS)}, an array, a .npy file")
        if self.device not in ("auto", "cpu", "gpu"):  # also where the data are on one already
            raise UserError(f"device is {self.device!r}; allowed: auto, cpu, gpu")
        if isinstance(self.n_init, str) and self.n_init == "auto":
            return 10 if isinstance(self.init, str) and self.init == "random" else 1
        if not isinstance(self.n_init, int | np.integer) or not 1 <= self.n_init <= MOST_STARTS:
            raise UserError(f"n_init is {self.n_init!r}; allowed: auto, a whole number from 1 to {MOST_STARTS}")
        return int(self.n_init)


def _random_state(given: Any) -> np.random.RandomState:
    if isinstance(given, np.random.RandomState):
        return given
    try:
        return np.random.RandomState(given)
    except (TypeError, ValueError):
        raise UserError(
            f"random_state is {given!r}; allowed: None, a whole number from 0 to {2**32 - 1}, a RandomState"
        ) from None


def _read(points: Any, measure: Measure) -> np.ndarray:
    labels = points.gather(read_labels, dtype=np.int32, reading=False).reshape(points.map_shape)
    missing = labels.size - measure.n
    if missing:
        log.warning("kmeans: %d of %d pixels hold NaN or Inf; they are in no cluster (label -1)", missing, labels.size)
    return labels
