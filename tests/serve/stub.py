"""A runner without a network, for tests of the service: its files' names say what becomes of the job."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lean3r.errors import InputError
from lean3r.pipeline.cluster import ClusterOptions
from lean3r.pipeline.observer import Observer
from lean3r.serve.options import ServeOptions
from lean3r.serve.server import serve
from lean3r.serve.worker import Task


class Stub:
    """Writes who did it in small pieces, so that torn results show; what is slow is so on its first start only."""

    def __init__(self, device: str, settings: Mapping[str, Any]) -> None:
        self.device = device

    def __call__(self, task: Task, observer: Observer) -> dict[str, Any]:
        name = task.names[0]
        with (task.input.parents[2] / "starts.log").open("a+") as notes:
            notes.seek(0)
            is_again = task.job in notes.read()
            notes.write(f"{task.job}\n")
        if name.startswith("fail"):
            raise InputError(f"no usable picture in {task.input}/{name}; see /etc/passwd")
        if name.startswith("bug"):
            raise ValueError(f"{task.out} is wrong")
        if name.startswith("die"):
            os._exit(7)
        if name.startswith("full"):
            raise OSError(28, "No space left on device", str(task.out))
        hoard = bytearray(400_000_000) if name.startswith("hoard") else b""
        is_slow = name.startswith(("endless", "hoard")) or (name.startswith("slow") and not is_again)
        steps = 6000 if is_slow else 5
        task.out.mkdir()
        with observer.stage("copying") as advanced:
            for step in range(steps):
                time.sleep(0.05)
                (task.out / f"part-{step}.txt").write_text(f"{task.job} {os.getpid()}")
                advanced(step + 1, steps)
        (task.out / "view.html").write_text("<!doctype html><title>view</title><p>view")
        (task.out / "report.html").write_text("<!doctype html><title>report</title><p>report")
        (task.out / 'a b;"c.txt').write_text("odd")
        return {"views": len(task.names), "pid": os.getpid(), "seconds": {}, "warnings": [], "held": len(hoard)}


def main() -> None:
    """Serve with the stub: the folder, and the options as JSON, stand on the command line."""
    given = json.loads(sys.argv[2])
    cluster = ClusterOptions(**given.pop("cluster", {}))
    serve(
        ServeOptions(**({"port": 0, "devices": "cpu", "reserve_gb": 0.0} | given)),
        Path(sys.argv[1]),
        lambda address, token: print(json.dumps({"address": address, "token": token}), flush=True),
        runner="serve.stub:Stub",
        cluster=cluster,
    )
