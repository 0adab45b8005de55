"""Requests to a DICOMweb server: to its address only, within limits of time and size, and with errors that name the remedy."""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from http import HTTPStatus
from typing import Any

from medseg.errors import ConfigError, DataError, MedsegError
from medseg.io.dicomweb.address import PASSWORD, TOKEN, USER, Address
from medseg.runtime.memory import format_size

_CONNECTING = 10.0  # seconds to connect
_PIECE = 1 << 16  # bytes between two looks at what limits an answer
_PART = 1 << 24  # bytes in which the library searches for the end of an image
_TAIL = 4096  # bytes in which the end of a message has to be
_CERTIFICATES = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
_QUIET: ContextVar[bool] = ContextVar("quiet", default=False)
_LOGGERS = (
    *("dicomweb_client.web", "dicomweb_client.uri", "retrying"),
    *("urllib3.connectionpool", "urllib3.connection", "pydicom"),
)

_STRUCTURED = ("application/dicom+json", "application/json", "application/dicom+xml", "application/xml")

Watch = Callable[[int], None]
"""Called with the bytes that have arrived; it raises a `MedsegError` to end the transfer."""


class DicomWebError(DataError):
    """A DICOMweb server is not reachable, refused a request, or gave an answer that cannot be used.

    Args:
        message: Where, what was found, what was expected, and what to do. It holds no UIDs.
        status: Status code of HTTP; None if there was no answer.

    Attributes:
        status: Status code of HTTP; None if there was no answer.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def require_dicomweb_client(where: str) -> None:
    """Raise unless the package that speaks to DICOMweb servers is installed.

    Args:
        where: The option or address, for the message.

    Raises:
        ConfigError: It is missing.
    """
    if importlib.util.find_spec("dicomweb_client") is None:
        raise ConfigError(
            f"{where}: found no dicomweb-client, expected this package for DICOMweb. Install it: pip install 'medseg[dicom]'."
        )


@contextmanager
def web_client(address: Address, patience: float, limit: int, watch: Watch | None = None) -> Iterator[Any]:
    """Yield a client for one operation; whatever goes wrong meanwhile becomes a `DicomWebError`.

    The client follows no redirections, uses no proxy, and reads no file with passwords, so that it speaks to the given
    address only. What the libraries log is dropped, because it holds UIDs and values of attributes.

    Args:
        address: The server.
        patience: Seconds without a byte after which an operation is given up.
        limit: Largest answer in bytes.
        watch: Called while an answer arrives.

    Yields:
        A ``dicomweb_client.DICOMwebClient``.

    Raises:
        DicomWebError: The server is not reachable, refuses, or answers something else.
    """
    require_dicomweb_client(address.url)
    import requests
    from dicomweb_client.web import DICOMwebClient

    def admitted(request: Any) -> Any:
        if address.authorization:
            request.headers["Authorization"] = address.authorization
        request.headers.pop("Host", None)  # the library leaves the port out
        return request

    with requests.Session() as session, _without_logs(), _explained(address, patience):
        session.trust_env = False
        session.max_redirects = 0
        session.auth = admitted
        session.verify = next((os.environ[name] for name in _CERTIFICATES if os.environ.get(name)), True)
        session.headers["Accept"] = (
            "application/dicom+json"  # for answers to what is stored; others ask by themselves
        )
        session.hooks["response"] = [_Watched(address, limit, watch)]
        client = DICOMwebClient(
            address.url, session=session, timeout=(_CONNECTING, patience), chunk_size=_PART
        )
        client.set_http_retry_params(retry=False)
        yield client


class _Watched:
    """A hook that counts the bytes of answers while they arrive, and requires the end of messages with several parts.

    Args:
        address: The server.
        limit: Largest answer in bytes.
        watch: Called with the bytes that have arrived.
    """

    def __init__(self, address: Address, limit: int, watch: Watch | None) -> None:
        self._address, self._limit, self._watch = address, limit, watch

    def __call__(self, response: Any, **_: Any) -> Any:
        pieces = response.iter_content
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip()
        if kind in _STRUCTURED:  # the library knows them without parameters only
            response.headers["Content-Type"] = kind

        def watched(chunk_size: int | None = _PIECE, decode_unicode: bool = False) -> Iterator[bytes]:
            received, part, tail = 0, bytearray(), b""
            for piece in pieces(_PIECE):
                received += len(piece)
                if received > self._limit:
                    raise DicomWebError(
                        f"{self._address.url}: found an answer of more than {format_size(self._limit)}, the limit. Choose a smaller series."
                    )
                if self._watch is not None:
                    self._watch(received)
                part += piece
                tail = (tail + piece)[-_TAIL:]
                if len(part) >= (chunk_size or _PART):
                    yield bytes(part)
                    part.clear()
            end = _end_of_message(response)
            if end and end not in tail:
                raise _ended_early(self._address)
            if part:
                yield bytes(part)

        response.iter_content = watched
        return response


def _end_of_message(response: Any) -> bytes:
    """Return what ends a message with several parts; nothing for other answers."""
    from requests.utils import parse_dict_header

    kind, _, options = response.headers.get("Content-Type", "").partition(";")
    if kind.strip().lower() != "multipart/related" or not response.ok:
        return b""
    found = {
        name.strip().lower(): value.strip().strip('"')
        for name, value in parse_dict_header(options.replace(";", ",")).items()
        if isinstance(value, str)
    }
    return f"--{found['boundary']}--".encode() if "boundary" in found else b""


@contextmanager
def _without_logs() -> Iterator[None]:
    """Drop what the libraries log in this thread."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(one, _QuietFilter) for one in logger.filters):
            logger.addFilter(_QuietFilter())
    token = _QUIET.set(True)
    try:
        yield
    finally:
        _QUIET.reset(token)


