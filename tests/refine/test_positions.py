"""Positions from a table: as people write them, and what is said of tables that are not right."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from lean3r.cli.main import main
from lean3r.errors import InputError, UsageError
from lean3r.refine.options import ScaleOptions
from lean3r.refine.positions import read_positions
from lean3r.refine.scale import Place

NAMES = ["a.jpg", "left/b.jpg", "right/b.jpg"]


def table(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "positions.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    "text",
    [
        "name,lat,lon,alt\na.jpg,46.5,-91.25,198.5\nleft/b.jpg,46.6,-91,\n",
        "\ufeffImage; Longitude; Latitude; Altitude; note\n\na.jpg;-91.25;46.5;198.5;x\r\nleft\\b.jpg;-91;46.6;;\r\n",
        '#Label\tlat\tlng\theight\n"a.jpg"\t46.5\t-91.25\t198.5\nphotos/b.jpg\t1\t1\t1\nleft/b.jpg\t46.6\t-91\t \n',
    ],
)
def test_tables_as_people_write_them(tmp_path: Path, text: str, caplog) -> None:
    with caplog.at_level(logging.WARNING, "lean3r"):
        found = read_positions(table(tmp_path, text), NAMES)
    assert found == {"a.jpg": Place(46.5, -91.25, 198.5), "left/b.jpg": Place(46.6, -91.0, None)}
    assert ("not here" in caplog.text) == ("photos/" in text)


def test_tables_with_whole_paths(tmp_path: Path, caplog) -> None:
    text = "name,lat,lon\nC:\\flight\\a.jpg,46.5,-91\n/home/me/left/b.jpg,46.6,-91\nother/b.jpg,1,1\n"
    with caplog.at_level(logging.WARNING, "lean3r"):
        found = read_positions(table(tmp_path, text), NAMES)
    assert found == {"a.jpg": Place(46.5, -91.0, None), "left/b.jpg": Place(46.6, -91.0, None)}
    assert "1 rows are of pictures that are not here ('other/b.jpg')" in caplog.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("a.jpg,46.5,-91.25\n", "no column name"),
        ("name,latitude,height\na.jpg,1,2\n", "no column longitude, only name, latitude, height"),
        ("name,lat,latitude,lon\na.jpg,1,1,2\n", "two columns for latitude"),
        ("name,lat,lon\na.jpg,46.5\n", "line 2 .* has 2 columns, its header 3"),
        ("name,lat,lon\na.jpg,N46.5,-91\n", "line 2 .*the latitude is 'N46.5'; expected a number"),
        ("name,lat,lon\na.jpg,,-91\n", "line 2 .*the latitude is ''"),
        ("name,lat,lon\na.jpg,nan,-91\n", "the latitude is 'nan'"),
        ("name,lat,lon,alt\na.jpg,1,2,high\n", "the altitude is 'high'"),
        ("name,lat,lon\n\na.jpg,-191.2,46.5\n", "line 3 .*is no place on earth"),
        ("name,lat,lon\na.jpg,1,2\na.jpg,1,2\n", "line 3 .*repeats 'a.jpg', which line 2 has"),
        ("name,lat,lon\nb.jpg,1,2\n", "may mean left/b.jpg or right/b.jpg"),
        ("name,lat,lon\nz.jpg,1,2\n", "no position of these pictures: its names are 'z.jpg', and the pictures are"),
        ("name,lat,lon\n", "it has no rows"),
        (b"name,lat,lon\n\xff\xfe.jpg,1,2\n", "is not text in UTF-8"),
        (b'name,lat,lon\n"' + b"x" * 200_000 + b'",1,2\n', "damaged"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_positions(table(tmp_path, text), NAMES)


def test_a_missing_table_ends_the_run_before_it_starts(tmp_path: Path, capsys) -> None:
    (tmp_path / "photos").mkdir()
    for index in range(2):
        from PIL import Image

        Image.new("RGB", (64, 48), (index * 90, 80, 70)).save(tmp_path / "photos" / f"{index}.jpg")
    command = ["reconstruct", str(tmp_path / "photos"), "-o", str(tmp_path / "out"), "--positions"]
    assert main([*command, str(tmp_path / "none.csv")]) == 3
    assert "positions cannot be read" in capsys.readouterr().err
    assert main([*command, str(table(tmp_path, "name,lat,lon\n0.jpg,1,2\n1.jpg,1,2.1\n"))]) == 3
    assert "2 of 2 pictures have a GPS position; expected at least 3" in capsys.readouterr().err
    for crs, said in (("EPSG:32615", "--gps or --positions"), ("here", "expected auto, enu, utm or EPSG")):
        assert main([*command[:-1], "--crs", crs]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_only_one_thing_sets_the_scale(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--gps and --positions both set the scale"):
        ScaleOptions(gps=True, positions=tmp_path)
    with pytest.raises(UsageError, match="--gps sets which way is up"):
        ScaleOptions(gps=True, up="z")
    with pytest.raises(UsageError, match="--up is 'w'"):
        ScaleOptions(up="w")
