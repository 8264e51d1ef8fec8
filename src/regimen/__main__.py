"""`python -m regimen`."""

import sys

from regimen.cli import main

sys.exit(main())
