"""Receive the image of a job: from the network to disk, within the limits of the service."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import BinaryIO

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from medseg.errors import DiskFullError, MedsegError
from medseg.runtime.memory import format_size
from medseg.serve.job import Job
from medseg.serve.refusals import RequestRefused, UploadEnded
from medseg.serve.service import JobRequest, Service
from medseg.serve.web.multipart_stream import MultipartStream
from medseg.storage.atomic import is_full

_FORM = 64 * 1024  # bytes of a form besides its file
_TEMPORARY = "upload"


async def receive_upload(service: Service, request: Request, owner: str) -> Job:
    """Receive a form with an image and queue its prediction.

    Args:
        service: The service.
        request: The request, whose body has not been read.
        owner: Identifier of the token.

    Returns:
        The waiting job.

    Raises:
        RequestRefused: The form, the model, the format or the size is refused. No job remains.
        UploadEnded: The upload ended early; its job has failed.
    """
    length = _announced(request)
    limit = service.settings.max_upload
    if length is not None and length > limit + _FORM:
        raise _too_large(limit)
    job = await run_in_threadpool(service.store.create, owner)
    try:
        await run_in_threadpool(service.store.claim_space, job.id, length or 0)
        wanted = await _receive(service, request, job, length)
        return await run_in_threadpool(service.submit, job, wanted)
    except UploadEnded as error:
        try:
            await run_in_threadpool(service.fail_upload, job, str(error))
        except MedsegError:
            await run_in_threadpool(service.store.give_up, job.id)
        raise
    except BaseException:  # also if the service ends
        service.store.remove(job.id, "refused")
        raise


async def _receive(service: Service, request: Request, job: Job, length: int | None) -> JobRequest:
    """Write the file of a form into the folder of its job and return what the form asks for."""
    folder = service.store.folder_of(job.id)

    def check(form: MultipartStream) -> None:
        if form.file_name is not None:  # else the model may follow
            fields = {**form.fields, "model": form.fields.get("model") or _any_model(service)}
            service.check_request(fields, form.file_name)

    try:
        with (folder / _TEMPORARY).open("xb") as file:
            form = MultipartStream(request.headers.get("content-type", ""), file, check)
            received = await _read_body(service, request, job, length, form)
            await run_in_threadpool(_sync, file)
    except OSError as error:
        if is_full(error):
            raise DiskFullError("disk: full. Try again later.") from None
        raise
    if not form.is_complete:
        raise UploadEnded(
            f"upload: found its end after {received:,} bytes, within the form. Send the image again."
        )
    if form.file_name is None:
        raise RequestRefused(422, "file: found none in the form, expected one image. Add it.")
    wanted = service.check_request(form.fields, form.file_name)
    (folder / _TEMPORARY).rename(folder / wanted.upload)
    return wanted


async def _read_body(
    service: Service, request: Request, job: Job, length: int | None, form: MultipartStream
) -> int:
    """Give the body of a request to its form and return the number of its bytes."""
    received, claimed, limit = 0, length or 0, service.settings.max_upload
    try:
        async for chunk in _chunks(request.stream(), service.settings.patience):
            received += len(chunk)
            if received > limit + _FORM:
                raise _too_large(limit)
            if received > claimed:
                claimed = await run_in_threadpool(service.store.claim_beyond, job.id, received)
            form.feed(chunk)
    except ClientDisconnect:
        expected = "" if length is None else f" of {length:,}"
        raise UploadEnded(
            f"upload: the connection ended after {received:,}{expected} bytes. Send the image again."
        ) from None
    except TimeoutError:
        raise UploadEnded(
            f"upload: no byte arrived for {service.settings.patience:.0f} seconds after {received:,} bytes. Send the image again."
        ) from None
    return received


async def _chunks(stream: AsyncIterator[bytes], patience: float) -> AsyncIterator[bytes]:
    """Yield the parts of a stream; raise `TimeoutError` if one does not arrive in time."""
    iterator = aiter(stream)
    while True:
        async with asyncio.timeout(patience):
            chunk = await anext(iterator, None)
        if chunk is None:
            return
        yield chunk


def _any_model(service: Service) -> str:
    """Return a known model, to check the other fields before the model is known."""
    return service.queue.models[0].id


def _announced(request: Request) -> int | None:
    text = request.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdecimal() else None


def _too_large(limit: int) -> MedsegError:
    return RequestRefused(
        413, f"upload: found a larger file, expected at most {format_size(limit)}. Send a smaller image."
    )


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
