"""Examples of the tasks: what goes in, what has to come out.

A source of examples is a map (seed, index) -> `Example`: the same pair gives the same example on
any machine, whatever else was drawn before.
"""

from data_pipelines.examples.base import INPUT_RATE, Example, fingerprint, generator
from data_pipelines.examples.speech import SpeechRestoration

__all__ = ["INPUT_RATE", "Example", "SpeechRestoration", "fingerprint", "generator"]
