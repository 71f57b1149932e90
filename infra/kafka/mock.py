"""librdkafka's mock cluster: what takes a Kafka's place where none can run."""

from __future__ import annotations

import ctypes
from typing import Final

from confluent_kafka import cimpl

from infra.errors import BrokerError


class MockCluster:
    """librdkafka's mock cluster in this process, driven through its C interface.

    confluent-kafka gives no way from Python to create a topic on it with a chosen number of
    partitions; librdkafka's public header ``rdkafka_mock.h`` does.
    """

    def __init__(self) -> None:
        try:
            # Symbols are looked up in the extension's own dependencies: the very librdkafka.
            self._library = _declare(ctypes.CDLL(cimpl.__file__))
        except (OSError, AttributeError):
            raise BrokerError(
                "this build of confluent-kafka has no mock cluster: install Java 17 and Maven, "
                "or the wheel from PyPI"
            ) from None
        config = self._library.rd_kafka_conf_new()
        # It warns of missing bootstrap servers; this client only carries the cluster.
        self._library.rd_kafka_conf_set(config, b"log_level", b"0", None, 0)
        self._client = self._library.rd_kafka_new(0, config, None, 0)
        self._cluster = self._library.rd_kafka_mock_cluster_new(self._client, 1)
        if not self._cluster:
            raise BrokerError("librdkafka's mock cluster did not start: 127.0.0.1 has no free port")
        self.bootstrap: str = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()
        mock_clusters[self.bootstrap] = self

    def create_topic(self, name: str, partitions: int) -> None:
        code = self._library.rd_kafka_mock_topic_create(self._cluster, name.encode(), partitions, 1)
        if code != 0:
            raise BrokerError(f"the mock cluster refused topic {name}: librdkafka error {code}")

    def close(self) -> None:
        del mock_clusters[self.bootstrap]
        self._library.rd_kafka_mock_cluster_destroy(self._cluster)
        self._library.rd_kafka_destroy(self._client)


mock_clusters: Final[dict[str, MockCluster]] = {}
"""Mock clusters of this process by address: Kafka's protocol cannot create topics on them."""


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Tell ctypes the types of the C functions that `MockCluster` calls."""
    pointer, text, integer, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t
    for name, result, arguments in (
        ("rd_kafka_conf_new", pointer, []),
        ("rd_kafka_conf_set", integer, [pointer, text, text, text, size]),
        ("rd_kafka_new", pointer, [integer, pointer, text, size]),
        ("rd_kafka_destroy", None, [pointer]),
        ("rd_kafka_mock_cluster_new", pointer, [pointer, integer]),
        ("rd_kafka_mock_cluster_destroy", None, [pointer]),
        ("rd_kafka_mock_cluster_bootstraps", text, [pointer]),
        ("rd_kafka_mock_topic_create", integer, [pointer, text, integer, integer]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
