"""Converts MediaPipe's small TFLite models to ONNX, weights in half precision.

Needs the packages tflite, onnx and flatbuffers.
Usage: python -m avatar.preview.convert.tflite_to_onnx MODEL.tflite MODEL.onnx
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tflite
from flatbuffers import flexbuffers
from onnx import TensorProto, helper

from avatar.preview.convert.attention_ops import ATTENTION_OPERATORS
from avatar.preview.convert.onnx_graph import IR_VERSION, OPSET, TO_CHANNELS_FIRST, TfliteGraph

BUILTINS = {code: name for name, code in vars(tflite.BuiltinOperator).items() if isinstance(code, int)}
RELU, RELU6, SAME = 1, 3, 0  # fused activations and padding, as TFLite numbers them
POOLS = {"MAX_POOL_2D": "MaxPool", "AVERAGE_POOL_2D": "AveragePool"}
UNARY = {"RELU": "Relu", "HARD_SWISH": "HardSwish", "LOGISTIC": "Sigmoid"}
BINARY = {"ADD": ("Add", tflite.AddOptions), "MUL": ("Mul", tflite.MulOptions)}


def _options(operator: tflite.Operator, kind: type) -> Any:
    options = kind()
    table = operator.BuiltinOptions()
    options.Init(table.Bytes, table.Pos)
    return options


def _padding(options: Any) -> str:
    return "SAME_UPPER" if options.Padding() == SAME else "VALID"


def _activated(graph: TfliteGraph, name: str, activation: int) -> str:
    o = graph.onnx
    if activation == RELU:
        return o.add("Relu", name)
    if activation == RELU6:
        return o.add("Clip", name, o.scalar(0.0), o.scalar(6.0))
    if activation:
        raise NotImplementedError(f"fused activation {activation}")
    return name


def _convolution(graph: TfliteGraph, operator: tflite.Operator, kind: str, inputs: list[int]) -> str:
    """CONV_2D or DEPTHWISE_CONV_2D."""
    depthwise = kind == "DEPTHWISE_CONV_2D"
    options = _options(operator, tflite.DepthwiseConv2DOptions if depthwise else tflite.Conv2DOptions)
    weights = graph.weights(inputs[1]).transpose((3, 0, 1, 2) if depthwise else TO_CHANNELS_FIRST)
    operands = [graph.value(inputs[0]), graph.onnx.constant(np.ascontiguousarray(weights))]
    if len(inputs) > 2 and inputs[2] >= 0:
        operands.append(graph.onnx.constant(graph.weights(inputs[2])))
    name = graph.onnx.add(
        "Conv",
        *operands,
        strides=[options.StrideH(), options.StrideW()],
        dilations=[options.DilationHFactor(), options.DilationWFactor()],
        group=len(weights) if depthwise else 1,
        kernel_shape=weights.shape[2:],
        auto_pad=_padding(options),
    )
    return _activated(graph, name, options.FusedActivationFunction())


def _pool(graph: TfliteGraph, operator: tflite.Operator, kind: str, inputs: list[int]) -> str:
    options = _options(operator, tflite.Pool2DOptions)
    return graph.onnx.add(
        POOLS[kind],
        graph.value(inputs[0]),
        kernel_shape=[options.FilterHeight(), options.FilterWidth()],
        strides=[options.StrideH(), options.StrideW()],
        auto_pad=_padding(options),
    )


def _resize(graph: TfliteGraph, operator: tflite.Operator, source: int, target: int) -> str:
    options = _options(operator, tflite.ResizeBilinearOptions)
    batch, height, width, channels = graph.shape(target)
    mode = "align_corners" if options.AlignCorners() else "asymmetric"
    return graph.onnx.add(
        "Resize",
        graph.value(source),
        "",
        "",
        graph.onnx.integers(batch, channels, height, width),
        mode="linear",
        coordinate_transformation_mode="half_pixel" if options.HalfPixelCenters() else mode,
    )


def _pad(graph: TfliteGraph, inputs: list[int]) -> str:
    pads = graph.constants[inputs[1]].reshape(-1, 2).astype(np.int64)
    pads = pads[list(TO_CHANNELS_FIRST)] if len(pads) == 4 else pads
    return graph.onnx.add("Pad", graph.value(inputs[0]), graph.onnx.constant(pads.T.reshape(-1)))


def _concatenation(graph: TfliteGraph, operator: tflite.Operator, inputs: list[int], target: int) -> str:
    axes = len(graph.shape(target))
    axis = _options(operator, tflite.ConcatenationOptions).Axis() % axes
    axis = TO_CHANNELS_FIRST.index(axis) if axes == 4 else axis
    return graph.onnx.add("Concat", *(graph.value(i) for i in inputs), axis=axis)


def _strided_slice(graph: TfliteGraph, operator: tflite.Operator, inputs: list[int]) -> str:
    options = _options(operator, tflite.StridedSliceOptions)
    begin, end, step = (graph.constants[i].astype(np.int64) for i in inputs[1:4])
    axes = np.arange(len(begin))
    begin = np.where(options.BeginMask() >> axes & 1, 0, begin)
    end = np.where(options.EndMask() >> axes & 1, 2**31, end)
    parts = (graph.onnx.constant(part) for part in (begin, end, axes.astype(np.int64), step))
    return graph.onnx.add("Slice", graph.value_channels_last(inputs[0]), *parts)


def _up_convolution(graph: TfliteGraph, inputs: list[int]) -> str:
    """MediaPipe's Convolution2DTransposeBias, with a kernel as large as the stride, as its models use it."""
    weights = np.ascontiguousarray(graph.weights(inputs[1]).transpose(3, 0, 1, 2))
    kernel = list(weights.shape[2:])
    operands = (graph.onnx.constant(weights), graph.onnx.constant(graph.weights(inputs[2])))
    return graph.onnx.add(
        "ConvTranspose", graph.value(inputs[0]), *operands, kernel_shape=kernel, strides=kernel
    )


