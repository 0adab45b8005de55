"""The command in a process of its own, which is killed while a job runs."""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from medseg.errors import ConfigError
from medseg.serve.web.run_server import listen
from tests.helpers.children import Program, start_program
from tests.helpers.services import ALICE, bearer, image_bytes

PATIENCE = 180.0


@dataclass
class Server:
    """A server in another process."""

    process: Program
    address: str

    def ask(self, path: str, data: bytes | None = None, kind: str = "") -> Any:
        headers = {**bearer(ALICE), **({"Content-Type": kind} if kind else {})}
        request = urllib.request.Request(f"{self.address}{path}", data, headers)
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.load(answer)

    def post(self, content: bytes) -> str:
        head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="ct.nii.gz"\r\n\r\n'
        form = head + content + b"\r\n--b--\r\n"
        return str(self.ask("api/jobs", form, "multipart/form-data; boundary=b")["id"])

    def wait_for(self, job_id: str, *states: str) -> dict[str, Any]:
        """Read the events of a job until it is in one of the states."""
        request = urllib.request.Request(f"{self.address}api/jobs/{job_id}/events", headers=bearer(ALICE))
        with urllib.request.urlopen(request, timeout=PATIENCE) as events:
            for line in events:
                if line.startswith(b"data: ") and (job := json.loads(line[6:]))["state"] in states:
                    return dict(job)
        raise AssertionError("the events ended before")


@contextmanager
def serving(model: Path, folder: Path, tokens: Path, *, held: bool = False) -> Iterator[Server]:
    """The command on a free port; ``held`` lets its predictions wait."""
    program = ["tests.helpers.held_prediction", str(folder.with_name("notes")), "0"] if held else ["medseg"]
    words = ("serve", model, "--port", "0", "--device", "cpu", "--folder", folder, "--token-file", tokens)
    process = start_program("-m", *program, *words, errors_in_output=True)
    reader = threading.Thread(target=process.stdout.read)  # so that the pipe does not fill
    try:
        printed = []
        for line in process.stdout:
            printed.append(line)
            if found := re.fullmatch(r"open: (http://127\.0\.0\.1:\d+/)\n", line):
                reader.start()
                yield Server(process, found[1])
                break
        else:
            raise AssertionError("".join(printed))
    finally:
        process.kill()
        process.wait()
        if reader.ident is not None:
            reader.join()
        process.stdout.close()


@pytest.mark.slow
def test_a_job_survives_a_kill_and_gives_the_same_labels(toy_model: Path, tmp_path: Path) -> None:
    tokens, folder, content = tmp_path / "tokens", tmp_path / "service", image_bytes(tmp_path)
    tokens.write_text(f"{ALICE}\n")
    with serving(toy_model, folder, tokens, held=True) as first:
        job_id = first.post(content)
        first.wait_for(job_id, "running")
        children = psutil.Process(first.process.pid).children(recursive=True)
        first.process.kill()
        _, alive = psutil.wait_procs(children, timeout=PATIENCE)
        assert not alive
    assert json.loads((folder / "jobs" / job_id / "job.json").read_text())["state"] == "running"

    with serving(toy_model, folder, tokens) as second:
        job = second.wait_for(job_id, "done", "failed")
        again = second.wait_for(second.post(content), "done", "failed")
        assert (job["state"], again["state"]) == ("done", "done")
        assert job["label_map_hash"] == again["label_map_hash"] != ""
        second.process.send_signal(signal.SIGTERM)
        assert second.process.wait(PATIENCE) == 143
    assert not (folder / "lock").exists()


def test_a_port_in_use_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port}: cannot be listened on"):
            listen("127.0.0.1", port)
