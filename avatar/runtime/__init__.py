"""What runs engines and keeps them running. No torch: nothing here computes."""
