"""`python -m rhumbline`."""

import sys

from rhumbline.cli import main

sys.exit(main())
