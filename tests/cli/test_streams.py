"""A command ends with its work, whoever reads what it says, or nobody."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lean3r.cli import main as command
from lean3r.cli.main import main
from lean3r.cli.streams import steady_streams


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("--version >&-", 0),
        ("--version | true", 0),
        ("--version > /dev/full", 2),
        ("data check /nowhere 2>&-", 3),
        ("data check /nowhere >&- 2>&-", 3),
        ("data check /nowhere 2>&1 >/dev/null | true", 3),
    ],
)
def test_streams_that_are_closed_or_full(ending: str, code: int) -> None:
    if "/dev/full" in ending and not Path("/dev/full").exists():
        pytest.skip("a full disk is imitated by a device of Linux")
    line = f"set -o pipefail; {sys.executable} -m lean3r {ending}"
    run = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert run.returncode == code, run.stderr
    assert "Traceback" not in run.stderr and not run.stdout.startswith("error")


def test_what_is_said_to_nobody_does_not_end_a_run() -> None:
    code = (
        "import sys\nfrom lean3r.cli.streams import steady_streams\nwith steady_streams():\n"
        "    for step in range(9):\n        print('step', step, file=sys.stderr, flush=True)\n    print('done')\n"
    )
    line = f'set -o pipefail; {sys.executable} -c "$0" 2> >(head -c 1 >/dev/null; exec 0<&-)'
    assert subprocess.run(["bash", "-c", line, code], capture_output=True, text=True).stdout == "done\n"
    with steady_streams():
        assert not sys.stderr.isatty()  # as progress bars ask


def test_a_broken_pipe_inside_a_run_is_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a process that died; only the reader of what is printed may leave."""

    def breaks(argv: object) -> int:
        raise BrokenPipeError("a process is gone")

    monkeypatch.setattr(command, "run", breaks)
    assert main(["models"]) == 1
    assert "a process is gone" in capsys.readouterr().err
