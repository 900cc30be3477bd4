"""An ONNX graph under construction, and the TFLite graph that it is read from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tflite
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 16, 8
HALF_ABOVE = 64  # constants of more numbers than this are stored in half precision
TO_CHANNELS_FIRST, TO_CHANNELS_LAST = (0, 3, 1, 2), (0, 2, 3, 1)
DTYPES = {0: np.float32, 1: np.float16, 2: np.int32, 4: np.int64}


class OnnxGraph:
    """Nodes and constants so far; every method returns the name of a value."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def constant(self, array: np.ndarray) -> str:
        """A constant; a large float one is stored in half precision and cast when the model is loaded."""
        name = f"c{len(self.constants)}"
        half = array.dtype == np.float32 and array.size > HALF_ABOVE
        self.constants.append(numpy_helper.from_array(array.astype(np.float16) if half else array, name))
        return self.add("Cast", name, to=TensorProto.FLOAT) if half else name

    def scalar(self, number: float) -> str:
        return self.constant(np.array(number, np.float32))

    def integers(self, *numbers: int) -> str:
        return self.constant(np.array(numbers, np.int64))


class TfliteGraph:
    """A TFLite file's only subgraph, with the ONNX names of what has been converted.

    Values of four axes are kept channels first (B C H W) in ONNX, channels last (B H W C) in TFLite.
    """

    def __init__(self, path: Path) -> None:
        self.model = tflite.Model.GetRootAsModel(path.read_bytes(), 0)
        self.subgraph = self.model.Subgraphs(0)
        self.onnx = OnnxGraph()
        self.names: dict[int, str] = {}
        self.constants = {
            index: self._buffer(index)
            for index in range(self.subgraph.TensorsLength())
            if self.model.Buffers(self.subgraph.Tensors(index).Buffer()).DataLength()
        }

    def shape(self, index: int) -> list[int]:
        tensor = self.subgraph.Tensors(index)
        return [int(n) for n in tensor.ShapeAsNumpy()] if tensor.ShapeLength() else []

    def _buffer(self, index: int) -> np.ndarray:
        tensor = self.subgraph.Tensors(index)
        data = self.model.Buffers(tensor.Buffer()).DataAsNumpy().tobytes()
        return np.frombuffer(data, DTYPES[tensor.Type()]).reshape(self.shape(index) or -1)

    def weights(self, index: int) -> np.ndarray:
        return self.constants[index].astype(np.float32)

    def value(self, index: int) -> str:
        """The ONNX value of a tensor, channels first."""
        if index not in self.names:
            array = self.constants[index]
            array = array.astype(np.float32) if array.dtype == np.float16 else array
            array = array.transpose(TO_CHANNELS_FIRST) if array.ndim == 4 else array
            self.names[index] = self.onnx.constant(np.ascontiguousarray(array))
        return self.names[index]

    def value_channels_last(self, index: int) -> str:
        name = self.value(index)
        return (
            self.onnx.add("Transpose", name, perm=TO_CHANNELS_LAST) if len(self.shape(index)) == 4 else name
        )

    def set_channels_last(self, index: int, name: str) -> None:
        if len(self.shape(index)) == 4:
            name = self.onnx.add("Transpose", name, perm=TO_CHANNELS_FIRST)
        self.names[index] = name
