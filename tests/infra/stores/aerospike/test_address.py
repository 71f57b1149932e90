"""Where an Aerospike store lies, as its URL says."""

from __future__ import annotations

import pytest

from infra.errors import SettingsError
from infra.stores.aerospike.address import AerospikeAddress


def test_an_address_names_hosts_and_namespace() -> None:
    address = AerospikeAddress.parse("aerospike://one:3000,two:3100/test")
    assert address.hosts == (("one", 3000), ("two", 3100))
    assert (address.namespace, address.user) == ("test", None)


def test_an_address_carries_credentials_and_hides_the_password() -> None:
    address = AerospikeAddress.parse("aerospike://ann:s%40crt:x@one:3000/test")
    assert (address.user, address.password) == ("ann", "s@crt:x")
    assert "crt" not in repr(address) + str(address)


@pytest.mark.parametrize(
    "url",
    [
        "aerospike://one/test",
        "aerospike://one:port/test",
        "aerospike://one:70000/test",
        "aerospike://one:3000",
        "aerospike://one:3000/",
        "aerospike://one:3000/a/b",
        "aerospike://:3000/test",
        "aerospike://one:3000/test?lenght=5",
    ],
)
def test_a_malformed_address_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(SettingsError, match=r"^store\.url: .*HOST:PORT") as caught:
        AerospikeAddress.parse(url)
    assert "\n" not in str(caught.value)
