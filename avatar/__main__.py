"""`python -m avatar`."""

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # Python puts the current folder first, where a user's file must not shadow a module.
    sys.path.append(sys.path.pop(0))

from avatar.cli import main

if __name__ == "__main__":
    sys.exit(main())
