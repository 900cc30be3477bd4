"""Start, supervise and talk to engine processes. No torch: nothing here computes."""
