from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from infra.errors import SettingsError
from infra.settings import ScorerSettings
from scorer.access import Access, Need, open_access
from scorer.limits import Refused
from scorer.tokens import KEEP_S, REFRESH_S, IssuedTokens, fetch_url, issued_tokens, read_keys
from tests.scorer.conftest import Clock

ISSUER, AUDIENCE = "https://login.example.com/", "lifelong"
PRIVATE = ec.generate_private_key(ec.SECP256R1())
STRANGER = ec.generate_private_key(ec.SECP256R1())
RSA = rsa.generate_private_key(65537, 2048)


def public(kid: str, key: Any = PRIVATE, **more: str) -> dict[str, Any]:
    """A key as a set has it."""
    algorithm: Any = jwt.algorithms.ECAlgorithm
    if isinstance(key, rsa.RSAPrivateKey):
        algorithm = jwt.algorithms.RSAAlgorithm
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, **more}


def token(
    key: Any = PRIVATE, algorithm: str = "ES256", kid: str | None = "one", **claims: Any
) -> str:
    """A token that is valid but for what is said otherwise; None takes a claim out."""
    said = {"sub": "shop", "iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 600}
    said |= {"scope": "openid rank"} | claims
    said = {name: value for name, value in said.items() if value is not None}
    headers = None if kid is None else {"kid": kid}
    return jwt.encode(said, key, algorithm=algorithm, headers=headers)


class Issuer:
    """Gives a set of keys, as often as it is asked."""

    def __init__(self, *keys: Mapping[str, Any]) -> None:
        self.keys = list(keys)
        self.asked = 0
        self.away = False

    def __call__(self) -> bytes:
        self.asked += 1
        if self.away:
            raise OSError("cannot be reached")
        return json.dumps({"keys": self.keys}).encode()


@pytest.fixture
def issuer() -> Issuer:
    return Issuer(public("one"))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tokens(issuer: Issuer, clock: Clock) -> IssuedTokens:
    return IssuedTokens(ISSUER, AUDIENCE, issuer, clock=clock)


async def test_a_token_tells_its_caller(tokens: IssuedTokens, issuer: Issuer) -> None:
    shown = token()
    for _ in range(2):
        caller = await tokens.caller(shown)
        assert caller is not None
        assert (caller.name, set(caller.scopes)) == ("shop", {"rank"})
    assert issuer.asked == 1


@pytest.mark.parametrize("algorithm", ["RS256", "PS256"])
async def test_a_key_may_sign_in_any_way_of_its_family(algorithm: str) -> None:
    tokens = IssuedTokens(ISSUER, AUDIENCE, Issuer(public("one", RSA)))
    assert await tokens.caller(token(RSA, algorithm)) is not None


async def test_a_key_for_one_way_is_for_no_other() -> None:
    tokens = IssuedTokens(ISSUER, AUDIENCE, Issuer(public("one", RSA, alg="RS256")))
    assert await tokens.caller(token(RSA, "PS256")) is None


def unsigned() -> str:
    whole = token()
    head = base64.urlsafe_b64encode(b'{"alg":"none","kid":"one"}').rstrip(b"=").decode()
    return f"{head}.{whole.split('.')[1]}."


@pytest.mark.parametrize(
    "shown",
    [
        "",
        "a.b.c",
        "é.é.é",
        "no token",
        token() + "x",
        token(STRANGER),
        unsigned(),
        token("a secret that is long enough for it" * 2, "HS256"),
        token(RSA, "RS256"),
        token(exp=time.time() - 60),
        token(exp=None),
        token(nbf=time.time() + 600),
        token(iss="https://other.example.com/"),
        token(iss=None),
        token(aud="other"),
        token(aud=None),
        token(sub=None),
        token(kid="other"),
    ],
)
async def test_what_is_not_valid_names_nobody(tokens: IssuedTokens, shown: str) -> None:
    assert await tokens.caller(shown) is None


@pytest.mark.parametrize(
    ("claims", "scopes"),
    [
        ({"scope": None}, set()),
        ({"scope": None, "scp": ["rank:tiny", "admin"]}, {"rank:tiny", "admin"}),
        ({"scope": None, "scp": "rank other"}, {"rank"}),
        ({"scope": 7}, set()),
    ],
)
async def test_scopes_are_those_that_we_know(
    tokens: IssuedTokens, claims: dict[str, Any], scopes: set[str]
) -> None:
    caller = await tokens.caller(token(**claims))
    assert caller is not None
    assert caller.scopes == scopes


async def test_a_client_without_a_subject_has_its_own_name(tokens: IssuedTokens) -> None:
    caller = await tokens.caller(token(sub=None, client_id="batch"))
    assert caller is not None
    assert caller.name == "batch"


async def test_a_new_key_is_fetched_once_a_minute(
    tokens: IssuedTokens, issuer: Issuer, clock: Clock
) -> None:
    assert await tokens.caller(token()) is not None
    issuer.keys.append(public("two", STRANGER))
    new = token(STRANGER, kid="two")
    assert await tokens.caller(new) is None
    assert issuer.asked == 1
    clock.now = REFRESH_S
    answers = await asyncio.gather(*(tokens.caller(new) for _ in range(5)))
    assert all(answers)
    assert issuer.asked == 2


async def test_a_key_that_was_taken_back_is_forgotten(
    tokens: IssuedTokens, issuer: Issuer, clock: Clock
) -> None:
    shown = token()
    assert await tokens.caller(shown) is not None
    issuer.keys = [public("two", STRANGER)]
    clock.now = KEEP_S
    await tokens.caller(shown)  # it does not wait for the keys
    assert tokens._fetching is not None
    await tokens._fetching
    assert await tokens.caller(shown) is None


async def test_an_issuer_that_is_away_costs_no_caller_its_key(
    tokens: IssuedTokens, issuer: Issuer, clock: Clock
) -> None:
    shown = token()
    assert await tokens.caller(shown) is not None
    issuer.away = True
    clock.now = KEEP_S
    assert await tokens.caller(token(kid="other")) is None
    assert await tokens.caller(shown) is not None
    assert await tokens.caller(token(sub="another")) is not None


async def test_a_token_without_a_key_id_is_of_the_only_key(
    tokens: IssuedTokens, issuer: Issuer
) -> None:
    await tokens.caller(token())
    assert await tokens.caller(token(kid=None)) is not None
    issuer.keys.append(public("two", STRANGER))
    both = IssuedTokens(ISSUER, AUDIENCE, issuer)
    await both.caller(token())
    assert await both.caller(token(kid=None)) is None


async def test_a_remembered_token_ends_with_its_time(issuer: Issuer) -> None:
    at = time.time()
    clock = Clock(at)
    tokens = IssuedTokens(ISSUER, AUDIENCE, issuer, now=clock)
    shown = token(exp=at - 29)  # within the leeway
    assert await tokens.caller(shown) is not None
    clock.now = at + 2
    assert shown in tokens._remembered
    await tokens.caller(shown)
    assert len(tokens._remembered) <= 1


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{}", b'{"keys": 1}', b'{"keys": [1, {"kty": "oct", "k": "eA"}]}', b"[" * 10**5],
)
def test_what_holds_no_public_key_is_no_set(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"JWKS"):
        read_keys(data)


def test_keys_for_encryption_are_no_keys_for_us() -> None:
    with pytest.raises(ValueError, match=r"no public keys"):
        read_keys(json.dumps({"keys": [public("one", use="enc")]}).encode())


async def test_settings_open_what_they_name(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": [public("one")]}))
    settings = ScorerSettings(jwt_issuer=ISSUER, jwt_audience=AUDIENCE, jwt_keys=str(path))
    access = open_access(settings, lambda: "tiny")
    assert access is not None
    assert (await access.check(token(), Need.RANK)).name == "shop"
    with pytest.raises(Refused) as caught:
        await access.check(token(STRANGER), Need.RANK)
    assert caught.value.status == 401
    with pytest.raises(Refused) as caught:
        await access.check(token(), Need.ADMIN)
    assert caught.value.status == 403


async def test_a_name_alone_needs_no_scope(tokens: IssuedTokens) -> None:
    access = Access(None, tokens, lambda: "tiny")
    assert (await access.check(token(scope=None), Need.NAME)).name == "shop"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"jwt_issuer": ISSUER}, "scorer.jwt_audience and scorer.jwt_keys must be set"),
        ({"jwt_keys": "x"}, "scorer.jwt_issuer and scorer.jwt_audience must be set"),
    ],
)
def test_a_setting_alone_is_not_enough(settings: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        open_access(ScorerSettings.model_validate(settings), str)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("http://login.example.com/jwks", "use https"),
        ("/no/such/file", "cannot be read"),
        (__file__, "is no JSON"),
    ],
)
def test_keys_that_cannot_be_had_are_one_line(keys: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        issued_tokens(ISSUER, AUDIENCE, keys)
    assert "\n" not in str(caught.value)


async def test_a_redirect_is_not_followed() -> None:
    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.0 302 Found\r\nlocation: http://127.0.0.1:1/\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(OSError, match="302"):
        await asyncio.to_thread(fetch_url, f"http://127.0.0.1:{port}/jwks")
    server.close()
