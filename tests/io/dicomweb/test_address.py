from __future__ import annotations

import pytest

from medseg.errors import ConfigError
from medseg.io.dicomweb.address import read_address


@pytest.mark.parametrize(
    ("variables", "header"),
    [
        ({}, ""),
        ({"MEDSEG_DICOMWEB_TOKEN": "secret"}, "Bearer secret"),
        ({"MEDSEG_DICOMWEB_USER": "ann", "MEDSEG_DICOMWEB_PASSWORD": "a:b"}, "Basic YW5uOmE6Yg=="),
    ],
)
def test_credentials_come_from_the_environment_and_are_not_shown(
    variables: dict[str, str], header: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    address = read_address("https://pacs.example/dicom-web/", "--dicomweb")
    assert (address.url, address.authorization) == ("https://pacs.example/dicom-web", header)
    assert repr(address) == "Address('https://pacs.example/dicom-web')"


@pytest.mark.parametrize(
    "variables",
    [
        {"USER": "ann"},
        {"PASSWORD": "secret"},
        {"USER": "ann", "PASSWORD": "secret", "TOKEN": "secret"},
        {"USER": "a:n", "PASSWORD": "secret"},
        {"TOKEN": "secret secret"},
        {"TOKEN": "secret\n"},
        {"TOKEN": "secrët"},
    ],
)
def test_credentials_that_contradict_each_other_are_refused_without_showing_them(
    variables: dict[str, str],
) -> None:
    environment = {f"MEDSEG_DICOMWEB_{name}": value for name, value in variables.items()}
    with pytest.raises(ConfigError, match="MEDSEG_DICOMWEB_") as refused:
        read_address("http://127.0.0.1/", "--dicomweb", environment)
    assert "secr" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        *("", "pacs", "pacs:8042", "ftp://pacs", "http://", "http:///dicom-web", "file:///etc/passwd"),
        *(
            "http://pacs:99999",
            "http://pacs:x",
            "http://pacs/?a=b",
            "http://pacs/#a",
            "http://pa cs",
            "http://päcs",
        ),
        "http://[::1",
    ],
)
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"--dicomweb: found .*such as http://"):
        read_address(url, "--dicomweb", {})


def test_a_password_in_the_address_is_refused_without_showing_it() -> None:
    with pytest.raises(ConfigError, match="MEDSEG_DICOMWEB_PASSWORD") as refused:
        read_address("http://ann:secret@pacs/", "--dicomweb", {})
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "is_open"),
    [
        *(("http://127.0.0.1:8042", False), ("http://[::1]:8042", False), ("http://localhost", False)),
        *(("https://pacs", False), ("http://pacs", True), ("http://10.0.0.1/dicom-web", True)),
    ],
)
def test_connections_to_other_machines_should_be_encrypted(url: str, is_open: bool) -> None:
    assert read_address(url, "--dicomweb", {}).is_open is is_open