def _convert(graph: TfliteGraph, operator: tflite.Operator, kind: str) -> None:
    """Adds one operator; its outputs get their ONNX names."""
    inputs = [int(i) for i in operator.InputsAsNumpy()]
    outputs = [int(i) for i in operator.OutputsAsNumpy()]
    source, target = inputs[0], outputs[0]
    if kind in ATTENTION_OPERATORS:
        ATTENTION_OPERATORS[kind](graph, inputs, outputs, _custom_options(operator))
    elif kind == "DEQUANTIZE" and source in graph.constants:
        graph.constants[target] = graph.weights(source)
    elif kind == "DEQUANTIZE":
        graph.names[target] = graph.value(source)
    elif kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        graph.names[target] = _convolution(graph, operator, kind, inputs)
    elif kind == "Convolution2DTransposeBias":
        graph.names[target] = _up_convolution(graph, inputs)
    elif kind in UNARY:
        graph.names[target] = graph.onnx.add(UNARY[kind], graph.value(source))
    elif kind == "PRELU":
        slope = graph.onnx.constant(graph.weights(inputs[1]).reshape(-1, 1, 1))
        graph.names[target] = graph.onnx.add("PRelu", graph.value(source), slope)
    elif kind in BINARY:
        name, options = BINARY[kind]
        total = graph.onnx.add(name, *(graph.value(i) for i in inputs))
        graph.names[target] = _activated(graph, total, _options(operator, options).FusedActivationFunction())
    elif kind in POOLS:
        graph.names[target] = _pool(graph, operator, kind, inputs)
    elif kind == "PAD":
        graph.names[target] = _pad(graph, inputs)
    elif kind == "RESIZE_BILINEAR":
        graph.names[target] = _resize(graph, operator, source, target)
    elif kind == "RESHAPE":
        shape = graph.onnx.integers(*graph.shape(target))
        graph.set_channels_last(target, graph.onnx.add("Reshape", graph.value_channels_last(source), shape))
    elif kind == "CONCATENATION":
        graph.names[target] = _concatenation(graph, operator, inputs, target)
    elif kind == "STRIDED_SLICE":
        graph.set_channels_last(target, _strided_slice(graph, operator, inputs))
    else:
        raise NotImplementedError(kind)


def _custom_options(operator: tflite.Operator) -> Mapping[str, Any]:
    data = bytes(operator.CustomOptions(i) for i in range(operator.CustomOptionsLength()))
    return flexbuffers.Loads(data) if data else {}


def _kind(graph: TfliteGraph, operator: tflite.Operator) -> str:
    code = graph.model.OperatorCodes(operator.OpcodeIndex())
    number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    return code.CustomCode().decode() if number == tflite.BuiltinOperator.CUSTOM else BUILTINS[number]


def convert(source: Path, target: Path) -> None:
    """Writes the model in `source` to `target`; its input becomes "input" (B, C, H, W), its outputs stay.

    Raises: NotImplementedError naming an operator that is not known.
    """
    graph = TfliteGraph(source)
    (model_input,) = graph.subgraph.InputsAsNumpy()
    shape = [graph.shape(model_input)[axis] for axis in TO_CHANNELS_FIRST]
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)]
    graph.names[int(model_input)] = "input"
    for index in range(graph.subgraph.OperatorsLength()):
        operator = graph.subgraph.Operators(index)
        _convert(graph, operator, _kind(graph, operator))
    outputs = []
    for index in graph.subgraph.OutputsAsNumpy():
        name = graph.subgraph.Tensors(index).Name().decode()
        graph.onnx.nodes.append(helper.make_node("Identity", [graph.value_channels_last(index)], [name]))
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, graph.shape(index)))
    made = helper.make_graph(graph.onnx.nodes, source.stem, inputs, outputs, graph.onnx.constants)
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(made, opset_imports=opset, ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    onnx.save(model, target)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
