"""Our own kernels for NVIDIA GPUs, and which of them a device runs; each has a reference in PyTorch."""
