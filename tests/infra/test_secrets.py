"""Secrets that settings hold, or name a file of."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from infra.errors import SettingsError
from infra.secrets import read_secret
from infra.settings import load_settings


def test_a_secret_is_itself_or_what_is_in_its_file(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("of today\n")
    secret = SecretStr(f"file:{file}")
    assert read_secret("a.b", SecretStr("plain")) == "plain"
    assert read_secret("a.b", secret) == "of today"
    file.write_text("of tomorrow")
    assert read_secret("a.b", secret) == "of tomorrow"


@pytest.mark.parametrize("held", [b"", b"\n", b"one\ntwo", b"\xff\xfe", b"x" * 70_000])
def test_what_is_no_secret_is_told_without_it(tmp_path: Path, held: bytes) -> None:
    file = tmp_path / "password"
    file.write_bytes(held)
    with pytest.raises(SettingsError) as error:
        read_secret("broker.sasl_password", SecretStr(f"file:{file}"))
    assert str(error.value) == (
        f"broker.sasl_password: {file} must hold one line of text, the secret alone"
    )


def test_a_store_s_url_may_be_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("redis://ann:hidden@127.0.0.1:6379/0\n")
    settings = load_settings({"store.url": f"file:{file}"}, environ={})
    assert settings.store.url.startswith("redis://ann:hidden@")
    assert "hidden" not in repr(settings)
    file.unlink()
    with pytest.raises(SettingsError, match=r"store.url = .* cannot be read \(No such file"):
        load_settings({"store.url": f"file:{file}"}, environ={})


def test_a_secret_that_is_none_is_masked() -> None:
    with pytest.raises(SettingsError) as error:
        load_settings({"broker.oauth_client_secret": 12345}, environ={})
    assert "12345" not in str(error.value)
