from __future__ import annotations

from pathlib import Path

import pytest

from medseg.errors import ConfigError
from medseg.serve.tokens import Tokens, new_token

ONE, OTHER = "0123456789abcdef", "fedcba9876543210"


def test_each_token_of_a_file_is_an_owner_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"# radiology\n{ONE}\n\n  {OTHER}  \n")
    tokens = Tokens.read(file)
    owners = [tokens.owner(f"Bearer {token}") for token in (ONE, OTHER)]
    assert None not in owners
    assert owners[0] != owners[1]
    assert all(ONE not in str(owner) for owner in owners)


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", ONE, f"Basic {ONE}", f"Bearer {ONE}x", f"Bearer {ONE[:-1]}", "Bearer ä"],
)
def test_other_headers_have_no_owner(header: str | None) -> None:
    assert Tokens([ONE]).owner(header) is None


@pytest.mark.parametrize(
    "content", ["", "# only a remark\n", "short\n", f"{ONE} {OTHER}\n", "0123456789abcdeä\n"]
)
def test_files_without_a_suitable_token_are_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "tokens"
    file.write_text(content)
    with pytest.raises(ConfigError, match="Create one with") as refused:
        Tokens.read(file)
    assert "short" not in str(refused.value)  # a message must not show a token
    assert ONE not in str(refused.value)


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        Tokens.read(tmp_path / "nowhere")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(ConfigError, match="cannot be read"):
        Tokens.read(tmp_path / "binary")


def test_new_tokens_differ_and_are_accepted() -> None:
    tokens = [new_token() for _ in range(2)]
    assert tokens[0] != tokens[1]
    assert Tokens(tokens).owner(f"Bearer {tokens[1]}") is not None
