from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from models.bundle import PROJECTION, SCORER, make_session
from models.bundle.graphs import DEPTH, GraphRefused, check_graph

SHIPPED = Path(__file__).parents[3] / "lifelong" / "data"
X = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
Y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])


def relu(domain: str = "") -> onnx.NodeProto:
    return helper.make_node("Relu", ["x"], ["y"], domain=domain)


def model(*nodes: onnx.NodeProto, tensors: tuple[TensorProto, ...] = ()) -> onnx.ModelProto:
    graph = helper.make_graph(nodes or [relu()], "g", [X], [Y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def external() -> TensorProto:
    """Weights that are said to be in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")
    return tensor


def marked() -> TensorProto:
    """The same, where nothing says so but the mark."""
    return TensorProto(name="w", data_type=1, dims=[2], data_location=TensorProto.EXTERNAL)


def sparse(tensor: TensorProto) -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(values=tensor, dims=[2])


def within(**attribute: Any) -> onnx.ModelProto:
    """A model with a node that has an attribute."""
    node = relu()
    node.attribute.append(onnx.AttributeProto(name="a", **attribute))
    return model(node)


def function(**more: Any) -> onnx.ModelProto:
    made = model()
    made.functions.append(onnx.FunctionProto(name="f", **more))
    return made


def training(graph: onnx.GraphProto) -> onnx.ModelProto:
    made = model()
    made.training_info.append(onnx.TrainingInfoProto(algorithm=graph))
    return made


def importing(domain: str) -> onnx.ModelProto:
    made = model()
    made.opset_import.append(helper.make_opsetid(domain, 1))
    return made


def of_sparse(tensor: TensorProto) -> onnx.ModelProto:
    made = model()
    made.graph.sparse_initializer.append(sparse(tensor))
    return made


FOREIGN = model(relu("evil")).graph
ELSEWHERE = model(tensors=(external(),)).graph


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*/*.onnx")), ids=str)
def test_what_comes_with_the_package_is_taken(path: Path) -> None:
    assert path.name in {SCORER, PROJECTION}
    check_graph(path.read_bytes())


@pytest.mark.parametrize(
    "made",
    [
        model(relu("evil")),
        model(relu("com.microsoft")),
        model(relu("ai.onnx.ml")),
        importing("evil"),
        within(g=FOREIGN),
        within(graphs=[model().graph, FOREIGN]),
        function(domain="evil"),
        function(node=[relu("evil")]),
        function(opset_import=[helper.make_opsetid("evil", 1)]),
        training(FOREIGN),
    ],
)
def test_operators_of_others_are_refused(made: onnx.ModelProto) -> None:
    with pytest.raises(GraphRefused, match="are not ONNX's own"):
        check_graph(made.SerializeToString())


@pytest.mark.parametrize("tensor", [external(), marked()])
def test_values_in_other_files_are_refused(tensor: TensorProto) -> None:
    for made in (
        model(tensors=(tensor,)),
        of_sparse(tensor),
        within(t=tensor),
        within(tensors=[tensor]),
        within(sparse_tensor=sparse(tensor)),
        within(sparse_tensors=[sparse(tensor)]),
        within(g=model(tensors=(tensor,)).graph),
        training(model(tensors=(tensor,)).graph),
        function(attribute_proto=[onnx.AttributeProto(name="a", g=ELSEWHERE)]),
    ):
        with pytest.raises(GraphRefused, match="another file"):
            check_graph(made.SerializeToString())


def test_a_session_is_of_a_graph_that_was_looked_at() -> None:
    with pytest.raises(GraphRefused):
        make_session(importing("evil").SerializeToString())
    make_session(model().SerializeToString())


def test_graphs_are_nested_only_so_deep() -> None:
    graph = model().graph
    for _ in range(DEPTH // 3):
        node = relu()
        node.attribute.append(onnx.AttributeProto(name="a", g=graph))
        graph = model(node).graph
    made = model()
    made.graph.CopyFrom(graph)
    with pytest.raises(GraphRefused, match="nested"):
        check_graph(made.SerializeToString())


@pytest.mark.parametrize("key", [(1 << 32) | (7 << 3) | 2, 0 << 3 | 2, (7 << 3) | 3])
def test_a_field_that_readers_read_differently_is_refused(key: int) -> None:
    data = bytearray()
    while key > 0x7F:
        data.append(key & 0x7F | 0x80)
        key >>= 7
    with pytest.raises(GraphRefused):
        check_graph(bytes([*data, key, 0]))


def test_a_mark_in_the_lower_half_of_a_number_counts() -> None:
    tensor = TensorProto(name="w").SerializeToString() + b"\x70\x81\x80\x80\x80\x10"
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    with pytest.raises(GraphRefused, match="another file"):
        check_graph(b"\x3a" + bytes([len(graph)]) + graph)


def test_a_model_that_is_cut_off_is_refused() -> None:
    whole = model().SerializeToString()
    with pytest.raises(GraphRefused, match="cut off"):
        check_graph(whole[:-1])


@given(st.binary(max_size=200))
def test_any_bytes_are_walked_or_refused(data: bytes) -> None:
    with contextlib.suppress(GraphRefused):
        check_graph(data)
