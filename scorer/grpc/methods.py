"""The methods of the Open Inference Protocol, one function each.

What they raise becomes a status in `scorer.grpc.calls`.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from prometheus_client import CollectorRegistry

from infra.metrics import Figures
from scorer.grpc import open_inference_pb2 as pb
from scorer.grpc.admission import read_head, turn
from scorer.grpc.calls import Context
from scorer.grpc.kserve import KServe
from scorer.inference import Inference, check_model, metadata
from scorer.ranking import Ranker
from scorer.service import Service
from scorer.triton import model_config, repository_index, server_metadata, statistics
from scorer.turns import Turns

SERVICE: Final = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
"""The protocol's service."""

DEGRADED: Final = (("lifelong-degraded", "store"),)
"""The trailer of an answer that was made without the store."""


Answer = TypeVar("Answer", bound=Message)


class Methods:
    """Answers the methods of `SERVICE`. Used from the event loop of its process."""

    def __init__(
        self, service: Service, max_candidates: int, registry: CollectorRegistry, turns: Turns
    ) -> None:
        self._service = service
        self._registry = registry
        self._turns = turns
        self._kserve = KServe(Inference(max_candidates))

    def table(self) -> dict[str, Any]:
        """The methods by their names in the protocol."""
        return {
            "ServerLive": self.server_live,
            "ServerReady": self.server_ready,
            "ModelReady": self.model_ready,
            "ServerMetadata": self.server_metadata,
            "ModelMetadata": self.model_metadata,
            "ModelInfer": self.model_infer,
            "ModelConfig": self.model_config,
            "ModelStatistics": self.model_statistics,
            "RepositoryIndex": self.repository_index,
        }

    async def server_live(
        self, _request: pb.ServerLiveRequest, _context: Context
    ) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def server_ready(
        self, _request: pb.ServerReadyRequest, _context: Context
    ) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=await self._service.readiness.reason() is None)

    async def model_ready(
        self, request: pb.ModelReadyRequest, _context: Context
    ) -> pb.ModelReadyResponse:
        self._named(request.name, request.version)
        return pb.ModelReadyResponse(ready=await self._service.readiness.reason() is None)

    async def server_metadata(
        self, _request: pb.ServerMetadataRequest, _context: Context
    ) -> pb.ServerMetadataResponse:
        return _message(server_metadata(), pb.ServerMetadataResponse())

    async def model_metadata(
        self, request: pb.ModelMetadataRequest, _context: Context
    ) -> pb.ModelMetadataResponse:
        bundle = self._named(request.name, request.version).bundle
        return _message(metadata(bundle.manifest, bundle.version), pb.ModelMetadataResponse())

    async def model_infer(
        self, request: pb.ModelInferRequest, context: Context
    ) -> pb.ModelInferResponse:
        # A bundle may be exchanged meanwhile: whoever names a version gets its answer.
        named = self._named(request.model_name, request.model_version)
        head = read_head(context, "ModelInfer", request.ByteSize())
        async with turn(self._turns, head):
            answer, degraded = await self._service.run(
                lambda ranker: self._kserve.answer(ranker, request), named
            )
        if degraded:
            context.set_trailing_metadata((*context.trailing_metadata(), *DEGRADED))
        return answer

    async def model_config(
        self, request: pb.ModelConfigRequest, _context: Context
    ) -> pb.ModelConfigResponse:
        bundle = self._named(request.name, request.version).bundle
        return _message({"config": model_config(bundle)}, pb.ModelConfigResponse())

    async def model_statistics(
        self, request: pb.ModelStatisticsRequest, _context: Context
    ) -> pb.ModelStatisticsResponse:
        bundle = self._service.ranker.bundle
        if request.name:
            self._named(request.name, request.version)
        told = statistics(bundle, Figures(self._registry))
        return _message(told, pb.ModelStatisticsResponse())

    async def repository_index(
        self, request: pb.RepositoryIndexRequest, _context: Context
    ) -> pb.RepositoryIndexResponse:
        bundle = self._service.ranker.bundle
        reason = await self._service.readiness.reason()
        models = repository_index(bundle, reason, ready=request.ready)
        return _message({"models": models}, pb.RepositoryIndexResponse())

    def _named(self, name: str, version: str) -> Ranker:
        """The ranker, if a request names its model, and its version if any."""
        ranker = self._service.ranker
        check_model(ranker, name, version)
        return ranker


def _message(told: dict[str, Any], answer: Answer) -> Answer:
    """An answer that says what REST says, in so far as its message has fields for it."""
    return ParseDict(told, answer, ignore_unknown_fields=True)
