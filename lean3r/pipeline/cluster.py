"""Many machines that work as one: how a program finds its Ray cluster, and what each piece of work takes of it."""

from __future__ import annotations

import importlib
import logging
import signal
import threading
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from lean3r.errors import MissingExtraError, UsageError
from lean3r.options import check_types, option
from lean3r.processes import without_reports

FIND, HERE = "auto", "local"
STORE_BYTES = 80 << 20  # shared memory of a cluster that is started here: results go through files, not through it
RETRIES = 3  # of work whose process or machine is lost


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Where work is done, and what each scene of a batch, or each worker of the service, takes of a cluster."""

    engine: Literal["local", "ray"] = option(
        "local", "Who does the work: this machine, or the machines of a Ray cluster (extra cluster)."
    )
    ray_address: str = option(
        FIND,
        "Ray: the cluster; auto: that of RAY_ADDRESS or of this machine; local: a new one of this machine alone.",
        "HOST:PORT|auto|local",
    )
    cpus: float = option(1.0, "Ray: processors for each scene or worker.", "N")
    gpus: float = option(0.0, "Ray: GPUs for each; 0.5: two share one.", "N")

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 < self.cpus < float("inf") or not 0 <= self.gpus < float("inf"):
            raise UsageError(
                f"--cpus is {self.cpus:g} and --gpus {self.gpus:g}; expected processors, and 0 or more GPUs."
            )
        if self.engine == "local" and (self.ray_address, self.cpus, self.gpus) != (FIND, 1.0, 0.0):
            raise UsageError("--ray-address, --cpus and --gpus are for a Ray cluster; give --engine ray, too.")

    @property
    def resources(self) -> dict[str, float]:
        """What Ray sets aside for each piece of work."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus}


def connect(options: ClusterOptions) -> Any:
    """The module ray, connected to the cluster: that of this program, if it has one already.

    MissingExtraError without Ray; UsageError if there is no such cluster, or none of its machines has the resources.
    """
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise MissingExtraError.of("--engine ray", "cluster") from error
    if not ray.is_initialized():
        _start(ray, options)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    wanted = {"CPU": options.cpus, "GPU": options.gpus}
    if not any(all(has.get(name, 0.0) >= count for name, count in wanted.items()) for has in nodes):
        most = max((has.get("CPU", 0.0), has.get("GPU", 0.0)) for has in nodes) if nodes else (0, 0)
        raise UsageError(
            f"no machine of the cluster has {options.cpus:g} processors and {options.gpus:g} GPUs; the largest of "
            f"{len(nodes)} has {most[0]:g} and {most[1]:g}. Lower --cpus or --gpus, or add a machine."
        )
    return ray


def _start(ray: ModuleType, options: ClusterOptions) -> None:
    """Connect, or start a cluster of this machine alone. Ray's handler of SIGTERM does not replace ours."""
    quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "logging_level": logging.ERROR}
    if options.ray_address == HERE:
        quiet |= {"include_dashboard": False, "object_store_memory": STORE_BYTES}
    before = signal.getsignal(signal.SIGTERM)
    try:
        with without_reports():
            ray.init(address=options.ray_address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"no Ray cluster answers at --ray-address {options.ray_address}. Start one (ray start --head), name "
            "another, set RAY_AUTH_MODE=token if it wants one, or use --ray-address local for this machine alone."
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
