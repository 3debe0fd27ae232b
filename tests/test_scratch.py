"""Files and folders in the making: one run at a time, whole or not at all, and nothing stays of the dead."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from lean3r.errors import UsageError
from lean3r.scratch import LOCK, atomic_file, find_parts, temporary_folder

KILLED = """
import os, sys
from pathlib import Path
from lean3r.scratch import atomic_file, temporary_folder
with temporary_folder("refine") as folder, atomic_file(Path(sys.argv[1])) as part:
    (folder / "picture.jpg").write_text("private")
    part.write_text("half")
    print(folder, flush=True)
    os._exit(9)
"""


def killed(path: Path) -> Path:
    """The temporary folder of a run that was killed while it wrote a file."""
    return Path(subprocess.run([sys.executable, "-c", KILLED, path], capture_output=True, text=True).stdout.strip())


def test_the_next_run_removes_what_a_killed_one_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    notes = tmp_path / "tmp" / "lean3r-notes"
    mine = tmp_path / "tmp" / "lean3r-refine-12345678"  # as ours are called, but without a lock of ours
    for folder in (notes, mine):
        folder.mkdir()
        (folder / "a.txt").write_text("mine")
    with temporary_folder("refine") as living:
        left = killed(tmp_path / "a.bin")
        assert (left / "picture.jpg").exists() and len(find_parts(tmp_path)) == 1
        with temporary_folder("group") as folder:
            assert not left.exists() and living.is_dir() and (living / LOCK).exists() and folder != living
        with atomic_file(tmp_path / "b.bin") as part:
            assert find_parts(tmp_path) == [part]
            part.write_text("whole")
    assert {path.name for path in (tmp_path / "tmp").iterdir()} == {notes.name, mine.name}
    assert {path.name for path in tmp_path.iterdir()} == {"tmp", "b.bin"}


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    killed(path)
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as part:
        part.write_text("half")
        with pytest.raises(UsageError, match="another run is writing"), atomic_file(path):
            pytest.fail("the block must not run")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="created by another program"), atomic_file(path, overwrite=False) as part:
        part.write_text("ours")
        path.write_text("theirs")
    assert path.read_text() == "theirs"
    (tmp_path / "link").symlink_to("a.bin")
    with atomic_file(tmp_path / "link") as part:
        part.write_text("new")
    assert (tmp_path / "link").is_symlink() and path.read_text() == "new"
    assert {found.name for found in tmp_path.iterdir()} == {"a.bin", "link"}
