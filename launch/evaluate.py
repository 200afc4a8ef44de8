"""Evaluate a trained codec, or a trained model at a task; the report is a Markdown file:

    python launch/evaluate.py codec --model runs/codec/model/codec --manifest corpus.jsonl \\
        --out codec.md
    python launch/evaluate.py tasks --model runs/lm/model --manifest corpus.jsonl --task sr \\
        --out sr.md

This is `quark eval` with its options (`quark eval codec --help`).
Needed: pip install -e '.[eval]'; a model that is in a folder, not in a bucket.
"""

import sys

from quark_jax.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["eval", *sys.argv[1:]]))
