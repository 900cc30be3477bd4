"""What this machine has: GPUs by NVML, the host, ZeroGPU cards. No torch."""
