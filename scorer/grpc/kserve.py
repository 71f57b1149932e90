"""``ModelInfer``: messages of the Open Inference Protocol to tensors and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Final

from infra.errors import RequestError
from scorer.grpc import open_inference_pb2 as pb
from scorer.inference import Inference, Inferred, Input, Output, Parameters
from scorer.limits import SHOWN_CHARS
from scorer.ranking import Ranker

CONTENTS: Final = {
    "BOOL": "bool_contents",
    "BYTES": "bytes_contents",
    "FP32": "fp32_contents",
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
}
"""Where the elements of a datatype are, unless they are raw."""


class KServe:
    """Answers inference requests: the message of one becomes that of its answer. Thread-safe."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference

    def answer(
        self, ranker: Ranker, request: pb.ModelInferRequest
    ) -> tuple[pb.ModelInferResponse, bool]:
        """Score what a message asks for. The answer's tensors are raw where the request's are.

        Returns:
            The answer, and whether it is degraded.

        Raises:
            RequestError: the message is malformed or exceeds a limit, or holds candidates that are
                not known and not to be scored; names the tensor.
            StoreError: the store did not answer, and rankings are not to be degraded.
        """
        inferred = self._inference.infer(
            ranker,
            _inputs(request),
            [output.name for output in request.outputs],
            _parameters(request.parameters),
        )
        response = _response(request.id, inferred, raw=bool(request.raw_input_contents))
        return response, inferred.degraded


def _inputs(request: pb.ModelInferRequest) -> Iterator[Input]:
    raws = request.raw_input_contents
    if raws and len(raws) != len(request.inputs):
        raise RequestError(
            "raw_input_contents", f"holds {len(raws)} tensors, expected {len(request.inputs)}"
        )
    for place, tensor in enumerate(request.inputs):
        if not raws:
            elements = partial(_elements, tensor)
            yield Input(tensor.name, tensor.datatype, tensor.shape, elements=elements)
        elif tensor.HasField("contents"):
            raise RequestError(
                tensor.name[:SHOWN_CHARS], "has contents beside raw_input_contents; send one"
            )
        else:
            yield Input(tensor.name, tensor.datatype, tensor.shape, raws[place])


def _elements(tensor: pb.ModelInferRequest.InferInputTensor) -> Any:
    """The elements, in the field of their datatype; numpy reads one of numbers as it is."""
    elements = getattr(tensor.contents, CONTENTS[tensor.datatype])
    return list(elements) if tensor.datatype == "BYTES" else elements


def _parameters(given: Mapping[str, pb.InferParameter]) -> dict[str, object]:
    return {
        name: getattr(value, choice)
        for name, value in given.items()
        if (choice := value.WhichOneof("parameter_choice")) is not None
    }


def _response(request_id: str, inferred: Inferred, *, raw: bool) -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(
        model_name=inferred.name, model_version=inferred.version, id=request_id
    )
    _write_parameters(response.parameters, inferred.parameters)
    for output in inferred.outputs:
        tensor = response.outputs.add(
            name=output.name, datatype=output.datatype, shape=output.shape
        )
        if raw:
            response.raw_output_contents.append(output.raw())
        else:
            getattr(tensor.contents, CONTENTS[output.datatype]).extend(_flat(output))
    return response


def _flat(output: Output) -> list[Any]:
    return output.values.ravel().tolist()


def _write_parameters(written: Any, parameters: Parameters) -> None:
    for name, value in parameters.items():
        if isinstance(value, bool):
            written[name].bool_param = value
        elif isinstance(value, int):
            written[name].int64_param = value
        elif isinstance(value, float):
            written[name].double_param = value
        else:
            written[name].string_param = value
