"""Requests that the service refuses."""

from __future__ import annotations

from medseg.errors import MedsegError


class RequestRefused(MedsegError):
    """A request cannot be fulfilled.

    Args:
        status: Status code of HTTP.
        message: What was found, what was expected, and what to do.

    Attributes:
        status: Status code of HTTP.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class UploadEnded(MedsegError):
    """An upload ended before it was complete; its job fails."""


def no_such_job() -> RequestRefused:
    """Return the refusal of a job that does not exist or belongs to another token."""
    return RequestRefused(404, "job: found none with this identifier. It may have been deleted.")
