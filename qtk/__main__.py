"""`python -m qtk`: the same as the `qtk` command."""

import sys

from qtk.cli.main import main

sys.exit(main())
