# SPDX-License-Identifier: MIT
"""`python -m barfs` is the command `barfs`."""

import sys

from barfs.cli import main

sys.exit(main())
