"""A form with one file, written to disk while it arrives."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from medseg.serve.refusals import RequestRefused

_LONGEST_FIELD = 1024  # bytes
_FIELDS = ("model", "format", "series", "file")


class MultipartStream:
    """The parser of a form with the field ``file`` and, optionally, ``model``, ``format`` and ``series``, in any order.

    Args:
        content_type: The header ``Content-Type`` of the request.
        target: Receives the bytes of the file.
        check: Called with the fields that are known whenever one is complete or the file begins; it raises for those it
            refuses.

    Attributes:
        fields: The other fields.
        file_name: Name of the file; None until it begins.

    Raises:
        RequestRefused: The request holds no form.
    """

    def __init__(self, content_type: str, target: BinaryIO, check: Callable[[MultipartStream], None]) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise RequestRefused(
                415,
                f"body: expected a form (multipart/form-data) with the fields {', '.join(_FIELDS)}. Send one.",
            )
        self.fields: dict[str, str] = {}
        self.file_name: str | None = None
        self._target, self._check = target, check
        self._name, self._header, self._value, self._content = "", b"", b"", b""
        self._headers: dict[bytes, bytes] = {}
        self._is_complete = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._add_to_header,
                    "on_header_value": self._add_to_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._begin_content,
                    "on_part_data": self._add,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
            )
        except FormParserError:
            raise _malformed() from None

    @property
    def is_complete(self) -> bool:
        """Whether the end of the form has arrived."""
        return self._is_complete

    def feed(self, data: bytes) -> None:
        """Parse the next part of the body.

        Args:
            data: Its bytes.

        Raises:
            RequestRefused: The form is malformed, or the check refuses it.
        """
        try:
            self._parser.write(data)
        except FormParserError:
            raise _malformed() from None

    def _begin(self) -> None:
        self._name, self._content, self._headers = "", b"", {}

    def _add_to_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header, self._value = b"", b""

    def _begin_content(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        seen = self._name in self.fields or (self._name == "file" and self.file_name is not None)
        if self._name not in _FIELDS or seen:
            raise RequestRefused(
                422,
                f"form: found {'a field twice' if seen else 'an unknown field'}, expected {', '.join(_FIELDS)}, each once. Correct the form.",
            )
        if self._name == "file":
            self.file_name = options.get(b"filename", b"").decode("utf-8", "replace")
            self._check(self)

    def _add(self, data: bytes, start: int, end: int) -> None:
        if self._name == "file":
            self._target.write(memoryview(data)[start:end])
            return
        self._content += data[start:end]
        if len(self._content) > _LONGEST_FIELD:
            raise RequestRefused(
                422,
                f"{self._name}: found more than {_LONGEST_FIELD} bytes, expected a name. Correct the form.",
            )

    def _end_part(self) -> None:
        if self._name != "file":
            self.fields[self._name] = self._content.decode("utf-8", "replace")
            self._check(self)

    def _end(self) -> None:
        self._is_complete = True


def _malformed() -> RequestRefused:
    return RequestRefused(
        400, "body: found a malformed form. Send multipart/form-data with a valid boundary."
    )
