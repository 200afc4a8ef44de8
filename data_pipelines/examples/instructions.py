"""Instructions in words: what to do with which sound or word.

Captions are of three kinds. Noun phrases ("a dog barking") and clauses ("a dog barks") are told
apart where that is safe, and become "the sound of a dog barking" and "the sound heard when a dog
barks"; all others are quoted.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np

from data_pipelines.examples.phrasings import PHRASINGS

CASUAL = 0.25  # share of instructions without capital and final stop
BARE = 0.5  # share of queries and descriptions that are the caption alone


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_PREPOSITIONS = _set(
    "about above across after against along among around at before behind beneath beside between "
    "by down during for from in inside into near of off on onto out outside over past round "
    "through to toward towards under up upon with within without"
)
_ARTICLES = frozenset(("a", "an", "the"))
_SOMEBODY = frozenset(("something", "someone", "somebody"))
_NOT_BEFORE_A_VERB = (
    _PREPOSITIONS
    | _ARTICLES
    | _set("and or many several some two three four five six other few his her its their")
)
_AUXILIARIES = frozenset(("is", "are", "was", "were", "has", "have", "can", "does", "do"))
_CONNECTORS = _set("as followed that then when where which while who whose")
_UNCOUNTED = _set(
    "applause birdsong chatter fire glass gunfire ice laughter metal music noise paper people rain "
    "silence speech static steam thunder traffic typing water whistling wind wood"
)
_NO_VERBS = _set("always glasses news scissors series sometimes species sports")


def instruction(operation: str, rng: np.random.Generator, **slots: str) -> str:
    """One of the phrasings of `operation`, its slots filled; now and then written casually.

    Raises:
        KeyError: if the operation is unknown, or a slot of the phrasing is not given.
    """
    phrasings = PHRASINGS[operation]
    text = phrasings[int(rng.integers(len(phrasings)))].format_map(slots)
    text = text[0].upper() + text[1:]
    if rng.random() < CASUAL:
        return _lower_first(text.removesuffix("."))
    return text


def query(operation: str, caption: str, rng: np.random.Generator) -> str:
    """A query for what `caption` describes ("lass"), or a description of what to make ("tta"): the
    caption alone, or in one of the phrasings."""
    if rng.random() < BARE:
        text = tidy(caption)
        return text if rng.random() < CASUAL else f"{text[0].upper()}{text[1:]}."
    slots = {"old": present_sound(caption, rng), "new": new_sound(caption, rng)}
    return instruction(operation, rng, **slots)


def present_sound(caption: str, rng: np.random.Generator) -> str:
    """A noun phrase for a sound that is there."""
    text = tidy(caption)
    match kind(text):
        case "phrase":
            choices = [_sound_of(text), re.sub(r"^an? ", "the ", text)]
        case "clause":
            choices = [f"the sound heard when {text}", f"the part where {text}"]
        case _:
            choices = [f'the sound described as "{text}"', f'what goes by "{text}"']
    return choices[int(rng.integers(len(choices)))]


def new_sound(caption: str, rng: np.random.Generator) -> str:
    """A noun phrase for a sound to make."""
    text = tidy(caption)
    match kind(text):
        case "phrase":
            choices = [text, _sound_of(text)]
        case "clause":
            choices = [f"a moment where {text}", f"the sound heard when {text}"]
        case _:
            choices = [f'a sound described as "{text}"', f'the sound "{text}"']
    return choices[int(rng.integers(len(choices)))]


def kind(caption: str) -> str:
    """Whether a tidy caption is a noun "phrase", a "clause" with its verb in the present tense, or
    neither for certain: ""."""
    words = re.findall(r"[\w'-]+", caption.lower())
    if not words or re.search(r"[.;:!?]", caption):
        return ""
    verbs = [n for n in range(1, len(words)) if _may_be_verb(words[n], words[n - 1])]
    starts = words[0] in _ARTICLES or words[0] in _SOMEBODY
    if not verbs and not _CONNECTORS.intersection(words):
        follows = len(words) == 1 or words[1] in _PREPOSITIONS or _is_gerund(words[1])
        named = words[0] in _UNCOUNTED or _is_plural(words[0])
        if words[0] in _ARTICLES or (named and follows):
            return "phrase"
    if verbs:
        subject = words[: verbs[0]]
        simple = not any(
            word in _PREPOSITIONS | _CONNECTORS or _is_gerund(word) or word == "few"
            for word in subject
        )
        plural = _is_plural(subject[-1]) or subject[-1] in ("children", "men", "people", "women")
        bare = subject[0] in _UNCOUNTED or (plural and words[verbs[0]] == "are")
        if simple and (starts or (len(subject) == 1 and bare)):
            return "clause"
    return ""


def tidy(caption: str) -> str:
    """The caption as it stands inside a sentence: without final stop, and without the capital of
    its first word unless that is a name of capitals."""
    return _lower_first(" ".join(caption.replace('"', "'").split()).rstrip(".!?,; "))


def decibels(change: float, rng: np.random.Generator) -> str:
    """How much louder or quieter: "by 6 dB" or "by 6 decibels", for a change of 6 or -6."""
    return f"by {abs(change):g} {('dB', 'decibels')[int(rng.integers(2))]}"


def speed(factor: float, rng: np.random.Generator) -> str:
    """A speed as a multiple of what it is: "1.5 times its speed", "150 % of its speed"."""
    choices = [f"{factor:g} times its speed", f"{100 * factor:g} % of its speed"]
    match factor:
        case 2:
            choices.append("twice its speed")
        case 0.5:
            choices.append("half its speed")
    return choices[int(rng.integers(len(choices)))]


def spoken(rng: np.random.Generator) -> Callable[[Sequence[str]], str]:
    """A way to write words that are said, the same for all of one instruction: as they are, in
    quotation marks, or with "the word" before."""
    style = int(rng.integers(3))

    def write(words: Sequence[str]) -> str:
        text = " ".join(words)
        if style == 0:
            return text
        if style == 1:
            return f'"{text}"'
        return f'the word{"s" if len(words) > 1 else ""} "{text}"'

    return write


def _sound_of(phrase: str) -> str:
    return phrase if re.match(r"(the |a )?(sound|noise)s? ", phrase) else f"the sound of {phrase}"


def _may_be_verb(word: str, before: str) -> bool:
    if word in _AUXILIARIES:
        return True
    if before in _NOT_BEFORE_A_VERB or word in _NO_VERBS or len(word) < 4:
        return False
    return _is_plural(word)


def _is_gerund(word: str) -> bool:
    return word.endswith("ing") and len(word) > 5 and word not in _SOMEBODY


def _is_plural(word: str) -> bool:
    """Whether a word has the s of a plural, or of a verb's third person."""
    return word.endswith("s") and not word.endswith(("ss", "us", "is", "'s"))


def _lower_first(text: str) -> str:
    first = text.split()[0] if text.split() else ""
    if first == "I" or first.startswith("I'") or first[1:] != first[1:].lower():
        return text
    return text[:1].lower() + text[1:]
