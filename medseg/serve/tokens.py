"""The tokens that clients of the service have to send, and who they stand for."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from medseg.errors import ConfigError, no_such_path

SHORTEST = 16
_SCHEME = "bearer"
_REMEDY = 'Create one with: python3 -c "import secrets; print(secrets.token_urlsafe(32))"'


class Tokens:
    """Accepted tokens, of which only the hashes are kept.

    Args:
        tokens: The tokens.
        where: File or variable that they come from, for messages.

    Raises:
        ConfigError: There is none, or one is shorter than 16 characters or has other characters than visible ASCII.

    Examples:
        >>> tokens = Tokens(["0123456789abcdef"])
        >>> tokens.owner("Bearer 0123456789abcdef") == tokens.owner("bearer 0123456789abcdef")
        True
        >>> tokens.owner("Bearer another") is None
        True
    """

    def __init__(self, tokens: Iterable[str], where: str = "token") -> None:
        listed = list(tokens)
        if not listed:
            raise ConfigError(f"{where}: found no token, expected one per line. {_REMEDY}")
        for number, token in enumerate(listed, start=1):
            if len(token) < SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
                raise ConfigError(
                    f"{where}: token {number}: found {len(token)} characters, expected at least {SHORTEST} of visible ASCII "
                    f"without spaces. {_REMEDY}"
                )
        self._hashes = [_hash(token) for token in listed]

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a file with one token per line; empty lines and lines that begin with ``#`` are left out.

        Args:
            path: The file.

        Returns:
            Its tokens.

        Raises:
            ConfigError: The file cannot be read, or holds no token or an unsuitable one.
        """
        path = Path(path)
        if not path.exists():
            raise ConfigError(no_such_path(path, "file", expected="one token per line"))
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{path}: cannot be read ({type(error).__name__}), expected a text file with one token per line. Check the file."
            ) from None
        return cls((line for line in lines if line and not line.startswith("#")), str(path))

    def owner(self, authorization: str | None) -> str | None:
        """Return who sends a request.

        All tokens are compared, each in constant time, so that the time of an answer reveals nothing about them.

        Args:
            authorization: The header ``Authorization`` of the request, ``Bearer TOKEN``; None if it is missing.

        Returns:
            An identifier of the token, from which it cannot be computed; None if the token is not accepted.
        """
        scheme, _, token = (authorization or "").strip().partition(" ")
        given, found = _hash(token.strip()), None
        for known in self._hashes:
            if hmac.compare_digest(known, given) and scheme.lower() == _SCHEME:
                found = known
        return found


def new_token() -> str:
    """Return a new random token."""
    return secrets.token_urlsafe(32)


def _hash(token: str) -> str:
    return hashlib.sha256(b"medseg serve " + token.encode("utf-8", "surrogateescape")).hexdigest()
