"""Files that are written whole or not at all, and found compressed."""

from __future__ import annotations

import gzip
import hashlib
import os
import time
from pathlib import Path

import pytest

from tempertilt.errors import TemperTiltError
from tempertilt.storage import (
    UNFINISHED,
    cache_dir,
    file_sha256,
    make_dir,
    output_directory,
    read_stored,
    remove_unfinished,
    stored,
    write_text,
    write_whole,
)


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.setenv("TEMPERTILT_CACHE", "/mine")
    assert cache_dir() == Path("/mine")
    monkeypatch.delenv("TEMPERTILT_CACHE")
    assert cache_dir() == Path("/x/tempertilt")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_dir() == Path("/home/somebody/.cache/tempertilt")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old ä")

    def half(temporary: Path) -> None:
        temporary.write_text("new")
        raise OSError(28, "No space left on device")

    with pytest.raises(TemperTiltError, match=r"cannot write .*a\.txt.*No space left"):
        write_whole(path, half)
    assert path.read_text(encoding="utf-8") == "old ä" and list(tmp_path.iterdir()) == [path]


def test_leftovers_of_killed_processes_are_removed_and_those_of_running_ones_stay(tmp_path: Path) -> None:
    names: list[str] = []

    def look(temporary: Path) -> None:
        temporary.write_text("x")
        names.append(temporary.name)

    write_whole(tmp_path / "a", look)
    machine = names[0].removeprefix(UNFINISHED).partition("-")[0]
    dead = 2**22 + 1  # above the largest process number
    leftovers = {
        f"{UNFINISHED}{machine}-{dead}-aa-a": False,
        f"{UNFINISHED}{machine}-{os.getppid()}-aa-a": True,
        f"{UNFINISHED}{machine}-{os.getpid()}-aa-a": False,
        f"{UNFINISHED}elsewhere-1-aa-a": True,
        f"{UNFINISHED}nonsense": False,
    }
    for name in leftovers:
        (tmp_path / name).touch()
    (tmp_path / f"{UNFINISHED}{machine}-{dead}-bb-folder").mkdir()
    old = tmp_path / f"{UNFINISHED}elsewhere-2-aa-a"
    old.touch()
    two_days_ago = time.time() - 2 * 86400
    os.utime(old, (two_days_ago, two_days_ago))
    remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a", *(name for name, stays in leftovers.items() if stays)}


def test_directories_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TemperTiltError, match="cannot write in the directory"):
        make_dir(tmp_path / "file" / "inside")
    assert make_dir(tmp_path / "a" / "b").is_dir() and not list((tmp_path / "a" / "b").iterdir())


def test_an_output_directory_goes_where_an_error_leaves_it_empty(tmp_path: Path) -> None:
    with pytest.raises(KeyError), output_directory(tmp_path / "new"):
        raise KeyError
    assert not (tmp_path / "new").exists()
    with pytest.raises(KeyError), output_directory(tmp_path / "half"):
        (tmp_path / "half" / "result").touch()
        raise KeyError
    assert (tmp_path / "half" / "result").is_file()
    with pytest.raises(TemperTiltError, match="is a file; name a directory"), output_directory(tmp_path / "half" / "result"):
        pass


def test_a_file_is_found_and_read_compressed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert stored(path) is None
    with pytest.raises(FileNotFoundError):
        read_stored(path)
    path.with_name("a.json.gz").write_bytes(gzip.compress(b"packed"))
    assert stored(path) == path.with_name("a.json.gz") and read_stored(path) == b"packed" == read_stored(tmp_path / "a.json.gz")
    path.write_bytes(b"plain")
    assert stored(path) == path and read_stored(path) == b"plain"


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"nothing", lambda data: data[:12] + b"\0" + data[13:]])
def test_a_damaged_compressed_file_is_an_error(tmp_path: Path, damage: object) -> None:
    (tmp_path / "a.gz").write_bytes(damage(gzip.compress(b"packed" * 50)))  # type: ignore[operator]
    with pytest.raises(OSError):
        read_stored(tmp_path / "a")


def test_checksums(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 5_000_000)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(b"x" * 5_000_000).hexdigest()
