"""report.md: the config, results and hardware of a run."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from lean3r.train.checkpoints.disk import write_atomically
from lean3r.train.config import TrainConfig
from lean3r.train.logs.log import read_csv, read_events

ROWS = 12  # of each log are in the report, as columns; the log files have all


def write_report(
    out_dir: Path,
    config: TrainConfig,
    ending: str,
    counts: Mapping[str, int],
    best: Mapping[str, float] | None,
    processes: int,
    device: torch.device,
) -> None:
    """Write OUT_DIR/report.md from the logs in the folder and the arguments."""
    log, validation = read_csv(out_dir / "log.csv"), read_csv(out_dir / "validation.csv")
    events = read_events(out_dir / "events.jsonl")
    counts = dict(counts) | {"resumed": sum(event["event"] == "resumed" for event in events)}
    parts = [f"# {config.name}", f"{ending} after {counts['steps']:,} of {config.total_steps:,} steps."]
    if best is not None:
        parts += [f"Best {config.best_key}: {best['value']:.6g} at step {best['step']} (best.safetensors)."]
    if (out_dir / "loss.png").exists():
        parts += ["![curves over the steps](loss.png)"]
    if validation:
        parts += ["## Validation", table(_by_step(validation))]
    if log:
        parts += ["## Training", table(_by_step(log))]
    pictures = sorted((out_dir / "pictures").glob("step-*.png"))
    if pictures:
        parts += ["## Predictions", f"![the last picture](pictures/{pictures[-1].name})"]
    parts += ["## Counts", table([{"what": name, "number": str(n)} for name, n in counts.items()])]
    unusual = [event for event in events if event["event"] != "resumed"]
    if unusual:
        rows = [{"step": str(e["step"]), "event": e["event"], "facts": _facts(e)} for e in unusual[-ROWS:]]
        parts += [f"The last of {len(unusual)} events (events.jsonl):", table(rows)]
    parts += ["## Hardware", table([{"part": k, "what": v} for k, v in hardware(device, processes).items()])]
    parts += ["## Config", "```json\n" + config.to_json() + "\n```"]
    text = "\n\n".join(parts) + "\n"
    write_atomically(out_dir / "report.md", lambda path: path.write_text(text))


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """A Markdown table of rows with the same keys; bars in the text are escaped."""
    head = list(rows[0])
    lines = [head, ["---"] * len(head)] + [[row.get(name) or "" for name in head] for row in rows]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)


def hardware(device: torch.device, processes: int) -> dict[str, str]:
    """The hardware and software of the run, without host names."""
    parts = {"processor": _processor(), "cores": str(os.cpu_count()), "processes": str(processes)}
    if device.type == "cuda":
        parts["GPU"] = torch.cuda.get_device_name(device)
    return parts | {"system": platform.system(), "Python": platform.python_version(), "torch": torch.__version__}


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _by_step(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """One row per figure of a log; its columns are at most ROWS evenly spaced steps, including the last."""
    some = rows[::-1][:: -(-len(rows) // ROWS)][::-1]
    return [{"step": name} | {row["step"]: row[name] for row in some} for name in rows[0] if name != "step"]


def _facts(event: Mapping[str, object]) -> str:
    return ", ".join(f"{k} {json.dumps(v)}" for k, v in event.items() if k not in ("step", "event"))
