"""What the names of recordings in Debian packages tell of them."""

import pytest

from data_pipelines.debian_captions import caption_by_name


@pytest.mark.parametrize(
    ("recording", "caption"),
    [
        ("ufoai-sound/games/ufoai/base/0snd/sound/doors/door1-close.ogg", "a door closes"),
        ("ufoai-sound/games/ufoai/base/0snd/sound/footsteps/snow3.ogg", "footsteps on snow"),
        ("ufoai-sound/games/ufoai/base/0snd/sound/geoscape/promotion.ogg", None),
        (
            "wesnoth-1.16-data/games/wesnoth/1.16/data/core/sounds/wolf-growl-1.ogg",
            "a wolf growls",
        ),
        (
            "wesnoth-1.18-data/games/wesnoth/1.18/data/core/sounds/ambient/birds2.ogg",
            "birds sing",
        ),
        ("wesnoth-1.16-data/games/wesnoth/1.16/data/core/sounds/magic-dark.ogg", None),
        ("sonic-pi-samples/sonic-pi/samples/misc_crow.flac", "a crow caws"),
        ("sonic-pi-samples/sonic-pi/samples/tabla_ghe3.flac", "a single stroke on a tabla"),
        ("asterisk-core-sounds-it-g722/asterisk/sounds/it_IT_m_Carlo/beep.g722", "a beep"),
        ("hedgewars-data/games/hedgewars/Data/Sounds/steps.ogg", "footsteps"),
        ("unknown/steps.ogg", None),
    ],
)
def test_captions_by_name(recording, caption):
    assert caption_by_name(recording) == ((caption,) if caption else ())
