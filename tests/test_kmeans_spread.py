"""k-means on the workers of a client: the bytes of one process, and a line where a worker is lost."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from niseg_gpu.kmeans.estimator import KMeans
from niseg_gpu.kmeans.spread import share_blocks

ROOT = Path(__file__).parents[1]


def clustered(n: int, features: int, *, k: int = 5) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.uniform(200, 900, (k, features))[rng.integers(0, k, n)] + rng.normal(0, 40, (n, features))).astype("u2")


def run_script(folder: Path, script: str, *arguments: object) -> str:
    """Run a script in a process of its own, as the event loops of workers end at their leisure."""
    pytest.importorskip("distributed", reason="distributed is not installed; it comes with the hpc extra")
    file = folder / "script.py"
    file.write_text(textwrap.dedent(script))
    command = [sys.executable, file, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


ON_WORKERS = """
    import sys
    import dask.array as da, distributed, numpy as np
    from niseg_gpu import KMeans
    from niseg_gpu.backend import CPU
    from niseg_gpu.io.scratch import ScratchRows
    from niseg_gpu.kmeans.arrays import open_points
    from niseg_gpu.kmeans.spread import scatter_points
    def taken(group):
        return group.backend.kernels
    def default():
        return CPU.kernels == "own"
    if __name__ == "__main__":
        data = np.load(sys.argv[1])
        with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
            with distributed.Client(cluster) as client:
                lazy = da.from_array(data["stack"], chunks=(7, 9, 33))
                one = KMeans(4, random_state=0, feature_dim=0).fit(lazy)
                rows = data["with_holes"]
                file = ScratchRows(".", shape=rows.shape, dtype=rows.dtype)
                file[:] = rows
                sent = scatter_points(client, file, device="cpu", kernels="auto")
                np.testing.assert_array_equal(sent.take(np.arange(len(rows))), rows)
                two = KMeans(6, init=data["far"]).fit(da.from_array(data["with_holes"], chunks=(777, 20)))
                assert type(open_points(lazy, feature_dim=0)).__name__ == "SpreadPoints"
                np.testing.assert_array_equal(one.predict(lazy), one.labels_)
                for kernels in ("library", "own"):
                    points = open_points(lazy, feature_dim=0, kernels=kernels)
                    took = [client.submit(taken, g, workers=[w]) for w, g in points.groups.items()]
                    assert len(took) == 2 and set(client.gather(took)) == {kernels}
                    assert all(client.gather([client.submit(default, pure=False, workers=[w]) for w in points.groups]))
        for name, found in ("one", one), ("two", two):
            np.savez(sys.argv[2] + name, labels=found.labels_, centroids=found.cluster_centers_, inertia=found.inertia_)
"""


def test_workers_of_a_client_give_the_same_bytes(tmp_path: Path) -> None:
    rows = clustered(5000, 20)
    stack = np.ascontiguousarray(rows.T).reshape(20, 50, 100)
    with_holes = rows.astype(np.float32)
    with_holes[7] = np.nan
    far = rows[:6].astype(np.float32)
    far[0] += 10_000
    np.savez(tmp_path / "data.npz", stack=stack, with_holes=with_holes, far=far)
    run_script(tmp_path, ON_WORKERS, tmp_path / "data.npz", f"{tmp_path}/")
    here = {"one": KMeans(4, random_state=0, feature_dim=0).fit(stack), "two": KMeans(6, init=far).fit(with_holes)}
    for name, expected in here.items():
        found = np.load(tmp_path / f"{name}.npz")
        assert found["labels"].tobytes() == expected.labels_.tobytes()
        assert found["centroids"].tobytes() == expected.cluster_centers_.tobytes()
        assert found["inertia"] == expected.inertia_


@given(st.data(), st.integers(1, 5), st.integers(1, 40))
def test_each_worker_has_its_share_of_the_pixels(data: st.DataObject, n_workers: int, n_blocks: int) -> None:
    workers = [f"w{i}" for i in range(n_workers)]
    sizes = data.draw(st.lists(st.integers(1, 50), min_size=n_blocks, max_size=n_blocks))
    some = st.lists(st.sampled_from([*workers, "gone"]), unique=True)
    homes = share_blocks(
        sizes, holders=data.draw(st.lists(some, min_size=n_blocks, max_size=n_blocks)), workers=workers
    )
    assert sorted(i for numbers in homes.values() for i in numbers) == list(range(n_blocks))
    assert set(homes) <= set(workers)
    loads = [sum(sizes[i] for i in homes.get(worker, ())) for worker in workers]
    assert max(loads) <= sum(sizes) / n_workers + max(sizes)


def test_blocks_stay_where_they_are_as_far_as_that_is_fair() -> None:
    holders = [["a"], ["a", "b"], ["b"], ["b"]]
    assert share_blocks([5] * 4, holders=holders, workers=["a", "b"]) == {"a": [0, 1], "b": [2, 3]}
    assert share_blocks([5] * 4, holders=[["a"]] * 4, workers=["a", "b"]) == {"a": [0, 1], "b": [2, 3]}
    assert share_blocks([5] * 2, holders=[["b"]] * 2, workers=["a", "b", "c"]) == {"b": [0], "a": [1]}


A_WORKER_ENDS = """
    import os, threading, time
    import dask.array as da, distributed, numpy as np
    from niseg_gpu import UserError
    from niseg_gpu.kmeans import spread
    from niseg_gpu.kmeans.arrays import open_points
    def rest(part, pixels):
        time.sleep(0.2)
    if __name__ == "__main__":
        spread.WATCH_SECONDS = 1
        with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
            with distributed.Client(cluster):
                points = open_points(da.ones((4000, 20), chunks=(1000, -1), dtype=np.float32))
                threading.Timer(0.5, os.kill, (cluster.workers[0].process.pid, 9)).start()
                try:
                    while True:
                        points.each(rest)
                except UserError as error:
                    print(error)
"""


A_WORKER_ENDS_WITH_RESULTS = """
    import os, signal, threading
    import distributed
    from niseg_gpu import UserError
    from niseg_gpu.kmeans import spread
    if __name__ == "__main__":
        spread.WATCH_SECONDS = 1
        with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
            with distributed.Client(cluster) as client:
                first = cluster.workers[0]
                jobs = [client.submit(bytes, 9, workers=[first.worker_address])]
                distributed.wait(jobs)
                known = first.worker_address
                os.kill(first.process.pid, signal.SIGSTOP)  # what it has is known, and does not come
                threading.Timer(0.5, os.kill, (first.process.pid, signal.SIGKILL)).start()
                try:
                    spread.collect(client, jobs, workers=[known])
                except UserError as error:
                    print(error)
                print(client.submit(sum, [1, 2]).result())
"""


@pytest.mark.parametrize("script", [A_WORKER_ENDS, A_WORKER_ENDS_WITH_RESULTS], ids=["at work", "with results"])
def test_a_worker_that_is_lost_is_told(tmp_path: Path, script: str) -> None:
    told = run_script(tmp_path, script)
    assert "is gone, and its pixels with it; start anew" in told and told.startswith("worker tcp://")
