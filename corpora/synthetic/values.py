"""What fills the slots of a clause: names, places, amounts and dates, drawn from a seeded `random.Random`.

All of it is invented. Company names mix real words with made-up ones so that a model has to copy, not recall.
"""

import datetime
from functools import lru_cache
from random import Random

from num2words import num2words

_ONSETS = "b br c ch cl d dr f fl g gl gr h j k kr l m n p pr qu r s sh sk st t th tr v w z".split()
_VOWELS = "a e i o u ai ea io ou ae oa".split()
_CODAS = "l n r s t x m nd rt ck ll ss th rn lt".split()
_WORDS = (
    "Alder Amber Anchor Apex Arbor Arrow Atlas Aurora Beacon Birch Bluestone Border Bright Bristol Cardinal Castle Cedar "
    "Central Civic Clear Cobalt Compass Copper Coral Crescent Crown Delta Eagle Eastern Echo Elm Ember Falcon Fern First "
    "Forge Frontier Garnet Global Golden Granite Gulf Harbor Hawk Helix Heron Highland Horizon Iron Ivory Jasper Keystone "
    "Lake Lantern Laurel Legacy Liberty Lunar Maple Marble Meridian Metro Mill Mistral Noble North Nova Oak Ocean Onyx "
    "Orchard Orion Pacific Pearl Pike Pine Pinnacle Polar Prairie Prime Quarry Quartz Rapid Raven Redwood Ridge River "
    "Royal Sable Sage Sand Sierra Silver Sky Solar Spruce Star Sterling Stone Summit Swift Terra Timber Titan Trident "
    "Union Valley Vector Velvet Vista Western Willow Winter Zenith"
).split()
_TRADES = (
    "Analytics Biologics Brands Capital Chemicals Components Controls Data Devices Diagnostics Dynamics Electronics Energy "
    "Engineering Foods Health Holdings Industries Instruments Interactive Labs Logistics Machinery Materials Media Medical "
    "Networks Optics Partners Pharma Plastics Power Products Resources Robotics Scientific Semiconductor Services Software "
    "Solutions Sports Steel Studios Supply Systems Technologies Telecom Textiles Therapeutics Trading Transport Ventures"
).split()
_FORMS = ("Inc.", "LLC", "Ltd.", "Corp.", "Limited", "L.P.", "GmbH", "AB", "S.A.", "Co.", "Pty Ltd", "plc", "N.V.")
_PRODUCT_KINDS = (
    "industrial advanced portable wireless custom hydraulic digital automated modular lightweight medical commercial "
    "precision thermal optical marine organic recycled electric compact"
).split()
_PRODUCTS = (
    "flow meters|pump assemblies|control valves|sensor arrays|battery packs|lighting fixtures|drilling tools|water filters|"
    "packaging films|test kits|imaging scanners|display panels|power converters|cooling units|storage cabinets|"
    "software modules|network switches|tracking devices|training courses|fitness machines|skin creams|pet foods|"
    "coffee blends|surgical gloves|garden tractors|paint coatings|engine parts|security cameras|data services|payment terminals|"
    "toy figures|running shoes|wine glasses|seed varieties|vaccine doses|concert tickets|fuel additives|glass bottles"
).split("|")
_STATES = (
    "Ohio Delaware Texas Nevada Oregon Utah Georgia Maine Vermont Florida Illinois California Kansas Virginia Arizona "
    "Colorado Minnesota Michigan Indiana Montana Washington Wisconsin Tennessee Maryland Alabama Iowa Nebraska Idaho"
).split() + ["New York", "New Jersey", "North Carolina", "South Dakota", "Rhode Island", "New Mexico"]
_COUNTRIES = (
    "England and Wales|Scotland|Ireland|Germany|France|Sweden|Norway|Denmark|Finland|Switzerland|Austria|Belgium|Spain|Italy|"
    "Portugal|Singapore|Hong Kong|Japan|India|Israel|Brazil|Mexico|the Netherlands|New Zealand|South Africa|Poland"
).split("|")
_PROVINCES = ("the Province of Ontario", "the Province of Alberta", "the Province of Quebec", "the State of Victoria")
_REGIONS = (
    "the United States|North America|the European Union|Latin America|the Nordic countries|Southeast Asia|the United Kingdom|"
    "Canada|the Middle East|Western Europe|the Gulf states|Australia|Central America|East Africa|the Benelux countries"
).split("|")
_CITIES = (
    "Akron Dover Austin Reno Salem Provo Macon Bangor Tampa Peoria Fresno Wichita Norfolk Tucson Boulder Duluth Lansing Muncie "
    "Helena Spokane Madison Memphis Laurel Mobile Ames Omaha Boise Albany Newark Durham London Leeds Cork Munich Lyon Malmo "
    "Bergen Aarhus Turku Basel Graz Ghent Bilbao Turin Porto Osaka Pune Haifa Utrecht Perth Calgary Halifax"
).split()
_STREETS = (
    "High Park Mill Church Station Bridge Queen King Market Harbor Cedar Elm Union Canal Garden Spring Dock".split()
)
_STREET_KINDS = ("Street", "Road", "Avenue", "Lane", "Boulevard", "Drive")
_FIRST = "Ada Amos Bela Cora Dana Emil Erik Faye Gita Hugo Ines Ivan Jana Karl Lena Lars Mina Nils Olga Omar Petra Rosa Ruth Sven Tara Uma Vera Yann Zoe Noah".split()
_TITLES = (
    "President|Chief Executive Officer|Managing Director|Vice President|General Manager|Chief Financial Officer|Director|"
    "Secretary|Authorized Signatory|Treasurer"
).split("|")
_MONTHS = ("January February March April May June July August September October November December").split()


