"""Where tempertilt keeps what can be made again, and how it writes files: whole or not at all."""

from __future__ import annotations

import gzip
import hashlib
import os
import secrets
import shutil
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tempertilt.errors import TemperTiltError

UNFINISHED = ".unfinished-"
DAY = 86400.0


def cache_dir() -> Path:
    """The cache: `$TEMPERTILT_CACHE`, else `$XDG_CACHE_HOME/tempertilt`, else `~/.cache/tempertilt` (not created here)."""
    if named := os.environ.get("TEMPERTILT_CACHE"):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tempertilt"


def make_dir(path: Path) -> Path:
    """Create `path` with its parents; `TemperTiltError` if it is a file or cannot be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write-{secrets.token_hex(4)}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise TemperTiltError(
            f"cannot write in the directory {str(path)!r}: {error.strerror or error}. Name another one."
        ) from error
    return path


@contextmanager
def output_directory(path: Path) -> Iterator[None]:
    """Make `path`, and take it away again if it was not there before and an error leaves it empty."""
    if path.exists() and not path.is_dir():
        raise TemperTiltError(f"--output-dir {str(path)!r} is a file; name a directory")
    existed = path.is_dir()
    make_dir(path)
    try:
        yield
    except BaseException:
        if not existed and not any(path.iterdir()):
            path.rmdir()
        raise


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one step.

    A process that is killed leaves `path` as it was; its temporary file is removed by `remove_unfinished`.
    """
    writer = f"{_machine()}-{os.getpid()}"
    temporary = path.with_name(f"{UNFINISHED}{writer}-{secrets.token_hex(6)}-{path.name}")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise TemperTiltError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_whole(path, write)


def stored(path: Path) -> Path | None:
    """The file `path`, or the compressed one beside it (`path` with .gz); None where neither is there."""
    return next((file for file in (path, path.with_name(f"{path.name}.gz")) if file.is_file()), None)


def read_stored(path: Path) -> bytes:
    """The content of the file `path`, or of the compressed one beside it.

    Raises:
        OSError: neither is there, it cannot be read, or it is not whole.
    """
    file = stored(path) or path
    content = file.read_bytes()
    if file.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, zlib.error) as error:
        raise OSError(f"{str(file)!r} is not a whole gzip file: {error}") from error


def remove_unfinished(directory: Path) -> None:
    """Remove the temporary files and directories that a killed process left in `directory`.

    What a process of this machine that still runs is writing stays, and what one of another machine has written in the last day.
    """
    for leftover in directory.glob(f"{UNFINISHED}*"):
        if _being_written(leftover):
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _being_written(path: Path) -> bool:
    machine, _, rest = path.name.removeprefix(UNFINISHED).partition("-")
    process = rest.partition("-")[0]
    if not process.isdigit():
        return False
    try:
        if machine != _machine():
            return time.time() - path.stat().st_mtime < DAY
        os.kill(int(process), 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return int(process) != os.getpid()


def _machine() -> str:
    """A short name of this machine, letters and digits."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
