"""``medseg serve``: predict images that are sent over HTTP, with a page for browsers."""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from medseg.cli.early_checks import not_negative, positive, require_paths
from medseg.errors import ConfigError, DataError, ModelError

if TYPE_CHECKING:
    from medseg.io.dicomweb.address import Address
    from medseg.io.dicomweb.server import DicomWeb
    from medseg.serve.settings import ModelSettings, ServiceSettings
    from medseg.serve.tokens import Tokens

VARIABLE = "MEDSEG_TOKEN"
_PACKAGES = ("fastapi", "uvicorn", "python_multipart")
_DICOMWEB_PACKAGES = ("dicomweb_client", "highdicom", "pydicom")
_LAST_PORT = 65535


def add_parser(commands: Any) -> None:
    """Add the command and its options to the parser."""
    parser = commands.add_parser(
        "serve",
        help="predict images that are sent over HTTP, with a page for browsers",
        description="Predict images that are sent over HTTP, one after the other, with a page for browsers. Every request needs a token. "
        "Needs medseg[serve].",
    )
    parser.add_argument(
        "served",
        nargs="+",
        metavar="MODEL or key=value",
        help="model folders; and prediction settings that replace the models' own, such as engine=openvino",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)"
    )
    parser.add_argument(
        "--port", type=not_negative, default=8000, help="port; 0 for a free one (default: 8000)"
    )
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        help=f"file with one token per line; each sees its own jobs only (default: the variable {VARIABLE}, or a new token, which is "
        "printed)",
    )
    parser.add_argument(
        "--folder",
        metavar="FOLDER",
        help="folder of uploads and results (default: medseg/serve in the user's cache)",
    )
    parser.add_argument(
        "--dicomweb",
        metavar="URL",
        help="address of a DICOMweb server whose series are predicted on request and that stores the results; credentials come from the variables "
        "MEDSEG_DICOMWEB_USER and MEDSEG_DICOMWEB_PASSWORD, or MEDSEG_DICOMWEB_TOKEN; needs medseg[dicom]",
    )
    _add_limits(parser)
    parser.add_argument("--device", help="device, such as cpu or cuda:0 (default: CUDA if available)")
    parser.add_argument(
        "--max-memory",
        metavar="SIZE",
        help="maximum resident memory of the prediction process, such as 6GB (default: half of the free memory)",
    )
    parser.add_argument(
        "--max-device-memory",
        metavar="SIZE",
        help="maximum memory on a CUDA device, such as 8GB (default: nine tenths of the free memory)",
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-upload", default="2GB", metavar="SIZE", help="largest upload (default: 2GB)")
    parser.add_argument(
        "--max-queue",
        type=positive,
        default=100,
        metavar="N",
        help="largest number of jobs that wait; further ones are refused (default: 100)",
    )
    parser.add_argument(
        "--max-disk",
        default="20GB",
        metavar="SIZE",
        help="disk space of all jobs; uploads beyond it are refused (default: 20GB)",
    )
    parser.add_argument(
        "--timeout", default="1h", metavar="TIME", help="longest time of a prediction (default: 1h)"
    )
    parser.add_argument(
        "--keep", default="24h", metavar="TIME", help="time after which results are deleted (default: 24h)"
    )


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    models, settings = _checked(options)
    address = _dicomweb_address(options.dicomweb)
    tokens, printed = _tokens(options.token_file)
    _state_licences(models.folders)
    from medseg.io.dicomweb.server import DicomWeb
    from medseg.serve.event_log import EventLog
    from medseg.serve.service import Service
    from medseg.serve.web.run_server import listen, run_server
    from medseg.serve.worker.model_worker import ModelWorker
    from medseg.storage.lock import RunLock

    with listen(options.host, options.port) as listening:
        settings.folder.mkdir(parents=True, exist_ok=True)
        with RunLock(settings.folder, "service"):
            dicomweb = None if address is None else DicomWeb(address)
            service = Service(settings, tokens, ModelWorker(models), EventLog(), dicomweb)

            def ready() -> None:
                names = ", ".join(one.id for one in service.queue.models)
                print(f"models: {names}\nfolder: {settings.folder}")
                if dicomweb is not None:
                    print(_shown(dicomweb))
                if not options.host.startswith("127.") and options.host not in ("localhost", "::1"):
                    print(
                        "the connection is not encrypted: let others reach it through a proxy with TLS only"
                    )
                print(f"open: {_address(options.host, listening.getsockname()[1], printed)}", flush=True)

            run_server(service, listening, ready)
    return 0


def _state_licences(folders: Sequence[str]) -> None:
    """State the licences that exclude commercial use here, because models are loaded in another process."""
    from medseg.model_folder.folder import find_model_folder
    from medseg.model_folder.licences import state_licences
    from medseg.model_folder.settings import SavedModel

    for folder in folders:
        state_licences(SavedModel.load(find_model_folder(folder) / "config.yaml"), folder)


def _address(host: str, port: int, token: str) -> str:
    """Return the address of the page, with the token as fragment if it was created here."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/{f'#token={token}' if token else ''}"


def _dicomweb_address(url: str | None) -> Address | None:
    """Check the address of the DICOMweb server and what it needs; None without one."""
    if url is None:
        return None
    from medseg.io.dicomweb.address import read_address

    address = read_address(url, "--dicomweb")
    missing = [name for name in _DICOMWEB_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--dicomweb: found no {missing[0].replace('_', '-')}, expected this package for DICOM. Install it: pip install 'medseg[dicom]'."
        )
    return address


def _shown(server: DicomWeb) -> str:
    """Return what is printed about a DICOMweb server at the start: its address, and what is wrong with it."""
    lines = [f"DICOMweb: {server.address.url}"]
    if server.address.is_open:
        lines.append(
            "the connection to the DICOMweb server is not encrypted: use https, or a server of this machine"
        )
    try:
        server.studies(limit=1)
    except DataError as error:
        lines.append(f"the DICOMweb server does not answer yet: {error}")
    return "\n".join(lines)


def _checked(options: argparse.Namespace) -> tuple[ModelSettings, ServiceSettings]:
    """Check what can be checked without a model, and return the settings."""
    from pathlib import Path

    from medseg.cli.prediction.predict_checks import images_and_settings
    from medseg.runtime.memory import parse_size
    from medseg.serve.settings import ModelSettings, ServiceSettings, default_folder, parse_duration

    folders, settings = images_and_settings(options.served)
    if not folders:
        raise ConfigError("MODEL: found none, expected at least one model folder. Give it.")
    require_paths(folders, "folder", expected="a model folder", error=ModelError)
    require_paths([options.token_file], "file", expected="one token per line", error=ConfigError)
    if options.port > _LAST_PORT:
        raise ConfigError(f"--port: found {options.port}, expected at most {_LAST_PORT}. Give another port.")
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"serve: found no {missing[0]}, expected this package for the service. Install it: pip install 'medseg[serve]'."
        )
    for name in ("max_memory", "max_device_memory"):
        if getattr(options, name) is not None:
            parse_size(getattr(options, name), f"--{name.replace('_', '-')}")
    models = ModelSettings(
        tuple(map(str, folders)),
        settings,
        options.device,
        options.max_memory,
        options.max_device_memory,
    )
    return models, ServiceSettings(
        Path(options.folder).absolute() if options.folder else default_folder(),
        parse_size(options.max_upload, "--max-upload"),
        options.max_queue,
        parse_size(options.max_disk, "--max-disk"),
        parse_duration(options.timeout, "--timeout"),
        parse_duration(options.keep, "--keep"),
    )


def _tokens(file: str | None) -> tuple[Tokens, str]:
    """Return the accepted tokens, and the one that was created here, or an empty text."""
    from medseg.serve.tokens import Tokens, new_token

    if file is not None:
        return Tokens.read(file), ""
    given = os.environ.get(VARIABLE)
    if given:
        return Tokens([given], VARIABLE), ""
    token = new_token()
    return Tokens([token]), token
