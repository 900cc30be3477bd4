"""What this machine has: GPUs by NVML, the host, GPUs that are lent. No torch."""
