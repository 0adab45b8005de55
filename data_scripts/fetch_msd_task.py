"""Unpack, and optionally download, a task of the Medical Segmentation Decathlon.

The tasks are described in Antonelli et al., Nature Communications 2022, doi:10.1038/s41467-022-30695-9, which links to
their archives. Nothing is downloaded without --url. A download requires the SHA-256 of the archive, which is checked
before the archive is opened.

    python data_scripts/fetch_msd_task.py hippocampus --archive Task04_Hippocampus.tar --out data
    python data_scripts/fetch_msd_task.py 9 --url https://HOST/Task09_Spleen.tar --sha256 HASH --out data
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from tqdm import tqdm

from medseg.data.datasets.layouts import read_dataset
from medseg.errors import DataError, MedsegError, did_you_mean
from medseg.storage.archives import extract
from medseg.storage.atomic import replacing

TASKS = (
    *("Task01_BrainTumour", "Task02_Heart", "Task03_Liver", "Task04_Hippocampus", "Task05_Prostate"),
    *("Task06_Lung", "Task07_Pancreas", "Task08_HepaticVessel", "Task09_Spleen", "Task10_Colon"),
)
_CHUNK = 1 << 20
_SILENCE_SECONDS = 60


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        task = task_named(options.task)
        if (options.archive is None) == (options.url is None):
            raise DataError("source: expected exactly one of --archive and --url. Give one.")
        folder = options.out / task
        if folder.exists():
            raise DataError(
                f"{folder}: found an existing folder, expected none. Remove it, or choose another --out."
            )
        archive = options.archive or download(options.url, options.sha256, options.out / f"{task}.tar")
        if options.archive and options.sha256:
            require_hash(archive, options.sha256)
        place(archive, task, folder)
        dataset = read_dataset(folder)
    except MedsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(
        f"{folder}: {len(dataset.labelled_cases)} labelled cases, channels {', '.join(dataset.channel_names)}"
    )
    return 0


def task_named(text: str) -> str:
    """Return the full name of a task.

    Args:
        text: Its number, its full name, or the part of the name after the underscore.

    Returns:
        A name in `TASKS`.

    Raises:
        DataError: The task is unknown.
    """
    known = {name.lower(): name for name in TASKS}
    known |= {name.lower().split("_")[1]: name for name in TASKS}
    known |= {str(number): name for number, name in enumerate(TASKS, 1)}
    if text.lower() not in known:
        raise DataError(
            f"task: found {text!r}, expected a task of the Decathlon.{did_you_mean(text.lower(), known)} Give one of {', '.join(TASKS)}."
        )
    return known[text.lower()]


def download(url: str, sha256: str | None, path: Path) -> Path:
    """Download `url` to `path`, which is created only if its SHA-256 is the expected one.

    Args:
        url: Address of the archive. It and all redirects must use https.
        sha256: Expected hash, 64 hexadecimal digits.
        path: The file; if it exists, its hash is checked and nothing is downloaded.

    Returns:
        The file.

    Raises:
        DataError: An address is not https, the hash is missing or differs, or the connection fails.
    """
    if sha256 is None or not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise DataError(
            f"--sha256: found {sha256!r}, expected 64 hexadecimal digits for a download. Give the hash of the archive."
        )
    if path.exists():
        require_hash(path, sha256)
        return path
    _require_https(url)
    with replacing(path) as temporary:
        try:
            with _opener().open(url, timeout=_SILENCE_SECONDS) as answer, temporary.open("wb") as file:
                _copy(answer, file, int(answer.headers.get("Content-Length") or 0))
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            raise DataError(
                f"{url}: the download failed ({error}). Check the address and the network."
            ) from None
        require_hash(temporary, sha256)
    return path


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    """A redirect handler that only follows redirects to https."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        """Return the redirected request if the new address is https."""
        _require_https(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_HttpsOnly)


def _require_https(url: str) -> None:
    if not url.lower().startswith("https://"):
        raise DataError(f"{url}: found an address that is not https, expected an https address. Give one.")


def _copy(source: IO[bytes], target: IO[bytes], size: int) -> None:
    with tqdm(total=size or None, unit="B", unit_scale=True, disable=None) as progress:
        while chunk := source.read(_CHUNK):
            target.write(chunk)
            progress.update(len(chunk))


def require_hash(path: Path, sha256: str) -> None:
    """Raise `DataError` unless the file has this SHA-256."""
    if not path.is_file():
        raise DataError(f"{path}: found no such file. Check the path.")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256.lower():
        raise DataError(
            f"{path.name}: SHA-256: found {found}, expected {sha256.lower()}. The file is damaged or is another "
            "one. Download it again, and check the source of the expected hash."
        )


def place(archive: Path, task: str, folder: Path) -> None:
    """Unpack an archive and move the folder of the task to `folder`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpack", dir=folder.parent) as scratch:
        unpacked = extract(archive, Path(scratch) / "archive")
        if not (unpacked / task / "dataset.json").is_file():
            raise DataError(
                f"{archive}: found no {task}/dataset.json in it. Give the archive of this task, as published."
            )
        (unpacked / task).rename(folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", help="number, name or organ: 4, Task04_Hippocampus or hippocampus")
    parser.add_argument("--archive", type=Path, help="tar file, if it is already downloaded")
    parser.add_argument("--url", help="https address to download the tar file from")
    parser.add_argument("--sha256", help="expected hash; required with --url, checked with --archive")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder in which the folder of the task is created"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
