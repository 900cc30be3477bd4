"""The fast paths that are tried on each device, by code: what to say where one is missing, and its cost."""

from __future__ import annotations

FAST_PATHS = {
    "compile": "Code cannot be compiled here (a C compiler and Python.h are needed): it runs uncompiled, "
    "up to half as fast.",
    "cudnn": "cuDNN's attention does not work on this GPU: another one is used, up to a tenth slower.",
    "attention": "Attention in 8 bits does not work on this GPU: it runs in bf16 over rings in fp8, about a "
    "fifth slower.",
    "kernels": "Our own kernels for norms and rotations do not work on this GPU: PyTorch compiles that code, "
    "which is a few per cent slower.",
    "fp8": "Products in fp8 do not work on this GPU: weights are widened first, which is slower. int8 "
    "weights (weight_dtype) do without them.",
    "int8": "Our own kernel for products of 8-bit integers does not work on this GPU: PyTorch's is used, or "
    "weights are widened first, which is slower.",
    "pinned": "The system locks too little memory for the GPU (WSL2 allows about 1 GB): copies are slower.",
    "segments": "The GPU's memory cannot grow in segments here: some GiB of it may be lost in gaps.",
}
