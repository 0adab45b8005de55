"""Stress of the service: ``python benchmarks/serve.py``.

Fifty clients upload 20 MB at once. Two uploads are truncated (one connection that ends, one file that is cut), one is a zip bomb,
one has a wrong token. After some jobs are done, the service is killed with SIGKILL and started again. The table states what
became of each kind, whether all label maps are those that `medseg.load` computes, and the memory of the service.
"""

from __future__ import annotations

import argparse
import gzip
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

import medseg
from medseg.labels.label_table import Labels
from medseg.model_folder.folder import save_model
from medseg.model_folder.settings import SavedModel
from medseg.models import build_model
from medseg.runtime.text_tables import align_columns
from medseg.volumes.voxel_hash import voxel_hash

TOKEN, OTHER, WRONG = "benchmark-token-0123456789", "another-token-0123456789", "wrong-token-0123456789"
SHAPE, CHANNELS = (
    (68, 68, 68),
    8,
)  # 20 MB of float64; few voxels, because a toy network is not what is measured
PATIENCE = 1800.0
QUOTA = 2 * 10**9


def main() -> None:
    """Run the stress test and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--kill-after", type=int, default=5, metavar="JOBS")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _prepare(folder)
        _run(folder, options.clients, options.kill_after)


def _prepare(folder: Path) -> None:
    """Write tokens, two images and a model that works on a coarse grid."""
    (folder / "tokens").write_text(f"{TOKEN}\n{OTHER}\n")
    grid = medseg.Grid.from_spacing(SHAPE, (1, 1, 1))
    for index in range(2):
        data = np.random.default_rng(index).normal(size=(CHANNELS, *SHAPE))
        medseg.write(medseg.Volume(data, grid), folder / f"{index}.nii")
    options = {"channels": [4, 8], "num_blocks": 1}
    torch.manual_seed(3)
    labels = Labels.from_names({"background": 0, "liver": 1, "spleen": 2})
    values: dict[str, Any] = {
        "medseg": "0",
        "name": "toy",
        "model": {"name": "unet_3d", **options},
        "channel_names": [f"channel {index}" for index in range(CHANNELS)],
        "preprocessing": {"spacing": (8, 8, 8), "channels": [{"method": "zscore"}] * CHANNELS},
        "window": (16, 16, 16),
    }
    network = build_model("unet_3d", in_channels=CHANNELS, num_classes=3, **options)
    save_model(folder / "model", network, SavedModel.parse(values), labels)


def _run(folder: Path, clients: int, kill_after: int) -> None:
    contents = [(folder / f"{index}.nii").read_bytes() for index in range(2)]
    predictor = medseg.load(folder / "model", device="cpu")
    expected = {voxel_hash(predictor(folder / f"{index}.nii")) for index in range(2)}
    good = clients - 4
    rows = [["what", "found"]]
    with _server(folder) as server, _Memory(server.pid) as memory:
        began = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            uploads = [pool.submit(_upload, server.port, contents[index % 2]) for index in range(good)]
            cut = pool.submit(_cut_connection, server.port, contents[0])
            short = pool.submit(_upload, server.port, gzip.compress(contents[0], 1)[: 10 * 10**6], "a.nii.gz")
            bomb = pool.submit(_upload, server.port, _bomb(), "a.zip")
            wrong = pool.submit(_upload, server.port, contents[0], "a.nii", WRONG)
            answers = [one.result() for one in uploads]
            cut.result()
        seconds = time.perf_counter() - began
        statuses = Counter(status for status, _ in answers)
        rows += [
            [f"{good} good uploads at once", f"{dict(statuses)} in {seconds:.1f} s"],
            ["upload with a wrong token", str(wrong.result()[0])],
        ]
        own = answers[0][1]["id"]
        rows.append(["job of another token", str(_ask(server.port, f"/api/jobs/{own}", OTHER)[0])])
        _wait(server.port, lambda states: states["done"] >= kill_after)
        before = _jobs(server.port)
        rows.append(["memory of the service, MB", memory.described()])
        rows.append(["memory of its process, MB", memory.described_worker()])
    finished = {job["id"]: job["label_map_hash"] for job in before if job["state"] == "done"}
    rows.append(["done at SIGKILL", str(len(finished))])
    with _server(folder) as server:
        _wait(server.port, lambda states: not states.keys() - {"done", "failed"})
        jobs = {job["id"]: job for job in _jobs(server.port)}
        right = [jobs[answer["id"]]["label_map_hash"] in expected for _, answer in answers]
        kept = [jobs[job_id]["label_map_hash"] == value for job_id, value in finished.items()]
        rows += [
            ["good ones right after the restart", f"{sum(right)} of {good}"],
            ["finished ones kept", f"{sum(kept)} of {len(kept)}"],
            ["truncated file", jobs[short.result()[1]["id"]]["message"]],
            ["zip bomb", jobs[bomb.result()[1]["id"]]["message"]],
            [
                "connection that ended",
                next(j["message"] for j in jobs.values() if j["failure"] == "truncated"),
            ],
            ["upload beyond the quota", " ".join(map(str, _announce(server.port, QUOTA - 10**6)))],
        ]
    print("\n".join(align_columns(rows, "ll")))


class _Server:
    """The service in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.pid, self.port = process, process.pid, port


