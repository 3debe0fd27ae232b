"""A Ray cluster of this machine alone, in a process of its own, which ends when its standard input closes."""

from __future__ import annotations

import sys

from lean3r.pipeline.cluster import ClusterOptions, connect
from lean3r.processes import end_with_input


def main() -> None:
    """Start it, and print its address."""
    end_with_input()
    ray = connect(ClusterOptions(engine="ray", ray_address="local", cpus=0.5))
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
