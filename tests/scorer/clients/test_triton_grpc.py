from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from google.protobuf.descriptor import Descriptor

from scorer.grpc import open_inference_pb2 as pb
from tests.scorer.clients.conftest import Facts


@pytest.fixture(scope="module")
def facts(facts_of: Callable[[str], Facts]) -> Facts:
    return facts_of("triton_grpc_client.py")


def test_our_messages_have_the_fields_of_its_own(facts: Facts) -> None:
    for message in _messages(list(pb.DESCRIPTOR.message_types_by_name.values())):
        theirs = {tuple(field) for field in facts["wire"][message.full_name]}
        ours = {(one.name, one.number, one.type, one.is_repeated) for one in message.fields}
        assert ours <= theirs, message.full_name


def _messages(messages: list[Descriptor]) -> Iterator[Descriptor]:
    for message in messages:
        yield message
        yield from _messages(list(message.nested_types))


def test_it_finds_server_and_model_ready(facts: Facts) -> None:
    assert facts["live"]
    assert facts["ready"]
    assert facts["model_ready"]
    assert facts["version_ready"]


@pytest.mark.parametrize("form", ["version", "gzip", "deflate", "parameters", "async"])
def test_every_form_of_a_request_gives_the_same(facts: Facts, form: str) -> None:
    assert len(facts["ctrs"]["plain"]) == 40
    np.testing.assert_allclose(facts["ctrs"][form], facts["ctrs"]["plain"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("of", "status", "words"),
    [
        ("ready", "NOT_FOUND", "is not served here"),
        ("model", "NOT_FOUND", "is not served here"),
        ("version", "NOT_FOUND", "is not served here"),
        ("input", "INVALID_ARGUMENT", "candidates is missing among the inputs"),
        ("time", "DEADLINE_EXCEEDED", ""),
        ("load", "UNIMPLEMENTED", ""),
    ],
)
def test_a_failure_says_what_is_wrong(facts: Facts, of: str, status: str, words: str) -> None:
    assert facts["failures"][of].startswith(f"StatusCode.{status} ")
    assert words in facts["failures"][of]


def test_statistics_count_users_that_were_scored(facts: Facts) -> None:
    (model,) = facts["stats"]["model_stats"]
    assert int(model["inference_count"]) >= 9
    assert int(model["inference_stats"]["compute_infer"]["ns"]) > 0
