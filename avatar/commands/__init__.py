"""One module a command: add(subparsers) declares it, run(args) does it and returns the exit code."""
