"""python -m quark_jax.cli"""

import sys

from quark_jax.cli import main

sys.exit(main())
