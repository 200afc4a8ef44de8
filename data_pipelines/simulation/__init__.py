"""Degradation of clean speech: pure functions of audio and values, or an np.random.Generator.

Waves are float32 [samples] at one rate (Hz), full scale at 1. Every random choice is drawn from the
generator that is passed in, so the same generator state gives the same result. The values are those
published for the QuarkAudio speech tasks.
"""

from etils import epy

# Lazy, so that what only looks for silence does not load the libraries of rooms and voices.
with epy.lazy_api_imports(globals()):
    from data_pipelines.simulation.chain import (
        EXTRACTION,
        BandLimit,
        Clipping,
        Degradation,
        PacketLoss,
        Plan,
        degrade,
        draw,
    )
    from data_pipelines.simulation.echo import (
        Echo,
        EchoPlan,
        add_echo,
        draw_echo,
        loudspeaker,
        speak_in,
    )
    from data_pipelines.simulation.effects import (
        clip_quantiles,
        limit_band,
        lose_packets,
        lost_packets,
    )
    from data_pipelines.simulation.levels import (
        active,
        active_power,
        fit,
        is_silent,
        limit_peak,
        set_peak,
    )
    from data_pipelines.simulation.noise import (
        add_noise,
        babble,
        coloured_noise,
        hum,
        scale_to_ratio,
    )
    from data_pipelines.simulation.rooms import (
        Room,
        Rooms,
        direct_path,
        draw_room,
        make_response,
        reverberate,
        reverberation_time,
        trim,
    )
    from data_pipelines.simulation.voice import (
        Voice,
        VoiceChange,
        change_voice,
        draw_voice,
        equalise,
    )

__all__ = [
    "EXTRACTION",
    "BandLimit",
    "Clipping",
    "Degradation",
    "Echo",
    "EchoPlan",
    "PacketLoss",
    "Plan",
    "Room",
    "Rooms",
    "Voice",
    "VoiceChange",
    "active",
    "active_power",
    "add_echo",
    "add_noise",
    "babble",
    "change_voice",
    "clip_quantiles",
    "coloured_noise",
    "degrade",
    "direct_path",
    "draw",
    "draw_echo",
    "draw_room",
    "draw_voice",
    "equalise",
    "fit",
    "hum",
    "is_silent",
    "limit_band",
    "limit_peak",
    "lose_packets",
    "lost_packets",
    "loudspeaker",
    "make_response",
    "reverberate",
    "reverberation_time",
    "scale_to_ratio",
    "set_peak",
    "speak_in",
    "trim",
]
