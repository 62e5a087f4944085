"""Fetch one file, check its SHA-256, and only then give it its name. For the init container, before Sluice starts."""

from __future__ import annotations

import hashlib
import os
import sys
import urllib.request
from pathlib import Path

CHUNK_BYTES = 1 << 20
MAX_BYTES = 2 << 30
TIMEOUT_S = 30


def fetch(url: str, sha256: str, path: Path) -> None:
    """Leave the file at `path`, or raise and leave nothing. A file that is there already and right is kept."""
    if path.is_file() and digest(path) == sha256:
        return
    if not url.startswith(("https://", "http://")):
        raise ValueError(f"{url} is not the address of a web server")
    part = path.with_name(path.name + ".part")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer, part.open("wb") as file:  # noqa: S310
            while chunk := answer.read(CHUNK_BYTES):
                file.write(chunk)
                if file.tell() > MAX_BYTES:
                    raise ValueError(f"{url} has more than {MAX_BYTES} bytes")
        if (actual := digest(part)) != sha256:
            raise ValueError(f"{url} has SHA-256 {actual}, not {sha256}: it was thrown away")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> int:
    """Read what to fetch from the environment. 1, with the reason, where it could not be fetched."""
    try:
        fetch(os.environ["MODEL_URL"], os.environ["MODEL_SHA256"], Path(os.environ["MODEL_PATH"]))
    except (OSError, ValueError) as error:
        sys.stderr.write(f"model-fetch: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
