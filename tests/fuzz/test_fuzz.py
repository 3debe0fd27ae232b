"""No damaged input ends in anything but a result, a skip or an error of lean3r's: no crash, no hang, no 2 GB."""

from __future__ import annotations

import random
import select
from pathlib import Path
from types import SimpleNamespace

import pytest

from fuzz import harness
from fuzz.readers import READERS, write_case
from fuzz.worker import read

FEW = 3
SLOW = ("command",)  # seconds a case: in the full run alone


@pytest.mark.parametrize("name", [name for name in READERS if name not in SLOW])
def test_a_few_of_each(name: str, tmp_path: Path) -> None:
    """In this process, other cases than those of the full run; nothing here would show a hang."""
    for case in range(FEW):
        folder, rng = tmp_path / str(case), random.Random(f"{name} few {case}")
        folder.mkdir()
        write_case(READERS[name], folder, rng)
        ended, what = read(READERS[name], folder, rng)
        assert ended in harness.SOUND, f"case {case}: {what}"


@pytest.mark.parametrize("name", READERS)
def test_intact_inputs_are_used(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    if not reader.is_damaged:
        pytest.skip("has no sound case")
    for path, content in reader.files(random.Random(0)).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    assert read(reader, tmp_path, random.Random(0)) == ("used", "")


def test_the_watchdog_distinguishes_hangs_crashes_and_errors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    worker, marker = tmp_path / "worker.py", tmp_path / "worker.py.hangs"
    worker.write_text(
        "import json, os, sys, time\n"
        "for case in range(int(sys.argv[3]), int(sys.argv[4])):\n"
        "    print(json.dumps({'case': case, 'folder': 'f'}), flush=True)\n"
        "    if case == 1: os.abort()\n"
        "    if case == 2: open(sys.argv[0] + '.hangs', 'w').close(); time.sleep(600)\n"
        "    ended = 'failed' if case == 3 else 'used'\n"
        "    print(json.dumps({'case': case, 'ended': ended, 'what': 'why', 'grown_mb': case}), flush=True)\n"
    )
    monkeypatch.setattr(harness, "WORKER", worker)

    def until_it_hangs(stream: list, *_: object) -> tuple[list, ...]:
        """No clock says when patience ends, but the worker, once all that it said was read."""
        hangs = False
        while not (ready := select.select(stream, [], [], 0.05))[0] and not hangs:
            hangs = marker.exists()
        if not ready[0]:
            marker.unlink()
        return ready

    monkeypatch.setattr(harness, "select", SimpleNamespace(select=until_it_hangs))
    tally = harness.run("x", 6)
    assert tally.ended == {"used": 3, "crash": 1, "hang": 1, "failed": 1} and tally.grown_mb == 5
    assert [text.split(":")[0] for text in tally.mistakes] == ["x 1", "x 2", "x 3"]


@pytest.mark.fuzz
@pytest.mark.parametrize("name", READERS)
def test_all(name: str) -> None:
    """Each case in a process with bounds on time and memory."""
    tally = harness.run(name, READERS[name].cases)
    print(f"\n{name}: {dict(tally.ended)}, at most {tally.grown_mb} MB more, {tally.seconds} s")
    assert not tally.mistakes, "\n".join(tally.mistakes[:10])


def test_a_full_run_has_ten_thousand_cases() -> None:
    assert sum(reader.cases for reader in READERS.values()) >= 10_000
