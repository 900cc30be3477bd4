"""One stream over several GPUs: ranks, their work and supervision. The only user of torch.distributed."""
