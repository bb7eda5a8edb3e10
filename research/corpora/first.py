"""The first study's table; the embedded model was trained by it, too."""

from __future__ import annotations

from research.corpora.sets import LabelledSet, heights, of_card, scenes, turned, whole
from research.corpora.table import Table, clipart, stamps

PACKAGES = ("openclipart/*", "tuxpaint/*", "backgrounds/*", "wallpapers/*")
PHOTOGRAPHS = ("backgrounds/*", "wallpapers/*")
FINAL_PHOTOGRAPHS = ("wallpapers/*",)
DEVELOPMENT_PHOTOGRAPHS = ("backgrounds/mate/nature/*",)


_FLAGS = "signs_and_symbols/flags"
_CARDS = "recreation/games/cards"
_CELEBRATIONS = ("recreation/party", "recreation/holiday", "recreation/toys")

FINAL: dict[str, LabelledSet] = {
    "stamps": LabelledSet(
        "the object; photographs and drawings of the package nothing else comes from",
        {
            "birds": stamps("animals/birds"),
            "insects": stamps("animals/insects"),
            "mammals": stamps("animals/mammals", "animals/marsupials"),
            "plants": stamps("plants"),
            "food": stamps("food"),
            "vehicles": stamps("vehicles"),
            "buildings": stamps("town/houses", "town/monuments", "town/cartoon"),
            "household": stamps("household"),
            "clothes": stamps("clothes"),
            "roadsigns": stamps("town/roadsigns"),
            "money": stamps("symbols/money"),
        },
        whole,
    ),
    "clipart": LabelledSet(
        "the object; drawings by many hands",
        {
            "mammals": clipart("animals/mammals"),
            "birds": clipart("animals/birds"),
            "bugs": clipart("animals/bugs"),
            "fruit": clipart("food/fruit"),
            "desserts": clipart("food/desserts"),
            "beverages": clipart("food/beverages"),
            "plants": clipart("plants"),
            "music": clipart("recreation/music"),
            "sports": clipart("recreation/sports"),
            "tools": clipart("tools"),
        },
        whole,
    ),
    "flags": LabelledSet(
        "colours and their arrangement: flags by continent",
        {
            name: clipart(f"{_FLAGS}/{name}")
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
        {"drawing": clipart("people", "buildings", "transportation")},
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
            "office": clipart("office"),
            "geography": clipart("geography"),
            "education": clipart("education"),
            "electronics": clipart("electronics"),
            "celebrations": clipart(*_CELEBRATIONS),
        },
        whole,
    ),
    "turned-objects": LabelledSet(
        "orientation: how far a drawing was turned",
        {"drawing": clipart("office", "education", "electronics", *_CELEBRATIONS)},
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
    *clipart("animals", "food", "plants", "recreation", "tools", _FLAGS, "people", "buildings"),
    *clipart("transportation", "office", "geography", "education", "electronics"),
)
LEFT_OUT = (
    "*/screenshot.*",
    "*/images_dark/*",  # the same pictures by night
    *(f"wallpapers/*/{size}.*" for size in ("1080x1920", "720x1440", "1622x2880")),  # upright
    "backgrounds/gnome/vnc-*",  # one colour
    *clipart("shapes/stars"),  # 1,378 outlines that one program drew
)
FIRST = Table(
    packages=PACKAGES,
    sets={"final": FINAL, "development": DEVELOPMENT},
    photographs=PHOTOGRAPHS,
    kept_out=KEPT_OUT,
    left_out=LEFT_OUT,
)
