"""The HTTP API of the service."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, StreamingResponse
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medseg.errors import DiskFullError, MedsegError
from medseg.runtime.machine import installed_version
from medseg.serve.refusals import RequestRefused, UploadEnded
from medseg.serve.service import Service
from medseg.serve.web.dicomweb_app import add_dicomweb
from medseg.serve.web.pages import api_page, content_policy, start_page
from medseg.serve.web.receive_upload import receive_upload

_TICK = 0.25  # seconds between two looks at a job whose events are sent
_ALIVE = 15.0  # seconds between two signs of life
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {
                            "type": "string",
                            "format": "binary",
                            "description": "An image, or a zip archive of one DICOM series.",
                        },
                        "model": {
                            "type": "string",
                            "description": "Identifier of the model; not needed if there is only one.",
                        },
                        "series": {
                            "type": "string",
                            "description": "Number or UID of the DICOM series, if the archive holds several.",
                        },
                        "format": {
                            "type": "string",
                            "default": "nii.gz",
                            "description": "File format of the label map: nii.gz, nrrd, seg.nrrd; of a DICOM series also seg.dcm, labelmap.dcm, rtstruct.dcm.",
                        },
                    },
                }
            }
        },
    }
}


def create_app(service: Service) -> FastAPI:
    """Return the application of a service.

    Args:
        service: The service, which the caller starts and stops.

    Returns:
        An ASGI application. No page of it loads anything from another host, which is why FastAPI's own pages are off.
    """
    app = FastAPI(
        title="medseg",
        version=installed_version(),
        description="Predict label maps of medical images.",
        docs_url=None,
        redoc_url=None,
    )
    _add_pages(app, service)
    _add_jobs(app, service)
    _add_files(app, service)
    if service.transfers is not None:
        add_dicomweb(app, service, service.transfers, _owner(service))

    app.add_middleware(_SafeHeaders)

    @app.exception_handler(MedsegError)
    async def answer(request: Request, error: MedsegError) -> JSONResponse:
        return _refusal(service, error)

    @app.exception_handler(RequestValidationError)
    async def answer_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(one) for one in first["loc"])
        return JSONResponse({"detail": f"{where}: {first['msg']}. Correct the request."}, 422)

    return app


class _SafeHeaders:
    """Middleware that adds the headers by which browsers restrict what a page may do.

    Args:
        app: The application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in {**_HEADERS, "Content-Security-Policy": content_policy()}.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _refusal(service: Service, error: MedsegError) -> JSONResponse:
    """Return the answer to a request that is refused or could not be fulfilled."""
    if isinstance(error, RequestRefused):
        headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
        return JSONResponse({"detail": str(error)}, error.status, headers)
    if isinstance(error, UploadEnded):
        return JSONResponse({"detail": str(error)}, 400)
    service.log("error", place=type(error).__name__)
    if isinstance(error, DiskFullError):
        return JSONResponse({"detail": "disk: full. Try again later."}, 507)
    return JSONResponse({"detail": "the service met an error. Ask its administrator."}, 500)


def _owner(service: Service) -> Any:
    """Return the dependency that requires a token and gives its identifier."""

    def owner(request: Request) -> str:
        found = service.tokens.owner(request.headers.get("authorization"))
        if found is None:
            raise RequestRefused(401, "token: found none that is accepted. Send Authorization: Bearer TOKEN.")
        return found

    return Depends(owner)


def _add_pages(app: FastAPI, service: Service) -> None:
    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def start() -> str:
        return start_page(service.transfers is not None)

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    def docs() -> str:
        return api_page(app.openapi())

    @app.get("/health", summary="Return whether the service works; needs no token")
    def health() -> JSONResponse:
        working = service.is_working
        return JSONResponse({"status": "ok" if working else "stopped"}, 200 if working else 503)


def _add_jobs(app: FastAPI, service: Service) -> None:
    accepted = _owner(service)

    @app.get("/api/models", summary="List the models with their channels and labels")
    def models(owner: str = accepted) -> list[dict[str, Any]]:
        return service.models()

    @app.post("/api/jobs", status_code=201, summary="Upload an image", openapi_extra=_FORM)
    async def create(request: Request, owner: str = accepted) -> dict[str, Any]:
        return service.view(await receive_upload(service, request, owner))

    @app.get("/api/jobs", summary="List the jobs of this token, the newest first")
    def jobs(owner: str = accepted) -> list[dict[str, Any]]:
        return [service.view(job) for job in service.store.jobs(owner)]

    @app.get("/api/jobs/{job_id}", summary="Return state, position in the queue and progress of a job")
    def job(job_id: str, owner: str = accepted) -> dict[str, Any]:
        return service.view(service.store.get(job_id, owner))

    @app.delete("/api/jobs/{job_id}", status_code=204, summary="Delete a job; a prediction is stopped")
    def delete(job_id: str, owner: str = accepted) -> None:
        service.delete(job_id, owner)


def _add_files(app: FastAPI, service: Service) -> None:
    accepted = _owner(service)

    @app.get("/api/jobs/{job_id}/events", summary="Stream the job as server-sent events until it is finished")
    def events(job_id: str, owner: str = accepted) -> StreamingResponse:
        service.store.get(job_id, owner)
        return StreamingResponse(_events(service, job_id, owner), media_type="text/event-stream")

    @app.get("/api/jobs/{job_id}/result", summary="Return the label map")
    def result(job_id: str, owner: str = accepted) -> FileResponse:
        job, path = service.result(job_id, owner)
        kind = "application/dicom" if job.suffix.endswith(".dcm") else "application/octet-stream"
        return FileResponse(path, media_type=kind, filename=path.name)

    @app.get("/api/jobs/{job_id}/report", summary="Return the page with the viewer")
    def report(job_id: str, owner: str = accepted) -> FileResponse:
        return FileResponse(service.result(job_id, owner, report=True)[1], media_type="text/html")


async def _events(service: Service, job_id: str, owner: str) -> AsyncIterator[str]:
    """Yield a job as an event whenever it changes, until it is finished or deleted, or the service ends."""
    last, quiet = "", 0.0
    while not service.is_ending:
        try:
            job = service.store.get(job_id, owner)
        except RequestRefused:
            yield "event: deleted\ndata: {}\n\n"
            return
        shown = json.dumps(service.view(job))
        if shown != last:
            yield f"event: job\ndata: {shown}\n\n"
            last, quiet = shown, 0.0
        elif quiet >= _ALIVE:
            yield ": alive\n\n"
            quiet = 0.0
        if job.is_finished:
            return
        await asyncio.sleep(_TICK)
        quiet += _TICK
