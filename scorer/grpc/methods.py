"""The methods of the Open Inference Protocol, one function each.

What they raise becomes a status in `scorer.grpc.calls`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from scorer.grpc import open_inference_pb2 as pb
from scorer.grpc.admission import read_head, turn
from scorer.grpc.calls import Context
from scorer.grpc.kserve import KServe
from scorer.http.app import with_context
from scorer.inference import Inference, check_model, metadata
from scorer.ranking import Ranker
from scorer.service import Service
from scorer.triton import own_version
from scorer.turns import Turns

SERVICE: Final = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
"""The protocol's service."""

EXTENSIONS: Final = ["model_configuration", "model_repository", "statistics"]
"""Triton's names of what is answered beyond the protocol itself."""

DATA_TYPES: Final = {"BYTES": "TYPE_STRING"}
"""Datatypes that a model's configuration calls by another name than TYPE_ and their own."""

DEGRADED: Final = (("lifelong-degraded", "store"),)
"""The trailer of an answer that was made without the store."""


class Methods:
    """Answers the methods of `SERVICE`. Used from the event loop of its process."""

    def __init__(self, service: Service, max_candidates: int, turns: Turns) -> None:
        self._service = service
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
        return pb.ServerMetadataResponse(
            name="lifelong", version=own_version(), extensions=EXTENSIONS
        )

    async def model_metadata(
        self, request: pb.ModelMetadataRequest, _context: Context
    ) -> pb.ModelMetadataResponse:
        told = _metadata(self._named(request.name, request.version))
        return pb.ModelMetadataResponse(
            name=told["name"],
            versions=told["versions"],
            platform=told["platform"],
            inputs=map(_tensor_metadata, told["inputs"]),
            outputs=map(_tensor_metadata, told["outputs"]),
        )

    async def model_infer(
        self, request: pb.ModelInferRequest, context: Context
    ) -> pb.ModelInferResponse:
        self._named(request.model_name, request.model_version)
        head = read_head(context, "ModelInfer", request.ByteSize())
        async with turn(self._turns, head):
            answer, degraded = await self._service.run(
                with_context(lambda ranker: self._kserve.answer(ranker, request))
            )
        if degraded:
            context.set_trailing_metadata(DEGRADED)
        return answer

    async def model_config(
        self, request: pb.ModelConfigRequest, _context: Context
    ) -> pb.ModelConfigResponse:
        told = _metadata(self._named(request.name, request.version))
        config = pb.ModelConfig(name=told["name"], platform=told["platform"], backend="lifelong")
        for tensor in told["inputs"]:
            config.input.add(
                name=tensor["name"],
                data_type=_data_type(tensor["datatype"]),
                dims=tensor["shape"],
                optional=bool(tensor.get("parameters", {}).get("optional")),
            )
        for tensor in told["outputs"]:
            config.output.add(
                name=tensor["name"],
                data_type=_data_type(tensor["datatype"]),
                dims=tensor["shape"],
            )
        return pb.ModelConfigResponse(config=config)

    async def repository_index(
        self, request: pb.RepositoryIndexRequest, _context: Context
    ) -> pb.RepositoryIndexResponse:
        bundle = self._service.ranker.bundle
        reason = await self._service.readiness.reason()
        response = pb.RepositoryIndexResponse()
        if reason is None or not request.ready:
            response.models.add(
                name=bundle.manifest.name,
                version=bundle.version,
                state="READY" if reason is None else "UNAVAILABLE",
                reason=reason or "",
            )
        return response

    def _named(self, name: str, version: str) -> Ranker:
        """The ranker, if a request names its model, and its version if any."""
        ranker = self._service.ranker
        check_model(ranker, name, version)
        return ranker


def _metadata(ranker: Ranker) -> Mapping[str, Any]:
    return metadata(ranker.bundle.manifest, ranker.bundle.version)


def _tensor_metadata(told: Mapping[str, Any]) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(
        name=told["name"], datatype=told["datatype"], shape=told["shape"]
    )


def _data_type(datatype: str) -> pb.DataType:
    return pb.DataType.Value(DATA_TYPES.get(datatype, f"TYPE_{datatype}"))
