"""`python -m rhumbline.cli`."""

import sys

from rhumbline.cli import main

sys.exit(main())
