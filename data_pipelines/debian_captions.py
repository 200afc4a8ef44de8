"""What sounds in the recordings of Debian packages, where the name of a file tells it for certain.

Names that say what a sound is for, and not what it is like ("contact in", "promotion"), get no
caption.
"""

import re

_FOOTSTEPS = {
    "carpet": "carpet",
    "dirt": "dirt",
    "grass": "grass",
    "gravel": "gravel",
    "linoleum": "linoleum",
    "metal": "metal",
    "sand": "sand",
    "snow": "snow",
    "splash": "wet ground, with splashes",
    "stone": "stone",
    "tile": "tiles",
    "wood": "wood",
}
_UFOAI = {
    r"ambience/arcticwind": "a cold wind howls",
    r"ambience/creak": "something creaks",
    r"ambience/cricket_loop": "crickets chirp",
    r"ambience/droning_\w+": "a low drone",
    r"ambience/(fire|smallfire|firesoft)": "a fire crackles",
    r"ambience/hum": "an electric hum",
    r"ambience/machine": "a machine runs",
    r"ambience/minepump": "a pump works",
    r"ambience/sparks(_short)?": "electric sparks crackle",
    r"ambience/steam": "steam hisses",
    r"ambience/thunder": "thunder rumbles",
    r"ambience/tv_static": "static noise of a television",
    r"ambience/(water|waterfontain)": "water flows",
    r"ambience/wind_turbine": "a wind turbine turns",
    r"civilians/civfem(death|scream)\w*": "a woman screams",
    r"civilians/(civ)?male(death|hurt)\w*": "a man cries out in pain",
    r"soldiers/female(death|hurt)": "a woman cries out in pain",
    r"soldiers/male(death|hurt)": "a man cries out in pain",
    r"doors/creak_low_short": "a door creaks",
    r"doors/door\d*-close": "a door closes",
    r"doors/door\d*-open": "a door opens",
    r"doors/open_close": "a door opens and closes",
    **{rf"footsteps/{name}": f"footsteps on {ground}" for name, ground in _FOOTSTEPS.items()},
    r"geoscape/(basealert)": "an alarm sounds",
    r"geoscape/combat-gun": "a machine gun fires",
    r"geoscape/combat-(explosion|rocket-exp)": "an explosion",
    r"impact/bullet-impact": "a bullet hits a hard surface",
    r"impact/knife-impact": "a knife hits a hard surface",
    r"impact/water-impact": "something splashes into water",
    r"misc/breakglass": "glass shatters",
    r"misc/breakmetal": "metal breaks with a clang",
    r"misc/breakwood": "wood breaks",
    r"misc/(breakelectric|electro)": "an electric discharge",
    r"ugv/diesel-idle": "a diesel engine idles",
    r"ugv/diesel-move": "a diesel engine runs",
    r"ugv/diesel-stop": "a diesel engine stops",
    r"ui/beep": "a short beep",
    r"ui/click\w*": "a click",
    r"weapons/bullet-pistol": "a pistol is fired",
    r"weapons/bullet-rifle(-1x)?": "a rifle is fired",
    r"weapons/bullet-rifle-[38]x": "a burst of rifle fire",
    r"weapons/bullet-shotgun(mini)?": "a shotgun is fired",
    r"weapons/bullet-shotgun-3x": "a shotgun is fired three times",
    r"weapons/bullet-smg(-1x)?": "a gunshot",
    r"weapons/bullet-smg-(5|15)x": "a burst of submachine gun fire",
    r"weapons/bullet-hmg-(5|20)x": "a burst of heavy machine gun fire",
    r"weapons/bullet-chaingun-\d+x": "a burst of machine gun fire",
    r"weapons/bullet-sniper": "a sniper rifle is fired",
    r"weapons/explosion(-grenade|-rocket|-fire|-flashbang)?": "an explosion",
    r"weapons/electro-taser(double)?": "an electric shock crackles",
    r"weapons/flamer-(big|small)": "a flamethrower roars",
    r"weapons/grenade-bounce": "a grenade bounces on the ground",
    r"weapons/grenade-launcher": "a grenade launcher is fired",
    r"weapons/grenade-pin": "a pin is pulled from a grenade",
    r"weapons/melee-(swoosh|throw)": "something swooshes through the air",
    r"weapons/(laser|ptl)-\w+": "a laser weapon is fired",
    r"weapons/reload-(pistol|rifle|rocket|shotgun|smg|sniper)": "a gun is reloaded",
    r"weapons/rocket-human": "a rocket is launched",
    r"weapons/ugv-cannon-fire": "a cannon is fired",
}
_BEASTS = {
    "bat": "a bat",
    "drake": "a dragon",
    "goblin": "a goblin",
    "gryphon": "a griffin",
    "horse": "a horse",
    "naga": "a snake-like monster",
    "ogre": "an ogre",
    "orc": "an orc",
    "orc-small": "a small orc",
    "troll": "a troll",
    "wolf": "a wolf",
    "yeti": "a yeti",
    "zombie": "a zombie",
}
_WESNOTH = {
    r"witches-laugh": "a witch laughs",
    r"ambient/(birds|morning)": "birds sing",
    r"ambient/campfire": "a campfire crackles",
    r"ambient/night": "insects chirp at night",
    r"ambient/ship": "a wooden ship creaks on the water",
    r"ambient/wardrums": "war drums are beaten",
    r"horn-signals/horn": "a horn is blown",
    r"axe|hatchet": "an axe strikes",
    r"bat-flapping": "wings flap",
    r"bite(-small)?": "something bites",
    r"(bow|bow-puny)": "an arrow is shot from a bow and hits",
    r"(bow|bow-puny)-miss": "an arrow is shot from a bow",
    r"crossbow": "a crossbow is fired and hits",
    r"crossbow-miss": "a crossbow is fired",
    r"cave-in": "rocks fall and rumble",
    r"dagger-swish": "a dagger swishes",
    r"dwarf-laugh": "a man laughs",
    r"explosion": "an explosion",
    r"fanfare-short": "a short fanfare",
    r"fire|flame-big(-miss)?|melee-fire|torch|torch-miss": "flames roar",
    r"fist": "a punch with the fist",
    r"fuse": "a fuse burns",
    r"gold": "coins jingle",
    r"groan": "someone groans",
    r"gryphon-shriek": "a griffin shrieks",
    r"gunshot|thunderstick(-miss)?": "a gunshot",
    r"hiss(-big|-die|-hit)?": "a monster hisses",
    r"horse-(elf-)?canter": "a horse canters",
    r"(human|dwarf|human-old)-(die|hit)": "a man cries out in pain",
    r"human-female-(die|hit)|elf-female-(die|hit)|mermaid-(die|hit)": "a woman cries out in pain",
    r"lightning(-miss)?": "lightning strikes",
    r"mud-(fist|glob)(-miss)?": "wet mud squelches",
    r"open-chest": "a chest is opened",
    r"rumble": "a deep rumble",
    r"skeleton(-big)?-(die|hit)": "bones rattle",
    r"sling(-big)?-miss": "a sling is swung",
    r"squishy-(hit|miss|strike)": "something soft squelches",
    r"sword": "a sword strikes",
    r"throw|(dagger|club|flail|mace|spear|staff|throwing-knife|hatchet)-miss": "a weapon "
    "swishes through the air",
    r"wail(-long|-sml)?": "someone wails",
    r"water-blast": "a blast of water",
    r"wolf-growl": "a wolf growls",
    **{rf"{name}-(die|hit)": f"{who} cries out in pain" for name, who in _BEASTS.items()},
    r"bell": "a bell rings",
    r"button|checkbox|select|slider": "a click",
}
_HEDGEWARS = {
    r"(1C|2D|3E|4F|5G|6A|7B|8C|9D)": "a single musical note",
    r"Droplet": "a drop of water falls",
    r"Kiss": "a kiss",
    r"Whistle": "someone whistles",
    r"baseballbat": "a hit with a baseball bat",
    r"bee": "a bee buzzes",
    r"beep": "a beep",
    r"blowtorch": "a blowtorch burns",
    r"explosion": "an explosion",
    r"flamethrower": "a flamethrower roars",
    r"gun|landgun": "a gunshot",
    r"hammer": "a hammer strikes",
    r"hell_growl": "a monster growls",
    r"minetick": "a bomb ticks",
    r"minigun": "a burst of machine gun fire",
    r"plane|rcplane": "a propeller plane flies",
    r"ride_of_the_valkyries": "an orchestra plays the Ride of the Valkyries",
    r"rubberduck_(die|drop|water)": "a rubber duck squeaks",
    r"shotgunfire": "a shotgun is fired",
    r"shotgunreload|sniperreload": "a gun is reloaded",
    r"shutterclick": "a camera shutter clicks",
    r"splash|beewater|planewater": "something splashes into water",
    r"steam": "steam hisses",
    r"steps": "footsteps",
    r"whipcrack": "a whip cracks",
}
_TABLA = "a single stroke on a tabla"
_KICK, _SNARE, _BASS = "a bass drum hit", "a snare drum hit", "a synthesised bass note"
_LOOP = "a loop of drums and percussion"
_SONIC_PI = {
    r"ambi_choir": "a choir sings a sustained chord",
    r"ambi_drone": "a synthesised drone",
    r"ambi_(dark_woosh|swoosh)": "a whoosh",
    r"ambi_glass_(hum|rub)": "the rim of a glass hums",
    r"ambi_haunted_hum": "an eerie hum",
    r"ambi_piano": "a piano note that rings",
    r"ambi_soft_buzz": "a soft buzz",
    r"bass_\w+": _BASS,
    r"bd_\w+|drum_heavy_kick|drum_bass_(hard|soft)|elec_(hollow|soft)_kick": _KICK,
    r"drum_cowbell": "a cowbell",
    r"drum_cymbal_(closed|pedal)": "a closed hi-hat cymbal",
    r"drum_cymbal_(hard|open|soft)|elec_cymbal": "a cymbal",
    r"drum_splash_(hard|soft)": "a splash cymbal",
    r"drum_roll": "a drum roll",
    r"drum_snare_(hard|soft)|elec_\w*snare|sn_\w+": _SNARE,
    r"drum_tom_hi_(hard|soft)": "a high tom drum hit",
    r"drum_tom_mid_(hard|soft)": "a tom drum hit",
    r"drum_tom_lo_(hard|soft)": "a low tom drum hit",
    r"elec_(beep|blip|plip|ping|pop|blup)": "a short electronic blip",
    r"elec_(bell|chime)": "an electronic bell",
    r"elec_tick": "an electronic tick",
    r"elec_triangle": "a triangle",
    r"elec_twang": "an electronic twang",
    r"glitch_perc": "glitchy electronic percussion",
    r"glitch_robot|mehackit_robot": "electronic robot noises",
    r"guit_(e_fifths|e_slide|em9|harmonics)": "an electric guitar",
    r"loop_3d_printer": "a 3D printer at work",
    r"loop_(amen|amen_full|breakbeat)": "a drum break",
    r"loop_(perc|industrial|mehackit|compus|garzul|safari)": _LOOP,
    r"loop_tabla": "a rhythm on the tabla",
    r"mehackit_phone": "tones of a telephone",
    r"misc_burp": "someone burps",
    r"misc_cineboom": "a deep boom",
    r"misc_crow": "a crow caws",
    r"perc_bell": "a bell",
    r"perc_door": "a door bangs",
    r"perc_impact": "an impact",
    r"perc_snap": "a finger snap",
    r"perc_(swash|swoosh)": "a swoosh",
    r"perc_till": "the bell of a cash register",
    r"tabla_\w+": _TABLA,
    r"vinyl_(backspin|rewind)": "a vinyl record is spun backwards",
    r"vinyl_hiss": "hiss and crackle of a vinyl record",
    r"vinyl_scratch": "a vinyl record is scratched",
}
_FREEDESKTOP = {
    r"alarm-clock-elapsed": "an alarm clock beeps",
    r"bell": "a bell rings",
    r"camera-shutter": "a camera shutter clicks",
    r"phone-incoming-call": "a telephone rings",
    r"phone-outgoing-busy": "the busy tone of a telephone",
    r"phone-outgoing-calling": "the ringing tone of a telephone line",
}
_FILLETS = {
    r"share/sp-bubles": "bubbles rise in water",
    r"linux/en/(key|enter|space)": "a key of a keyboard is pressed",
    r"dump/en/sm-x-tiktak": "a clock ticks",
    r"keys/en/unlocking": "a lock is unlocked",
    r"engine/en/mot-x-motor": "a motor runs",
    r"bathyscaph/en/bat-t-phone": "a telephone rings",
    r"viking2/en/dr-x-pes": "a dog barks",
    r"cancan/en/kan-klavir-music": "a piano plays",
}
_ASTERISK = {
    r"beep": "a beep",
    r"beeperr": "an error tone",
    r"ascending-2tone": "two tones, the second one higher",
    r"descending-2tone": "two tones, the second one lower",
    r"tt-monkeys": "monkeys screech",
}
_OXYGEN = {r"Oxygen-Im-Phone-Ring": "a telephone rings"}
_LOMIRI = {
    r"camera/click/camera_click": "a camera shutter clicks",
    r"notifications/A": "a steady tone",  # A440
    r"notifications/(Mallet|Xylo)": "a short melody on a xylophone",
}

