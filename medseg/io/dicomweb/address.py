"""Address and credentials of a DICOMweb server; importing this module loads nothing else."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from medseg.errors import ConfigError

TOKEN = "MEDSEG_DICOMWEB_TOKEN"
USER, PASSWORD = "MEDSEG_DICOMWEB_USER", "MEDSEG_DICOMWEB_PASSWORD"
_SCHEMES = ("http", "https")


@dataclass(frozen=True)
class Address:
    """Where a DICOMweb server is, and what it is sent to admit the client.

    Attributes:
        url: Address of the services, without a slash at its end.
        authorization: Value of the header ``Authorization``; empty for none. Its text is not shown by `repr`.
    """

    url: str
    authorization: str = ""

    def __repr__(self) -> str:
        return f"Address({self.url!r})"

    @property
    def is_open(self) -> bool:
        """Whether data and credentials travel to another machine without encryption."""
        parts = urlsplit(self.url)
        host = parts.hostname or ""
        return parts.scheme == "http" and not (host.startswith("127.") or host in ("localhost", "::1"))


def read_address(url: str, setting: str, environment: Mapping[str, str] | None = None) -> Address:
    """Check the address of a server, and take the credentials from the environment.

    Args:
        url: Address of the DICOMweb services, such as ``http://127.0.0.1:8042/dicom-web``.
        setting: Name of the option or argument, for messages.
        environment: Variables; None for those of this process.

    Returns:
        The address.

    Raises:
        ConfigError: The address is not one of HTTP, holds credentials, or the variables contradict each other.

    >>> address = read_address("http://127.0.0.1:8042/dicom-web/", "url", {"MEDSEG_DICOMWEB_TOKEN": "secret"})
    >>> address, address.authorization
    (Address('http://127.0.0.1:8042/dicom-web'), 'Bearer secret')
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in _SCHEMES and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if usable and "@" in parts.netloc:  # not shown, because it holds a password
        raise ConfigError(
            f"{setting}: found an address with a user or password, expected one without, because other users see command lines. Set "
            f"{USER} and {PASSWORD}, or {TOKEN}."
        )
    if (
        not usable
        or parts.query
        or parts.fragment
        or not url.isascii()
        or not url.isprintable()
        or " " in url
    ):
        raise ConfigError(
            f"{setting}: found {url[:200]!r}, expected the address of DICOMweb services, such as http://127.0.0.1:8042/dicom-web. Correct it."
        )
    return Address(url.rstrip("/"), _authorization(os.environ if environment is None else environment))


def _authorization(environment: Mapping[str, str]) -> str:
    token, user, password = (environment.get(name, "") for name in (TOKEN, USER, PASSWORD))
    if token and (user or password):
        raise ConfigError(
            f"{TOKEN}: found {USER} or {PASSWORD} as well, expected one way to log in. Unset one."
        )
    if bool(user) != bool(password):
        given, missing = (USER, PASSWORD) if user else (PASSWORD, USER)
        raise ConfigError(f"{missing}: found none, but {given}, expected both. Set it.")
    if user:
        if ":" in user:
            raise ConfigError(f"{USER}: found a colon, expected a name without. Correct it.")
        return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"
    if not token:
        return ""
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"{TOKEN}: found other characters than visible ASCII, expected a token. Correct it."
        )
    return f"Bearer {token}"