@contextmanager
def _server(folder: Path) -> Iterator[_Server]:
    """Start the service on a free port, and kill it with SIGKILL at the end."""
    command = [
        *(sys.executable, "-m", "medseg", "serve", str(folder / "model"), "--port", "0", "--device", "cpu"),
        *("--folder", str(folder / "jobs"), "--token-file", str(folder / "tokens")),
        *("--max-disk", f"{QUOTA // 10**6}MB"),
    ]
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ})
    try:
        assert process.stdout is not None
        found = next(filter(None, (re.match(r"open: http://[^:]+:(\d+)/", line) for line in process.stdout)))
        yield _Server(process, int(found[1]))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


class _Memory:
    """Resident memory of the service and of its prediction process, sampled several times per second."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._own: list[int] = []
        self._worker: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> _Memory:
        self._first = self._process.memory_info().rss
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(0.1):
            try:
                self._own.append(self._process.memory_info().rss)
                self._worker.append(max(one.memory_info().rss for one in self._process.children()))
            except (psutil.Error, ValueError):
                return

    def described(self) -> str:
        return f"{self._first / 1e6:.0f} before, at most {max(self._own) / 1e6:.0f}, {self._own[-1] / 1e6:.0f} at the end"

    def described_worker(self) -> str:
        return f"{self._worker[0] / 1e6:.0f} before, at most {max(self._worker) / 1e6:.0f}"


def _form(content: bytes, name: str) -> tuple[bytes, bytes]:
    head = f'--b\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
    return head + content, b"\r\n--b--\r\n"


def _headers(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}", "Content-Type": "multipart/form-data; boundary=b"}


def _upload(port: int, content: bytes, name: str = "a.nii", token: str = TOKEN) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    start, end = _form(content, name)
    connection.request(
        "POST",
        "/api/jobs",
        io.BytesIO(start + end),
        {**_headers(token), "Content-Length": str(len(start + end))},
    )
    answer = connection.getresponse()
    return answer.status, json.load(answer)


def _cut_connection(port: int, content: bytes) -> None:
    """Announce an upload and close the connection in the middle of it."""
    start, end = _form(content, "a.nii")
    lines = "".join(f"{key}: {value}\r\n" for key, value in _headers(TOKEN).items())
    with socket.create_connection(("127.0.0.1", port)) as connection:
        head = f"POST /api/jobs HTTP/1.1\r\nHost: x\r\n{lines}Content-Length: {len(start + end)}\r\n\r\n"
        connection.sendall(head.encode() + start[: len(start) // 2])


def _announce(port: int, size: int) -> tuple[int, str]:
    """Announce an upload without sending it, and return the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.putrequest("POST", "/api/jobs")
    for key, value in {**_headers(TOKEN), "Content-Length": str(size)}.items():
        connection.putheader(key, value)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, str(json.load(answer)["detail"])


def _bomb() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.dcm", "w") as member:
        for _ in range(1000):
            member.write(bytes(10**6))
    return stream.getvalue()


def _ask(port: int, path: str, token: str = TOKEN) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
    answer = connection.getresponse()
    return answer.status, json.load(answer)


def _jobs(port: int) -> list[dict[str, Any]]:
    return list(_ask(port, "/api/jobs")[1])


def _wait(port: int, reached: Any) -> None:
    """Wait until the numbers of jobs by state are as wanted."""
    end = time.monotonic() + PATIENCE
    while not reached(Counter(job["state"] for job in _jobs(port))):
        if time.monotonic() > end:
            raise SystemExit("the jobs were not done in time")
        time.sleep(0.5)


if __name__ == "__main__":
    main()
