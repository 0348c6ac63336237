"""The numbers that Word puts before paragraphs: they stand in no run of text, yet contracts refer to clauses by them.

Counters as Office Open XML (ECMA-376 part 1, 17.9) has them: one a level of an abstract numbering, shared by the lists
that use it, begun anew by a list's start override and under every higher number. Bullets are left out. Not handled:
`lvlRestart` other than the default, and counting words ("First"), which come out as digits.
"""

import re
from dataclasses import dataclass, field

from docx.document import Document
from docx.opc.constants import RELATIONSHIP_TYPE
from docx.oxml.ns import qn
from lxml import etree

_VALUE, _ILVL, _NUM_ID = qn("w:val"), qn("w:ilvl"), qn("w:numId")
_MAX_LEVEL = 8
_ROMAN = ((1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"), (50, "l"), (40, "xl"), (10, "x"))
_ROMAN += ((9, "ix"), (5, "v"), (4, "iv"), (1, "i"))


@dataclass
class _List:
    """One `w:num`: the levels it shows, whose counters it moves, and the levels it begins anew when first used."""

    counters: dict[int, int]
    levels: dict[int, etree._Element]
    begun_anew: dict[int, int] = field(default_factory=dict)


class Numbering:
    """The document's lists while its paragraphs are gone through in order."""

    def __init__(self, document: Document) -> None:
        self._styles = {style.get(qn("w:styleId")): style for style in document.styles.element.iter(qn("w:style"))}
        self._lists: dict[str, _List] = {}
        try:
            root = document.part.part_related_by(RELATIONSHIP_TYPE.NUMBERING).element
        except (KeyError, AttributeError):
            return
        abstract = {one.get(qn("w:abstractNumId")): one for one in root.iter(qn("w:abstractNum"))}
        counters: dict[str | None, dict[int, int]] = {}
        for num in root.iter(qn("w:num")):
            name = _value(num, "w:abstractNumId")
            found = _List(counters.setdefault(name, {}), _levels(abstract.get(name)))
            for override in num.iter(qn("w:lvlOverride")):
                level = _number(override.get(_ILVL), 0)
                found.levels |= _levels(override)
                if (start := _value(override, "w:startOverride")) is not None:
                    found.begun_anew[level] = _number(start, 1)
            self._lists[num.get(_NUM_ID)] = found

    def next(self, paragraph: etree._Element) -> str:
        """The number before this paragraph, as "8.2" or "(a)"; "" where there is none. Call it for every paragraph."""
        name, level = self._of(paragraph)
        found = self._lists.get(name or "")
        if found is None or level not in found.levels:
            return ""
        counters = found.counters
        if level in found.begun_anew:
            counters[level] = found.begun_anew.pop(level)
        else:
            counters[level] = counters[level] + 1 if level in counters else _start(found, level)
        for deeper in [one for one in counters if one > level]:
            del counters[deeper]
        return _label(found, level)

    def _of(self, paragraph: etree._Element) -> tuple[str | None, int]:
        """The paragraph's list and level: its own, or those of its style or of a style that one is based on."""
        properties = paragraph.find(qn("w:pPr"))
        if properties is None:
            return None, 0
        own = properties.find(qn("w:numPr"))
        name, level = (None, None) if own is None else (_value(own, "w:numId"), _value(own, "w:ilvl"))
        style, seen = _value(properties, "w:pStyle"), set()
        while style in self._styles and style not in seen and name is None:
            seen.add(style)
            element = self._styles[style]
            of_style = element.find(f"{qn('w:pPr')}/{qn('w:numPr')}")
            if of_style is not None:
                name = _value(of_style, "w:numId")
                level = level or _value(of_style, "w:ilvl") or self._level_of_style(name, style)
            style = _value(element, "w:basedOn")
        return name, min(_number(level, 0), _MAX_LEVEL)

    def _level_of_style(self, name: str | None, style: str) -> str | None:
        levels = self._lists[name].levels if name in self._lists else {}
        return next((str(at) for at, level in levels.items() if _value(level, "w:pStyle") == style), None)


def _levels(parent: etree._Element | None) -> dict[int, etree._Element]:
    found = () if parent is None else parent.iter(qn("w:lvl"))
    return {_number(level.get(_ILVL), 0): level for level in found}


def _label(found: _List, level: int) -> str:
    of_level = found.levels[level]
    if _value(of_level, "w:numFmt") == "bullet":
        return ""
    plain = of_level.find(qn("w:isLgl")) is not None

    def numeral(match: re.Match[str]) -> str:
        at = int(match[1]) - 1
        number = found.counters.get(at, _start(found, at))
        return _numeral(number, "decimal" if plain else _value(found.levels.get(at), "w:numFmt"))

    return re.sub(r"%([1-9])", numeral, _value(of_level, "w:lvlText") or "").strip()


def _numeral(number: int, form: str | None) -> str:
    if form == "none":
        return ""
    # A hostile start value would make a numeral of megabytes.
    if not 0 < number < 4000:
        return str(number)
    if form in ("lowerLetter", "upperLetter"):
        letter = chr(ord("a") + (number - 1) % 26) * ((number - 1) // 26 + 1)
        return letter.upper() if form == "upperLetter" else letter
    if form in ("lowerRoman", "upperRoman"):
        roman = ""
        for value, sign in _ROMAN:
            roman, number = roman + sign * (number // value), number % value
        return roman.upper() if form == "upperRoman" else roman
    return f"{number:02d}" if form == "decimalZero" else str(number)


def _start(found: _List, level: int) -> int:
    return _number(_value(found.levels.get(level), "w:start"), 1)


def _value(parent: etree._Element | None, tag: str) -> str | None:
    child = None if parent is None else parent.find(qn(tag))
    return None if child is None else child.get(_VALUE)


def _number(text: str | None, otherwise: int) -> int:
    return int(text) if text is not None and re.fullmatch(r"-?\d{1,9}", text) else otherwise
