"""Instructions: enough phrasings, every slot filled, sentences that are English."""

import re
from itertools import combinations
from string import Formatter

import numpy as np
import pytest

from data_pipelines.examples import instructions
from data_pipelines.examples.instructions import (
    instruction,
    kind,
    new_sound,
    present_sound,
    query,
    speed,
    spoken,
    tidy,
)
from data_pipelines.examples.phrasings import PHRASINGS

SLOTS = {
    "lass": {"old"},
    "tta": {"new"},
    "add": {"new"},
    "remove": {"old"},
    "replace": {"old", "new"},
    "extract": {"old"},
    "louder": {"old", "by"},
    "quieter": {"old", "by"},
    "faster": {"old", "speed"},
    "slower": {"old", "speed"},
    "order": {"old", "other"},
    "insert": {"new", "where"},
    "delete": {"old"},
    "substitute": {"old", "new"},
}
SMALL = """a an the of it is i to in on so that please could you and me my one for"""


@pytest.mark.parametrize("operation", SLOTS)
def test_an_operation_has_twenty_phrasings_that_differ_in_their_words(operation):
    """Two that say the same with the same words, in whatever order, count as one."""
    phrasings = PHRASINGS[operation]
    told = []
    for text in phrasings:
        words = set(re.findall(r"[a-z']+", re.sub(r"{\w+}", " ", text).lower()))
        told.append(frozenset(words.difference(SMALL.split()) or words))
    assert len(set(told)) == len(phrasings) >= 20
    alike = [
        (a, b)
        for (a, one), (b, two) in combinations(zip(phrasings, told, strict=True), 2)
        if len(one & two) / len(one | two) > 0.6
    ]
    assert not alike


@pytest.mark.parametrize("operation", SLOTS)
def test_every_slot_is_filled(operation):
    used = set()
    for text in PHRASINGS[operation]:
        slots = {name for _, name, _, _ in Formatter().parse(text) if name}
        assert slots <= SLOTS[operation]
        if operation != "order":  # "move X to the end" says it all of two sounds
            assert slots == SLOTS[operation]
        assert text[-1] in ".?" and (text[0].isupper() or text[0] == "{")
        used |= slots
    assert used == SLOTS[operation]
    rng = np.random.default_rng(0)
    slots = {name: f"<{name}>" for name in SLOTS[operation]}
    found = {instruction(operation, rng, **slots) for _ in range(600)}
    assert not any("{" in text or "}" in text for text in found)
    assert len({text.lower().rstrip(".") for text in found}) == len(PHRASINGS[operation])
    assert len(found) > len(PHRASINGS[operation])  # some are written casually


def test_there_are_phrasings_for_all_operations():
    assert set(PHRASINGS) == set(SLOTS)


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("A dog barking.", "phrase"),
        ("an explosion", "phrase"),
        ("the bell of a cash register", "phrase"),
        ("Footsteps on gravel", "phrase"),
        ("Birds chirping in the distance", "phrase"),
        ("Rain falling on a roof", "phrase"),
        ("thunder", "phrase"),
        ("A dog barks.", "clause"),
        ("A door opens and closes", "clause"),
        ("A man speaks while a dog barks", "clause"),
        ("Children are playing", "clause"),
        ("glass shatters", "clause"),
        ("Someone whistles", "clause"),
        ("Two dogs bark", ""),
        ("dog barking", ""),
        ("DTMF tones", ""),
        ("a piano note that rings", ""),
        ("A group of small dogs barking", ""),
        ("A dog barks. Then a man speaks", ""),
    ],
)
def test_captions_are_told_apart(caption, found):
    assert kind(tidy(caption)) == found


def test_sounds_become_noun_phrases():
    rng = np.random.default_rng(0)
    draws = {
        caption: {make(caption, rng) for make in (present_sound, new_sound) for _ in range(20)}
        for caption in ("An owl calling.", "A dog barks.", "dog barking", "the sound of rain")
    }
    assert draws["An owl calling."] == {
        "the owl calling",
        "an owl calling",
        "the sound of an owl calling",
    }
    assert draws["A dog barks."] == {
        "the part where a dog barks",
        "the sound heard when a dog barks",
        "a moment where a dog barks",
    }
    assert all('"dog barking"' in text for text in draws["dog barking"])
    assert draws["the sound of rain"] == {"the sound of rain"}
    # What is there is definite: it is not asked for anew.
    assert "an owl calling" not in {present_sound("An owl calling.", rng) for _ in range(20)}


def test_captions_are_tidied():
    assert tidy('  A "loud"  bang. ') == "a 'loud' bang"
    assert tidy("DTMF tones!") == "DTMF tones"
    assert tidy("I hear rain") == "I hear rain"
    assert tidy("...") == ""


def test_a_query_is_often_the_caption_alone():
    rng = np.random.default_rng(0)
    found = [query("lass", "A dog barks.", rng) for _ in range(400)]
    alone = [text for text in found if text.lower().strip(".") == "a dog barks"]
    assert 0.4 < len(alone) / len(found) < 0.6
    assert {"A dog barks.", "a dog barks"} == set(alone)
    assert len(set(found)) > 30


def test_numbers_and_words_are_written_out():
    rng = np.random.default_rng(0)
    assert {speed(2, rng) for _ in range(40)} == {
        "2 times its speed",
        "200 % of its speed",
        "twice its speed",
    }
    assert {speed(0.75, rng) for _ in range(40)} == {"0.75 times its speed", "75 % of its speed"}
    assert {instructions.decibels(-6, rng) for _ in range(20)} == {"by 6 dB", "by 6 decibels"}
    assert {spoken(rng)(["do", "not"]) for _ in range(40)} == {
        "do not",
        '"do not"',
        'the words "do not"',
    }


def test_spelling_is_british():
    text = " ".join(phrasing for group in PHRASINGS.values() for phrasing in group)
    american = r"\b\w+(ize[sd]?|izing|yze[sd]?)\b|\b(color|favor|center|gray)\b"
    assert not re.findall(american, text)