class _QuietFilter(logging.Filter):
    """Drops the records of threads that speak to a DICOMweb server, and no others."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is logged."""
        return not _QUIET.get()


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silence warnings of pydicom, which hold values of attributes; in one thread at a time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _explained(address: Address, patience: float) -> Iterator[None]:
    """Replace the errors of the libraries, whose texts hold UIDs and values, by ones that name the remedy."""
    from requests import exceptions

    try:
        yield
    except (MedsegError, MemoryError):
        raise
    except exceptions.HTTPError as error:
        raise refused(address, error.response.status_code) from None
    except exceptions.SSLError:
        raise DicomWebError(
            f"{address.url}: found a certificate that is not trusted, expected one of a known authority. Set {_CERTIFICATES[0]} to the file "
            "with the certificate of the authority of your institution."
        ) from None
    except exceptions.TooManyRedirects:
        raise DicomWebError(
            f"{address.url}: found a redirection to another address, expected answers from this one. Give the address at which it ends."
        ) from None
    except exceptions.RequestException as error:
        raise _not_answered(address, patience, error) from None
    except OSError:
        raise
    except Exception as error:
        raise DicomWebError(
            f"{address.url}: found an answer that breaks the DICOMweb standard ({type(error).__name__}), expected studies, series or images. Check "
            "that this is the address of the DICOMweb services, and the log of the server."
        ) from None


def _not_answered(address: Address, patience: float, error: Exception) -> DicomWebError:
    """Return the error about a server without a complete answer."""
    from requests import exceptions

    text = repr(error)
    if isinstance(error, exceptions.ReadTimeout) or "ReadTimeoutError" in text or "Read timed out" in text:
        return DicomWebError(
            f"{address.url}: found no byte for {patience:.0f} seconds, expected the rest of the answer. Try again, or check the server."
        )
    if isinstance(error, exceptions.ChunkedEncodingError | exceptions.ContentDecodingError):
        return _ended_early(address)
    if isinstance(error, exceptions.JSONDecodeError):
        return DicomWebError(
            f"{address.url}: found an answer that is not in JSON, expected the list of a search. Check that this is the address of the DICOMweb "
            "services."
        )
    return DicomWebError(
        f"{address.url}: cannot be reached ({type(error).__name__}), expected a DICOMweb server. Check the address, and that the server runs."
    )


def _ended_early(address: Address) -> DicomWebError:
    return DicomWebError(
        f"{address.url}: found the end of the answer within an image, expected all images. Try again, or check the log of the server."
    )


def refused(address: Address, status: int) -> DicomWebError:
    """Return the error about a request that a server refused.

    Args:
        address: The server.
        status: Status code of HTTP.

    Returns:
        The error, with the remedy for this status.
    """
    name = f"{status} {HTTPStatus(status).phrase}" if status in list(HTTPStatus) else str(status)
    where = f"{address.url}: the server answered with status {name}"
    if status == HTTPStatus.UNAUTHORIZED:
        found = "the credentials were not accepted" if address.authorization else "found no credentials"
        message = f"{where}: {found}. Set {USER} and {PASSWORD}, or {TOKEN}."
    elif status == HTTPStatus.FORBIDDEN:
        message = f"{where}: found a user without permission. Let the administrator of the server admit it."
    elif status == HTTPStatus.NOT_FOUND:
        message = f"{where}: found nothing at the address, expected a study or series. Check its UID, and the path of the DICOMweb services."
    elif status in (HTTPStatus.NOT_ACCEPTABLE, HTTPStatus.UNSUPPORTED_MEDIA_TYPE):
        message = (
            f"{where}: it does not offer the format, expected application/dicom. Check its configuration."
        )
    elif status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        message = f"{where}: expected 200. Try again, or check the log of the server."
    else:
        message = f"{where}: expected 200. Check the log of the server."
    return DicomWebError(message, status)
