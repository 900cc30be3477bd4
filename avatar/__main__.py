"""`python -m avatar`."""

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # Python has put the current folder first: a file of the user's there must not stand in for a module.
    sys.path.append(sys.path.pop(0))

from avatar.cli import main

if __name__ == "__main__":
    sys.exit(main())
