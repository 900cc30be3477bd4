"""The attention mesh's three custom operators, written out in standard ONNX ones.

Source: google-ai-edge/mediapipe, util/tflite/operations: landmarks_to_transform_matrix,
transform_tensor_bilinear and transform_landmarks, in their version 2 (pixel centres at half integers).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from avatar.preview.convert.onnx_graph import TfliteGraph

EPSILON = 1e-9


def landmarks_to_transform_matrix(
    graph: TfliteGraph, inputs: list[int], outputs: list[int], options: Mapping[str, Any]
) -> None:
    """From landmarks (1, N, 3), the matrix (1, 4, 4) from pixels of an upright crop to the input's."""
    o = graph.onnx
    points = graph.value(inputs[0])

    def axis(values: str, index: int) -> str:
        return o.add("Gather", values, o.constant(np.array(index, np.int64)), axis=2)

    def chosen(indices: list[int]) -> str:
        return o.add("Gather", points, o.integers(*indices), axis=1)

    left, right = chosen([options["left_rotation_idx"]]), chosen([options["right_rotation_idx"]])
    dx = o.add("Sub", axis(right, 0), axis(left, 0))
    dy = o.add("Sub", axis(right, 1), axis(left, 1))
    squares = o.add("Add", o.add("Mul", dx, dx), o.add("Mul", dy, dy))
    length = o.add("Sqrt", o.add("Add", squares, o.scalar(EPSILON)))
    cos, sin = o.add("Div", dx, length), o.add("Div", dy, length)

    subset = chosen(options["subset_idxs"])
    x, y = axis(subset, 0), axis(subset, 1)
    level_x = o.add("Add", o.add("Mul", x, cos), o.add("Mul", y, sin))
    level_y = o.add("Sub", o.add("Mul", y, cos), o.add("Mul", x, sin))

    def extent(values: str) -> tuple[str, str]:
        """Their span and their middle."""
        high = o.add("ReduceMax", values, axes=[1], keepdims=1)
        low = o.add("ReduceMin", values, axes=[1], keepdims=1)
        return o.add("Sub", high, low), o.add("Mul", o.add("Add", high, low), o.scalar(0.5))

    (span_x, middle_x), (span_y, middle_y) = extent(level_x), extent(level_y)
    centre_x = o.add("Sub", o.add("Mul", middle_x, cos), o.add("Mul", middle_y, sin))
    centre_y = o.add("Add", o.add("Mul", middle_x, sin), o.add("Mul", middle_y, cos))

    # translation to the centre · rotation · scale · translation by half the crop
    width, height = options["output_width"], options["output_height"]
    scale_x = o.add("Mul", span_x, o.scalar(options["scale_x"] / width))
    scale_y = o.add("Mul", span_y, o.scalar(options["scale_y"] / height))
    a, b = o.add("Mul", cos, scale_x), o.add("Neg", o.add("Mul", sin, scale_y))
    c, d = o.add("Mul", sin, scale_x), o.add("Mul", cos, scale_y)

    def shift(centre: str, along_x: str, along_y: str) -> str:
        half_x = o.add("Mul", along_x, o.scalar(width / 2))
        half_y = o.add("Mul", along_y, o.scalar(height / 2))
        return o.add("Sub", centre, o.add("Add", half_x, half_y))

    zero = o.add("Mul", a, o.scalar(0.0))
    one = o.add("Add", zero, o.scalar(1.0))
    in_plane = (a, b, zero, shift(centre_x, a, b), c, d, zero, shift(centre_y, c, d))
    rows = (*in_plane, zero, zero, one, zero, zero, zero, zero, one)
    graph.names[outputs[0]] = o.add("Reshape", o.add("Concat", *rows, axis=1), o.integers(1, 4, 4))


def transform_tensor_bilinear(
    graph: TfliteGraph, inputs: list[int], outputs: list[int], options: Mapping[str, Any]
) -> None:
    """A crop of a feature map (1, C, H, W) under a matrix, sampled bilinearly, zeros outside."""
    o = graph.onnx
    width, height = options["output_width"], options["output_height"]
    _, high, wide, _ = graph.shape(inputs[0])
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    centres = np.stack([x, y, np.zeros_like(x), np.ones_like(x)], axis=-1).reshape(-1, 4).astype(np.float32)
    matrix = o.add("Transpose", graph.value(inputs[1]), perm=[0, 2, 1])
    places = o.add("MatMul", o.constant(centres), matrix)
    places = o.add("Slice", places, o.integers(0), o.integers(2), o.integers(2))
    to_grid = o.constant(np.array([2 / wide, 2 / high], np.float32))
    grid = o.add("Sub", o.add("Mul", places, to_grid), o.scalar(1.0))
    grid = o.add("Reshape", grid, o.integers(1, height, width, 2))
    graph.names[outputs[0]] = o.add(
        "GridSample", graph.value(inputs[0]), grid, align_corners=0, mode="bilinear", padding_mode="zeros"
    )


def transform_landmarks(
    graph: TfliteGraph, inputs: list[int], outputs: list[int], options: Mapping[str, Any]
) -> None:
    """Landmarks (1, N, 2) of a crop moved into the input's pixels by the crop's matrix."""
    o = graph.onnx
    matrix = graph.value(inputs[1])
    axes = o.integers(1, 2)
    turn = o.add("Slice", matrix, o.integers(0, 0), o.integers(2, 2), axes)
    shift = o.add("Slice", matrix, o.integers(0, 3), o.integers(2, 4), axes)
    turned = o.add("MatMul", graph.value(inputs[0]), o.add("Transpose", turn, perm=[0, 2, 1]))
    graph.names[outputs[0]] = o.add("Add", turned, o.add("Transpose", shift, perm=[0, 2, 1]))


ATTENTION_OPERATORS = {
    "Landmarks2TransformMatrix": landmarks_to_transform_matrix,
    "TransformTensorBilinear": transform_tensor_bilinear,
    "TransformLandmarks": transform_landmarks,
}
