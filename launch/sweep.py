"""Train and compare the codecs of a sweep; the same as `quark sweep`:

    python launch/sweep.py --config configs/sweeps/frame_rate.py --workdir runs/frame-rate \\
        --config.manifest corpus.jsonl --index 0 --of 4
    python launch/sweep.py --config configs/sweeps/frame_rate.py --workdir runs/frame-rate \\
        --config.manifest corpus.jsonl --report

Each machine makes its share, with all devices that it has, in a workdir that all see; the report is
written by one when they are done.
"""

import sys

from quark_jax.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["sweep", *sys.argv[1:]]))
