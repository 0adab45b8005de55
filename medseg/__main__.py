"""``python -m medseg``, for launchers such as torchrun."""

import sys

from medseg.cli.main import main

sys.exit(main())
