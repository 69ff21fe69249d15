"""Run a command and print what it took as JSON: seconds, peak memory in bytes, exit status.

A process of its own, and a small one: Linux lets a started program inherit the peak memory of the process that
started it, so a runner that holds gigabytes would see its own peak in place of the program's.
"""

import json
import os
import sys
import time


def main() -> None:
    start = time.perf_counter()
    process = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
    _, status, usage = os.wait4(process, 0)
    took = {
        "seconds": time.perf_counter() - start,
        "peak_bytes": usage.ru_maxrss * (1024 if sys.platform != "darwin" else 1),
        "fetched_bytes": usage.ru_inblock * 512,  # from disks, where the system counts it
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "status": os.waitstatus_to_exitcode(status),
    }
    print(json.dumps(took))


if __name__ == "__main__":
    main()
