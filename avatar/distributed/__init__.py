"""One stream over several GPUs: layouts, ranks and their supervision. The only room of torch.distributed."""
