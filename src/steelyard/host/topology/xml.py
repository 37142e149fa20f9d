"""What elements does this XML text hold, without trusting whoever wrote it? One parse for all readers of XML.

Takes the whole text, returns the root element. An outside `<!DOCTYPE … SYSTEM "…dtd">` is passed over and never fetched.
Entities and every DTD inside the file are refused (they are how a few bytes become gigabytes, or how local files leak in), and
size, depth, number of elements and length of one tag are bounded. Never opens a file or a connection.
"""

from __future__ import annotations

import re
from typing import Never
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from steelyard.errors import Refused

#: the largest machine on record is 0.2 MiB
TEXT_BYTES_MAX = 32 * 1024**2
DEPTH_MAX = 200
#: elements and attributes together
PARTS_MAX = 1_000_000
#: Characters from one `<` to the next. A tag holds no other `<`, so this bounds what the parser must keep of one element.
PIECE_MAX = 1_000_000
_CUT_OFF = {
    expat.errors.codes[message]
    for message in (
        expat.errors.XML_ERROR_NO_ELEMENTS,
        expat.errors.XML_ERROR_UNCLOSED_TOKEN,
        expat.errors.XML_ERROR_PARTIAL_CHAR,
    )
}


def parse_xml(text: str, source: str, *, text_bytes_max: int = TEXT_BYTES_MAX) -> Element:
    """The root element. Raises `Refused`, naming `source` and the line, for what is cut off, malformed, too large or unsafe."""
    data = _encoded(text, source, text_bytes_max)
    tree, depth, parts = TreeBuilder(), 0, 0

    def refuse(what: str) -> Never:
        raise Refused(f"{source}, line {parser.CurrentLineNumber}: {what}, so it is not read.", code="unsafe-xml")

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth, parts
        depth, parts = depth + 1, parts + 1 + len(attributes)
        if depth > DEPTH_MAX:
            refuse(f"elements are nested more than {DEPTH_MAX} deep")
        if parts > PARTS_MAX:
            refuse(f"there are more than {PARTS_MAX} elements and attributes")
        tree.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        tree.end(tag)

    def doctype(_name: str, _system: str | None, _public: str | None, internal: bool) -> None:
        # Even without entities: default attributes declared here would be copied into every element.
        if internal:
            refuse("it brings its own DTD (declarations inside <!DOCTYPE>)")

    # The text is decoded already: an encoding that the file declares for itself must not be applied again.
    parser = expat.ParserCreate(encoding="utf-8")
    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = tree.data
    parser.StartDoctypeDeclHandler = doctype
    parser.EntityDeclHandler = lambda *_: refuse("it declares an entity")
    parser.ExternalEntityRefHandler = lambda *_: refuse("it asks for another file")
    parser.SkippedEntityHandler = lambda name, _: refuse(f"it uses an entity that it does not define (&{name};)")
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        if error.code in _CUT_OFF:
            raise Refused(f"{source} is cut off at line {error.lineno}: record it again.", code="truncated") from error
        reason = expat.ErrorString(error.code)
        raise Refused(f"{source}, line {error.lineno}: this is not well-formed XML ({reason}).", code="malformed-xml") from error
    return tree.close()


def _encoded(text: str, source: str, text_bytes_max: int) -> bytes:
    """The text for the parser, if its size and shape are what a machine's description can have."""
    too_large = f"{source} is larger than {text_bytes_max / 1024**2:g} MiB, so it is not read: no description of a machine is."
    if len(text) > text_bytes_max:
        raise Refused(too_large, code="too-large")
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise Refused(f"{source} is not text (at character {error.start}).", code="malformed-xml") from error
    if len(data) > text_bytes_max:
        raise Refused(too_large, code="too-large")
    if match := re.search(rf"<[^<]{{{PIECE_MAX}}}", text):
        line = text.count("\n", 0, match.start()) + 1
        raise Refused(
            f"{source}, line {line}: one tag or text is longer than {PIECE_MAX} characters, so it is not read.", code="unsafe-xml"
        )
    return data
