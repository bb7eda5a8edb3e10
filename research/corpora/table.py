"""What is trained on and what is measured on: whole sub-sets of the packages, by their names.

The choice is explained in docs/data.md.
"""

from __future__ import annotations

from research.corpora.sets import LabelledSet, heights, of_card, scenes, turned, whole

PHOTOGRAPHS = ("backgrounds/*", "wallpapers/*")
PRETRAIN_SHORT_SIDES = (1440, 960, 480, 240)
FINAL_PHOTOGRAPHS = ("wallpapers/*",)
DEVELOPMENT_PHOTOGRAPHS = ("backgrounds/mate/nature/*",)


def _clipart(*folders: str) -> tuple[str, ...]:
    return tuple(f"openclipart/png/{folder}/*" for folder in folders)


def _stamps(*folders: str) -> tuple[str, ...]:
    return tuple(f"tuxpaint/stamps/{folder}/*" for folder in folders)


_FLAGS = "signs_and_symbols/flags"
_CARDS = "recreation/games/cards"
_CELEBRATIONS = ("recreation/party", "recreation/holiday", "recreation/toys")

FINAL: dict[str, LabelledSet] = {
    "stamps": LabelledSet(
        "the object; photographs and drawings of the package nothing else comes from",
        {
            "birds": _stamps("animals/birds"),
            "insects": _stamps("animals/insects"),
            "mammals": _stamps("animals/mammals", "animals/marsupials"),
            "plants": _stamps("plants"),
            "food": _stamps("food"),
            "vehicles": _stamps("vehicles"),
            "buildings": _stamps("town/houses", "town/monuments", "town/cartoon"),
            "household": _stamps("household"),
            "clothes": _stamps("clothes"),
            "roadsigns": _stamps("town/roadsigns"),
            "money": _stamps("symbols/money"),
        },
        whole,
    ),
    "clipart": LabelledSet(
        "the object; drawings by many hands",
        {
            "mammals": _clipart("animals/mammals"),
            "birds": _clipart("animals/birds"),
            "bugs": _clipart("animals/bugs"),
            "fruit": _clipart("food/fruit"),
            "desserts": _clipart("food/desserts"),
            "beverages": _clipart("food/beverages"),
            "plants": _clipart("plants"),
            "music": _clipart("recreation/music"),
            "sports": _clipart("recreation/sports"),
            "tools": _clipart("tools"),
        },
        whole,
    ),
    "flags": LabelledSet(
        "colours and their arrangement: flags by continent",
        {
            name: _clipart(f"{_FLAGS}/{name}")
            for name in ("africa", "america", "asia", "europe", "oceania")
        },
        whole,
    ),
    "cards": LabelledSet(
        "colour and one small shape: playing cards by suit",
        {
            suit: (f"openclipart/png/{_CARDS}/*_{suit[0]}_*",)
            for suit in ("clubs", "diamonds", "hearts", "spades")
        },
        of_card,
    ),
    "turned": LabelledSet(
        "orientation: how far a drawing was turned",
        {"drawing": _clipart("people", "buildings", "transportation")},
        turned,
    ),
    "heights": LabelledSet(
        "position: which third of a photograph a tile was cut from",
        {"photograph": FINAL_PHOTOGRAPHS},
        heights,
        tiles=True,
    ),
    "scenes": LabelledSet(
        "colour and texture: which photograph a tile was cut from",
        {"photograph": FINAL_PHOTOGRAPHS},
        scenes,
        tiles=True,
    ),
}
DEVELOPMENT: dict[str, LabelledSet] = {
    "subjects": LabelledSet(
        "the object; drawings by many hands",
        {
            "office": _clipart("office"),
            "geography": _clipart("geography"),
            "education": _clipart("education"),
            "electronics": _clipart("electronics"),
            "celebrations": _clipart(*_CELEBRATIONS),
        },
        whole,
    ),
    "turned-objects": LabelledSet(
        "orientation: how far a drawing was turned",
        {"drawing": _clipart("office", "education", "electronics", *_CELEBRATIONS)},
        turned,
    ),
    "photographs": LabelledSet(
        "colour and texture: which photograph a tile was cut from",
        {"photograph": DEVELOPMENT_PHOTOGRAPHS},
        scenes,
        tiles=True,
    ),
}
KEPT_OUT = (
    *FINAL_PHOTOGRAPHS,
    *DEVELOPMENT_PHOTOGRAPHS,
    "tuxpaint/*",
    *_clipart("animals", "food", "plants", "recreation", "tools", _FLAGS, "people", "buildings"),
    *_clipart("transportation", "office", "geography", "education", "electronics"),
)
LEFT_OUT = (
    "*/screenshot.*",
    "*/images_dark/*",  # the same pictures by night
    *(f"wallpapers/*/{size}.*" for size in ("1080x1920", "720x1440", "1622x2880")),  # upright
    "backgrounds/gnome/vnc-*",  # one colour
    *_clipart("shapes/stars"),  # 1,378 outlines that one program drew
)
