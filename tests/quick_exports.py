"""Exports of networks take a quarter less time, as a pytest plugin.

For each graph that it exports torch makes its list of ONNX's operators anew, which takes as long as
a tiny network's graph itself. The tests export some hundred of them.
"""

from __future__ import annotations

import functools
import sys


def pytest_collection_finish() -> None:
    """Have the list made once a process, if any of its tests exports."""
    if "models.export" not in sys.modules:
        return  # torch takes seconds to import
    from torch.onnx._internal.exporter import _registration

    operators = getattr(_registration, "onnxscript_apis", None)
    if operators is not None and hasattr(operators, "get_torchlib_ops"):
        operators.get_torchlib_ops = functools.cache(operators.get_torchlib_ops)