# Of a package: where its sounds lie, and captions for the names below that, without numbers.
_NAMES: tuple[tuple[str, dict[str, str]], ...] = (
    (r"ufoai-sound/.*/sound/", _UFOAI),
    (r"wesnoth-[\d.]+-data/.*?sounds/", _WESNOTH),
    (r"hedgewars-data/.*/Sounds/", _HEDGEWARS),
    (r"sonic-pi-samples/sonic-pi/samples/", _SONIC_PI),
    (r"sound-theme-freedesktop/.*/stereo/", _FREEDESKTOP),
    (r"fillets-ng-data/.*?/sound/", _FILLETS),
    (r"asterisk-core-sounds-.*/sounds/\w+/", _ASTERISK),
    (r"oxygen-sounds/sounds/", _OXYGEN),
    (r"lomiri-sounds/sounds/lomiri/", _LOMIRI),
)
_NUMBER = r"[-_]?\d*(\.\w+)?"

# Stamps of things that have a sound of their own; a hat, or a sign, has been given some jingle.
_STAMPS = re.compile(
    r"animals/|hobbies/|naturalforces/|vehicles/emergency/|seasonal/newyears/fireworks"
    r"|seasonal/halloween/(bat|blackcat)"
    r"|household/(Washing-machine|arttools|kettle|rubberduck|tools|vacuum_cleaner)"
)
_SPELLED_OUT = {
    "household/toilet": "a toilet is flushed",
    "household/dishes/glass": "water is poured into a glass",
    "military/final-roll-call": "a bugle call",
    "animals/insects/mosquito": "the sound of a mosquito",
}


def caption_by_name(recording: str) -> tuple[str, ...]:
    """Captions of the sound with id `recording` (PACKAGE/PATH below usr/share); maybe none."""
    for place, names in _NAMES:
        if found := re.match(place, recording):
            name = recording[found.end() :]
            return next(
                ((text,) for key, text in names.items() if re.fullmatch(f"({key}){_NUMBER}", name)),
                (),
            )
    return ()


def caption_of_stamp(name: str, description: str) -> tuple[str, ...]:
    """Captions of a stamp's sound.

    Args:
        name: of the stamp, as a path below tuxpaint/stamps, without suffix.
        description: what the stamp shows, in English ("A cow."); may be empty.
    """
    if name in _SPELLED_OUT:
        return (_SPELLED_OUT[name],)
    if not description or not _STAMPS.match(name):
        return ()
    thing = re.sub(r"\s*\(.*\)", "", description).strip(" .")
    return (f"the sound of {thing[0].lower()}{thing[1:]}",)
