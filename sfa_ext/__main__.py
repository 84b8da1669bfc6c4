"""`python -m sfa_ext`, and `torchrun -m sfa_ext`: the `sfa` command."""

import sys

from sfa_ext.cli import main

if __name__ == "__main__":
    sys.exit(main())
