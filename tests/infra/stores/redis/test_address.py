from __future__ import annotations

import pytest

from infra.errors import SettingsError
from infra.stores.redis.address import RedisAddress


def test_a_url_names_server_database_and_prefix() -> None:
    address = RedisAddress.parse("redis://cache:7000/3?prefix=shop")
    assert (address.hosts, address.database, address.prefix) == ((("cache", 7000),), 3, "shop")
    assert (address.tls, address.cluster) == (False, False)


def test_what_is_not_said_is_as_usual() -> None:
    address = RedisAddress.parse("redis://cache")
    assert (address.hosts, address.database) == ((("cache", 6379),), 0)
    assert (address.user, address.password) == (None, None)


def test_credentials_are_unquoted_and_not_shown() -> None:
    address = RedisAddress.parse("rediss://worker:p%40ss@cache?ca=/etc/ca.pem")
    assert (address.user, address.password, address.ca) == ("worker", "p@ss", "/etc/ca.pem")
    assert address.tls
    assert "p@ss" not in repr(address) + str(address)


def test_a_password_may_come_alone() -> None:
    address = RedisAddress.parse("redis://:secret@cache")
    assert (address.user, address.password) == (None, "secret")


def test_several_hosts_are_a_cluster() -> None:
    address = RedisAddress.parse("redis://a:1,b:2,[::1]:3")
    assert address.cluster
    assert address.hosts == (("a", 1), ("b", 2), ("::1", 3))
    assert RedisAddress.parse("redis://a?cluster=1").cluster


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis://", "not HOST"),
        ("redis://cache:port", "not HOST"),
        ("redis://cache/shop", "number of a database"),
        ("redis://cache?set=a", "not an option"),
        ("redis://cache?cluster=yes", "cluster is 0 or 1"),
        ("redis://a,b/1", "database 0 alone"),
        ("redis://cache?prefix=", "prefix is empty"),
        ("redis://cache?ca=/x", "rediss://"),
    ],
)
def test_another_form_is_refused_in_a_line(url: str, why: str) -> None:
    with pytest.raises(SettingsError, match=why) as raised:
        RedisAddress.parse(url)
    assert "\n" not in str(raised.value)
