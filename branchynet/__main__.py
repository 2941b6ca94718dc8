"""The command branchynet, as `python -m branchynet`."""

import sys

from branchynet.cli import main

if __name__ == '__main__':
    sys.exit(main())
