"""``python -m fastrnn`` is the command line ``fastrnn``."""

import sys

if __name__ == "__main__":
    try:
        from .cli import main

        sys.exit(main())
    except KeyboardInterrupt:  # while it was being imported: main has its own answer
        print("fastrnn: interrupted", file=sys.stderr)
        sys.exit(130)
