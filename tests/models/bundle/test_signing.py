from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from extractor.systems import load_system
from infra.errors import BundleCorrupt, BundleUntrusted, SettingsError
from infra.settings import BundleSettings, Settings
from lifelong.signing import run_sign
from models.bundle import MANIFEST, SCORER, SIGNATURE, Bundle, look
from tests.bundles import tiny_bundle


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("made") / "bundle")


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "bundle")
    return tmp_path / "bundle"


def new_key(file: Path, kind: str = "ed25519", *more: str) -> Path:
    """A key as OpenSSL makes it; its public one is beside it, ``.pub``."""
    openssl("genpkey", "-algorithm", kind, *more, "-out", str(file))
    given = ("-passin", "pass:secret") if more else ()
    openssl("pkey", "-in", str(file), "-pubout", "-out", f"{file}.pub", *given)
    return file


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def public(key: Path) -> Path:
    return key.with_name(f"{key.name}.pub")


def test_a_signed_bundle_is_loaded_and_one_without_a_signature_refused(
    bundle: Path, tmp_path: Path
) -> None:
    key = new_key(tmp_path / "key.pem")
    with pytest.raises(BundleUntrusted, match=r"is not signed.*lifelong sign"):
        Bundle.load(bundle, public_key=public(key))

    told = run_sign(bundle, key, quiet=True)

    assert told["signed"]
    assert Bundle.load(bundle, public_key=public(key)).digest == Bundle.load(bundle).digest


def test_openssl_finds_the_signature_right(bundle: Path, tmp_path: Path) -> None:
    key = new_key(tmp_path / "key.pem")
    run_sign(bundle, key, quiet=True)
    files = ("-in", str(bundle / MANIFEST), "-sigfile", str(bundle / SIGNATURE))
    openssl("pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", str(public(key)), *files)


def test_a_signature_of_somebody_else_or_of_another_bundle_is_refused(
    bundle: Path, tmp_path: Path
) -> None:
    key, other = new_key(tmp_path / "key.pem"), new_key(tmp_path / "other.pem")
    run_sign(bundle, other, quiet=True)
    with pytest.raises(
        BundleUntrusted, match=r"manifest\.json\.sig is no signature.*key\.pem\.pub"
    ):
        Bundle.load(bundle, public_key=public(key))

    run_sign(bundle, key, quiet=True)
    another = tiny_bundle(tmp_path / "another", seed=1)
    shutil.copy(bundle / SIGNATURE, another)
    with pytest.raises(BundleUntrusted, match="changed since"):
        Bundle.load(another, public_key=public(key))


def test_a_file_that_was_changed_is_found_by_what_was_signed(bundle: Path, tmp_path: Path) -> None:
    key = new_key(tmp_path / "key.pem")
    run_sign(bundle, key, quiet=True)
    scorer = bytearray((bundle / SCORER).read_bytes())
    scorer[-1] ^= 1
    (bundle / SCORER).write_bytes(scorer)

    with pytest.raises(BundleCorrupt):
        Bundle.load(bundle, public_key=public(key))
    with pytest.raises(BundleCorrupt):
        run_sign(bundle, key, quiet=True)


def test_any_of_several_keys_will_do(bundle: Path, tmp_path: Path) -> None:
    """While one is exchanged for another."""
    key, other = new_key(tmp_path / "key.pem"), new_key(tmp_path / "other.pem")
    both = tmp_path / "both.pub"
    both.write_bytes(public(other).read_bytes() + public(key).read_bytes())
    run_sign(bundle, key, quiet=True)

    Bundle.load(bundle, public_key=both)


def test_keys_that_cannot_be_used_are_one_line(bundle: Path, tmp_path: Path) -> None:
    key, rsa = new_key(tmp_path / "key.pem"), new_key(tmp_path / "rsa.pem", "RSA")
    locked = new_key(tmp_path / "locked.pem", "ed25519", "-aes256", "-pass", "pass:secret")
    nowhere, noise = tmp_path / "nowhere.pem", tmp_path / "noise.pem"
    noise.write_text("nothing")
    for one in (nowhere, noise, rsa, locked, public(key)):
        with pytest.raises(SettingsError, match=f"--key .*{one.name}") as error:
            run_sign(bundle, one, quiet=True)
        assert "\n" not in str(error.value)
    run_sign(bundle, key, quiet=True)
    for one in (nowhere, noise, public(rsa), key):
        with pytest.raises(SettingsError, match=rf"bundle\.public_key = .*{one.name}") as error:
            Bundle.load(bundle, public_key=one)
        assert "\n" not in str(error.value)


def test_services_and_check_ask_for_what_the_setting_says(bundle: Path, tmp_path: Path) -> None:
    key = new_key(tmp_path / "key.pem")
    settings = Settings(bundle=BundleSettings(path=bundle, public_key=public(key)))
    with pytest.raises(BundleUntrusted):
        load_system(settings, serving=False)
    run_sign(bundle, key, quiet=True)
    assert load_system(settings, serving=False)


def test_a_signature_that_comes_later_is_another_find(bundle: Path, tmp_path: Path) -> None:
    """So that a bundle which was refused without is looked at again."""
    before = look(bundle)
    run_sign(bundle, new_key(tmp_path / "key.pem"), quiet=True)

    after = look(bundle)

    assert after != before
    assert (after.digest, after.lacking) == (before.digest, None)
