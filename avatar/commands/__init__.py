"""One module per command: add(subparsers) declares it, run(args) executes it and returns the exit code."""
