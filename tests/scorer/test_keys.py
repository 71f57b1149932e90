from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from infra.errors import SettingsError
from scorer.keys import REMEMBERED, KeyFile, read_keys
from tests.scorer.conftest import Clock

DIGEST = hashlib.sha256(b"open sesame").hexdigest()
OTHER = hashlib.sha256(b"another").hexdigest()


def written(path: Path, text: str) -> Path:
    """A file replaced by rename, as those that rotate keys do."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(
        tmp_path / "keys.toml", f'[shop]\nsha256 = "{DIGEST}"\nscopes = ["rank"]\nper_s = 2\n'
    )


def test_a_key_is_its_callers(path: Path) -> None:
    keys = KeyFile(path)
    for _ in range(2):
        caller = keys.caller("open sesame")
        assert caller is not None
        assert (caller.name, set(caller.scopes)) == ("shop", {"rank"})
        assert keys.caller("open sesam") is None
        assert keys.caller(DIGEST) is None


def test_a_key_is_exchanged_without_a_restart(path: Path) -> None:
    clock = Clock()
    keys = KeyFile(path, clock)
    assert keys.caller("open sesame") is not None
    written(path, f'[shop]\nsha256 = ["{OTHER}"]\nscopes = ["rank"]\n')
    assert keys.caller("another") is None, "it was looked at a moment ago"
    clock.now = 1.0
    assert keys.caller("open sesame") is None
    assert keys.caller("another") is not None


def test_both_keys_hold_while_one_is_exchanged(path: Path) -> None:
    written(path, f'[shop]\nsha256 = ["{DIGEST}", "{OTHER}"]\nscopes = ["rank"]\n')
    keys = KeyFile(path)
    assert keys.caller("open sesame") == keys.caller("another")


@pytest.mark.parametrize("text", ["[shop", "[shop]\nsha256 = 1\n", None])
def test_a_change_that_cannot_be_read_leaves_the_keys_before(path: Path, text: str | None) -> None:
    clock = Clock()
    keys = KeyFile(path, clock)
    if text is None:
        path.unlink()
    else:
        written(path, text)
    clock.now = 1.0
    assert keys.caller("open sesame") is not None
    written(path, "")
    clock.now = 2.0
    assert keys.caller("open sesame") is None


def test_a_change_elsewhere_gives_nobody_a_burst(path: Path) -> None:
    clock = Clock()
    keys = KeyFile(path, clock)
    before = keys.caller("open sesame")
    written(path, path.read_text() + f'[b]\nsha256 = "{OTHER}"\nscopes = []\n')
    clock.now = 1.0
    after = keys.caller("open sesame")
    assert before is not None
    assert after is not None
    assert before.rate is after.rate is not None


def test_few_keys_are_remembered(path: Path) -> None:
    digests = [hashlib.sha256(b"%d" % i).hexdigest() for i in range(REMEMBERED + 10)]
    written(path, f"[many]\nsha256 = {digests}\nscopes = []\n".replace("'", '"'))
    keys = KeyFile(path)
    for i in range(REMEMBERED + 10):
        assert keys.caller(str(i)) is not None
        assert keys.caller(f"wrong {i}") is None
    assert len(keys._remembered) == REMEMBERED
    assert keys.caller("0") is not None


def test_no_key_is_shown(path: Path) -> None:
    keys = KeyFile(path)
    keys.caller("open sesame")
    assert "sesame" not in repr(keys)
    assert DIGEST not in repr(keys)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x", "is not TOML"),
        (f'["a b"]\nsha256 = "{DIGEST}"\nscopes = []', "the name 'a b'"),
        ("shop = 1", "[shop]: Expected `object`"),
        ("[shop]\nscopes = []", "missing required field `sha256`"),
        (f'[shop]\nsha256 = "{DIGEST}"\nscopes = []\nkey = "open sesame"', "unknown field `key`"),
        ('[shop]\nsha256 = "open sesame"\nscopes = []', "must be 64 hexadecimal digits"),
        ("[shop]\nsha256 = []\nscopes = []", "must be 64 hexadecimal digits"),
        (f'[shop]\nsha256 = "{DIGEST}"\nscopes = ["root"]', "'root' is none of rank, rank:MODEL"),
        (f'[shop]\nsha256 = "{DIGEST}"\nscopes = []\nper_s = 0', "per_s must be more than 0"),
        (f'[shop]\nsha256 = "{DIGEST}"\nscopes = []\nper_s = nan', "per_s must be more than 0"),
        (f'[shop]\nsha256 = "{DIGEST}"\nscopes = []\nburst = 3', "burst must be at least 1"),
        (
            f'[a]\nsha256 = "{DIGEST}"\nscopes = []\n[b]\nsha256 = "{DIGEST}"\nscopes = []',
            "[b] has the key of [a]",
        ),
    ],
)
def test_a_file_that_is_wrong_says_where(path: Path, text: str, said: str) -> None:
    written(path, text)
    with pytest.raises(SettingsError) as caught:
        read_keys(path)
    message = str(caught.value)
    assert message.startswith(f"scorer.keys = {str(path)!r}: ")
    assert said in message
    assert "sesame" not in message
    assert "\n" not in message


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=os.strerror(2)):
        KeyFile(tmp_path / "none.toml")
