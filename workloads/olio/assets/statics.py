"""The static files: which a page asks for, how large each is, and its content."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

from workloads.olio.assets.bitmap import Colour, corner, gif, png, ring, shade, star
from workloads.olio.loader.text import Texts

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCES = Path(__file__).resolve().parent / "src"

# Bytes, as in Olio's PHP application.
SIZES: dict[str, int] = {
    "js/prototype.js": 71_747,
    "js/effects.js": 38_630,
    "js/dragdrop.js": 31_004,
    "js/controls.js": 29_423,
    "js/validateform.js": 9_159,
    "js/starrating.js": 3_806,
    "css/scaffold.css": 2_065,
    "css/site.css": 10_250,
    "images/bg_main.png": 1_151,
    "images/RSS-icon-large.gif": 1_005,
    "images/php_bg_header.gif": 947,
    "images/php_main_nav_link_bg.gif": 295,
    "images/php_main_nav_hover_bg.gif": 501,
    "images/php_corner_top_right.gif": 157,
    "images/php_corner_top_left.gif": 156,
    "images/php_corner_bottom_right.gif": 157,
    "images/php_corner_bottom_left.gif": 157,
    "images/php_reflec_tile.gif": 365,
    "images/php_reflec_right.gif": 1_468,
    "images/php_reflec_left.gif": 1_466,
    "images/star_on.png": 407,
    "images/star_off.png": 449,
}

COMMON = tuple(name for name in SIZES if name not in {
    "js/validateform.js", "js/starrating.js", "images/php_main_nav_hover_bg.gif", "images/star_on.png", "images/star_off.png",
})  # fmt: skip
HOVER = "images/php_main_nav_hover_bg.gif"

# By operation, in the order of the requests. A log-in asks for none.
STATICS: dict[str, tuple[str, ...]] = {
    "HomePage": (*COMMON, HOVER),
    "Login": (),
    "TagSearch": (*COMMON, HOVER),
    "EventDetail": (HOVER, *COMMON, "js/starrating.js", "images/star_on.png", "images/star_off.png"),
    "PersonDetail": COMMON,
    "AddPerson": (*COMMON, "js/validateform.js"),
    "AddEvent": (*COMMON, "js/validateform.js"),
}

BLUE: Colour = (46, 84, 130, 255)
LIGHT: Colour = (226, 236, 247, 255)
WHITE: Colour = (255, 255, 255, 255)
ORANGE: Colour = (226, 128, 32, 255)
GREY: Colour = (196, 200, 206, 255)

PICTURES: dict[str, Callable[[int], bytes]] = {
    "images/bg_main.png": lambda size: png(4, 220, size, shade(LIGHT, WHITE, 64)),
    "images/RSS-icon-large.gif": lambda size: gif(28, 28, size, ring(ORANGE)),
    "images/php_bg_header.gif": lambda size: gif(8, 90, size, shade((66, 110, 164, 255), BLUE)),
    "images/php_main_nav_link_bg.gif": lambda size: gif(4, 26, size, shade(LIGHT, (196, 214, 234, 255))),
    "images/php_main_nav_hover_bg.gif": lambda size: gif(8, 26, size, shade(WHITE, LIGHT)),
    "images/php_corner_top_right.gif": lambda size: gif(8, 8, size, corner(BLUE, 0, 1)),
    "images/php_corner_top_left.gif": lambda size: gif(8, 8, size, corner(BLUE, 1, 1)),
    "images/php_corner_bottom_right.gif": lambda size: gif(8, 8, size, corner(BLUE, 0, 0)),
    "images/php_corner_bottom_left.gif": lambda size: gif(8, 8, size, corner(BLUE, 1, 0)),
    "images/php_reflec_tile.gif": lambda size: gif(4, 36, size, shade((214, 226, 240, 255), WHITE)),
    "images/php_reflec_right.gif": lambda size: gif(24, 36, size, shade((214, 226, 240, 255), WHITE)),
    "images/php_reflec_left.gif": lambda size: gif(24, 36, size, shade((214, 226, 240, 255), WHITE)),
    "images/star_on.png": lambda size: png(18, 18, size, star(ORANGE)),
    "images/star_off.png": lambda size: png(18, 18, size, star(GREY)),
}


def static_file(name: str) -> bytes:
    """The content of one static file, exactly ``SIZES[name]`` bytes."""
    size = SIZES[name]
    if name in PICTURES:
        return PICTURES[name](size)
    return padded_source((SOURCES / name).read_bytes(), size, name)


def padded_source(source: bytes, size: int, seed: str) -> bytes:
    """A script or style sheet followed by a comment of words up to the size: it compresses and caches like text does."""
    room = size - len(source) - len("\n/*\n*/\n")
    if room < 0:
        raise ValueError(f"{seed}: the source has {len(source)} bytes, more than {size}")
    rng = random.Random(f"static:{seed}")
    texts = Texts(f"static:{seed}")
    lines: list[str] = []
    length = 0
    while length < room:
        line = " * " + texts.text(rng, 60, 120) + "\n"
        lines.append(line)
        length += len(line)
    filler = "".join(lines)[:room].encode()
    return source + b"\n/*\n" + filler + b"*/\n"
