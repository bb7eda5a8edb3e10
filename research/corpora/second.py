"""The second study's table: larger test shares, finer classes, and icon themes by their folders."""

from __future__ import annotations

from dataclasses import replace

from research.corpora import first
from research.corpora.sets import LabelledSet, turned, whole
from research.corpora.table import Table, clipart, stamps

SHARES = {"train": 0.2, "val": 0.2, "test": 0.6}  # the probe is refit on train and val
NEAR = 8.0  # grey levels: pictures that close are variants, and stay on one side
MOST = 160  # of a class, so that no class is most of a set
THEMES = {
    "oxygen": ("icons/oxygen/base/*x*/{}/*",),
    "elementary": ("icons/elementary-xfce/{}/*",),
    "gnome": ("icons/gnome/*x*/{}/*", "icons/mate/*x*/{}/*", "icons/nuoveXT2/*x*/{}/*"),
    "obsidian": ("icons/Obsidian/{}/*", "icons/Faenza/{}/*"),
    "moka": ("icons/Moka/*x*/{}/*", "icons/Paper/*x*/{}/*"),
    "mint": ("icons/Mint-Y/{}/*",),
}
SMALL = (8, 16, 18, 20, 22, 24, 32, 36)  # pixels: nothing of these is left at 48


def _icons(theme: str, *contexts: str) -> tuple[str, ...]:
    return tuple(place.format(context) for place in THEMES[theme] for context in contexts)


def _drawn(
    decides: str, classes: dict[str, tuple[str, ...]], most: int | None = None
) -> LabelledSet:
    return LabelledSet(decides, classes, whole, shares=SHARES, near=NEAR, most=most)


def _theme(theme: str, *contexts: str) -> LabelledSet:
    """The icons of one hand or two, by the folders of the icon theme specification."""
    return _drawn(
        "what an icon stands for: the folder of its theme",
        {context: _icons(theme, context) for context in contexts},
        most=MOST,
    )


# First words of icons' names in the naming specification that say what is seen; faces are left out.
FAMILIES = (
    *("audio", "battery", "dialog", "document", "drive", "edit", "folder", "format", "go", "image"),
    *("input", "mail", "media", "network", "system", "text", "user", "view", "weather"),
)
CANDIDATES: dict[str, LabelledSet] = {
    "stamps": _drawn(
        "the object; photographs and drawings of the package nothing else comes from",
        {
            "birds": stamps("animals/birds"),
            "small": stamps(
                *(f"animals/{x}" for x in ("insects", "fish", "shellfish", "amphibians", "lizards"))
            ),
            "mammals": stamps("animals/mammals", "animals/marsupials"),
            "plants": stamps("plants"),
            "fruit": stamps("food/fruit"),
            "meals": stamps("food/vegetables", "food/nuts", "food/dessert"),
            "vehicles": stamps("vehicles", "military/vehicles"),
            "buildings": stamps("town/houses", "town/monuments", "town/cartoon"),
            "household": stamps("household"),
            "money": stamps("symbols/money"),
            "letters": stamps("symbols/alphabets"),
            "signs": stamps("symbols/math", "symbols/music", "symbols/chess", "town/roadsigns"),
            "seasons": stamps("seasonal"),
        },
        most=60,
    ),
    "clipart": _drawn(
        "the object; drawings by many hands",
        {
            **first.FINAL["clipart"].classes,
            "meals": clipart(
                "food/meats_and_eggs", "food/breads_and_carbs", "food/vegetables", "food/dairy"
            ),
        },
    ),
    "things": _drawn(
        "the object; drawings by many hands, the same as those of turned",
        {
            "bodyparts": clipart("people/bodypart"),
            "clothing": clipart("people/clothing"),
            "people": clipart("people"),  # what is in none of the folders above
            "buildings": clipart("buildings"),
            "roadsigns": clipart("transportation/roadsigns"),
            "boats": clipart("transportation/boating"),
            "vehicles": clipart("transportation"),
        },
    ),
    "turned": LabelledSet(
        "orientation: how far a drawing was turned",
        first.FINAL["turned"].classes,
        turned,
        shares=SHARES,
        near=NEAR,
    ),
    "scenes": replace(first.FINAL["scenes"], shares=SHARES, apart=True),
    "oxygen": _theme(
        *("oxygen", "actions", "apps", "categories", "devices", "mimetypes", "places", "status")
    ),
    "elementary": _theme(
        *("elementary", "actions", "apps", "categories", "devices", "mimes", "places", "status")
    ),
    "gnome": _theme(
        *("gnome", "actions", "apps", "categories", "devices", "mimetypes", "places", "status")
    ),
    "obsidian": _theme(
        *("obsidian", "actions", "apps", "devices", "mimetypes", "places", "status")
    ),
    "moka": _theme(
        *("moka", "apps", "categories", "devices", "mimetypes", "places", "status", "web")
    ),
    "styles": _drawn(
        "the hand that drew it: icons of applications by theme",
        {theme: _icons(theme, "apps") for theme in THEMES},
        most=120,
    ),
    "families": _drawn(
        "what is shown: icons of all themes by the first word of their names",
        {word: (f"icons/*/{word}-*",) for word in FAMILIES},
        most=60,
    ),
}
DEVELOPMENT = {
    **{name: replace(which, near=NEAR) for name, which in first.DEVELOPMENT.items()},
    "photographs": replace(first.DEVELOPMENT["photographs"], apart=True),
}
SECOND = Table(
    packages=(*first.PACKAGES, *(place.format("*") for some in THEMES.values() for place in some)),
    sets={
        "final": CANDIDATES,
        "secondary": {name: first.FINAL[name] for name in ("cards", "flags", "heights")},
        "development": DEVELOPMENT,
    },
    photographs=first.PHOTOGRAPHS,
    kept_out=(*first.KEPT_OUT, "icons/*"),
    left_out=(
        *first.LEFT_OUT,
        *clipart("people/smilies"),  # no emoji
        *(f"icons/*/{size}/*" for size in SMALL),
        *(f"icons/*/{size}x{size}/*" for size in SMALL),
        "icons/*@2x*",
    ),
    tiles_apart=True,
)