def pseudo_word(rng: Random) -> str:
    """A capitalised made-up word of two or three syllables."""
    syllables = (
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) * (rng.random() < 0.6)
        for _ in range(rng.choice((2, 2, 3)))
    )
    return "".join(syllables).capitalize()


def company(rng: Random) -> str:
    """A company's full name."""
    first = rng.choice(_WORDS) if rng.random() < 0.5 else pseudo_word(rng)
    return (
        f"{first} {rng.choice(_TRADES)} {rng.choice(_FORMS)}"
        if rng.random() < 0.85
        else f"{first} {rng.choice(_FORMS)}"
    )


def person(rng: Random) -> str:
    """A person's name."""
    return f"{rng.choice(_FIRST)} {pseudo_word(rng)}"


def job_title(rng: Random) -> str:
    """An officer's title."""
    return rng.choice(_TITLES)


def address(rng: Random) -> str:
    """Street and city."""
    return f"{rng.randint(1, 980)} {rng.choice(_STREETS)} {rng.choice(_STREET_KINDS)}, {rng.choice(_CITIES)}"


def city(rng: Random) -> str:
    """A city."""
    return rng.choice(_CITIES)


def jurisdiction(rng: Random) -> str:
    """What stands behind "the laws of"."""
    draw = rng.random()
    if draw < 0.6:
        return f"the State of {rng.choice(_STATES)}"
    return rng.choice(_COUNTRIES) if draw < 0.92 else rng.choice(_PROVINCES)


def entity(rng: Random) -> str:
    """A party's legal form, as "a Delaware corporation"."""
    state, kind = rng.choice(_STATES), rng.choice(("corporation", "limited liability company", "limited partnership"))
    return f"{'an' if state[0] in 'AEIO' else 'a'} {state} {kind}"


def territory(rng: Random) -> str:
    """A sales territory."""
    if rng.random() < 0.5:
        return rng.choice(_REGIONS)
    first, second = rng.sample(_STATES, 2)
    return f"{first} and {second}"


def product(rng: Random) -> str:
    """A lower-case plural noun phrase."""
    return f"{rng.choice(_PRODUCT_KINDS)} {rng.choice(_PRODUCTS)}"


DAYS = (5, 7, 10, 14, 15, 20, 21, 25, 28, 30, 35, 40, 45, 50, 60, 75, 80, 90, 100, 120, 150, 180)
MONTHS = (2, 3, 4, 6, 8, 9, 10, 12, 15, 18, 20, 24, 30, 36, 48)
YEARS = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 20)
UNITS = tuple(n * scale for scale in (100, 1000, 10000) for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 25))
PERCENTS = tuple(range(2, 31)) + (35, 40, 45, 50, 60)
AMOUNTS = tuple(
    n * scale for scale in (1000, 10000, 100000, 1000000) for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 25, 35, 75)
)


@lru_cache(maxsize=4096)
def _words(n: int) -> str:
    return num2words(n).replace(" and ", " ").replace(",", "")


def format_number(n: int, style: str) -> str:
    """`n` in a house's number style; KeyError for a style that is not known."""
    digits = f"{n:,}"
    return {
        "words_digits": f"{_words(n)} ({digits})",
        "digits": digits,
        "words": _words(n),
        "digits_words": f"{digits} ({_words(n)})",
    }[style]


def format_percent(n: int, style: str) -> str:
    """`n` percent in a house's style."""
    return {
        "words_digits": f"{_words(n)} percent ({n}%)",
        "symbol": f"{n}%",
        "words": f"{_words(n)} per cent",
        "per_centum": f"{n} per centum",
    }[style]


def format_money(amount: int, style: str) -> str:
    """An amount of money in a house's style."""
    return {
        "dollar": f"${amount:,}",
        "us_dollar": f"US${amount:,}",
        "usd": f"USD {amount:,}",
        "words": f"{_words(amount)} dollars (${amount:,})",
        "pounds": f"£{amount:,}",
        "euro": f"EUR {amount:,}".replace(",", "."),
    }[style]


def format_date(date: datetime.date, style: str) -> str:
    """A date in a house's style."""
    month, day = _MONTHS[date.month - 1], date.day
    suffix = "th" if 11 <= day <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return {
        "us_long": f"{month} {day}, {date.year}",
        "uk_long": f"{day} {month} {date.year}",
        "iso": date.isoformat(),
        "ordinal": f"the {day}{suffix} day of {month}, {date.year}",
        "dotted": f"{day:02}.{date.month:02}.{date.year}",
        "us_slash": f"{date.month:02}/{day:02}/{date.year}",
    }[style]
