"""`python -m unistd`: the command, as `torchrun -m unistd` starts it."""

import sys

from unistd.cli import main

sys.exit(main())
