"""Evaluate a trained codec, or a trained model at a task; the report is a Markdown file:

    python launch/evaluate.py codec --model runs/codec/model/codec --manifest corpus.jsonl \\
        --out codec.md
    python launch/evaluate.py tasks --model runs/lm/model --manifest corpus.jsonl --task sr \\
        --out sr.md

The options are those of quark_jax.evaluation.codec and .tasks (`launch/evaluate.py codec --help`).
Needed: pip install 'quark-jax[eval]'; a model that is in a folder, not in a bucket.
"""

import sys

from quark_jax.evaluation import codec, tasks

_KINDS = {"codec": codec.main, "tasks": tasks.main}

if __name__ == "__main__":
    kind = sys.argv[1] if len(sys.argv) > 1 else ""
    if kind not in _KINDS:
        print(f"quark: launch/evaluate.py: say {' or '.join(_KINDS)} first", file=sys.stderr)
        raise SystemExit(2)
    raise SystemExit(_KINDS[kind](sys.argv[2:]))
