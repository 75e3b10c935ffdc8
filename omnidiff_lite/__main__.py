"""`python -m omnidiff_lite`."""

import sys

from omnidiff_lite.cli import main

sys.exit(main())
