"""`python -m flatbench` is the command line."""

import sys

from flatbench.cli import main

sys.exit(main())
