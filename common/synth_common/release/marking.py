"""The mark that a picture was made by a trained algorithm, as machines read it.

XMP property ``Iptc4xmpExt:DigitalSourceType`` with the IPTC NewsCode ``trainedAlgorithmicMedia``
(IPTC Photo Metadata Standard 2023.2, "Digital Source Type"); the packet lies in the PNG chunk iTXt
under the keyword that XMP part 3, section 1.1.5, gives it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from xml.etree import ElementTree

XMP_KEYWORD = "XML:com.adobe.xmp"
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_NAMESPACE = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_PROPERTY = f"{{{_NAMESPACE}}}DigitalSourceType"
_MOST = 100_000


@cache
def software() -> str:
    """This program with its version."""
    return f"Synthward {version('synthward')}"


@cache
def xmp_packet() -> str:
    """The XMP packet of a synthetic picture: the same in all, so that it identifies none."""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="{_NAMESPACE}"'
        ' xmlns:xmp="http://ns.adobe.com/xap/1.0/"'
        f' Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}" xmp:CreatorTool="{software()}"/>'
        "</rdf:RDF></x:xmpmeta>\n"
        '<?xpacket end="r"?>'
    )


def is_marked(packets: Iterable[str]) -> bool:
    """Whether one of a picture's XMP packets says that a trained algorithm made it."""
    return any(SOURCE_TYPE in _source_types(packet) for packet in packets)


def is_only_mark(packet: str) -> bool:
    """Whether a packet is the one that this program writes, in whatever version, and no more."""
    begin, _, end = (re.escape(part) for part in xmp_packet().partition(software()))
    return re.fullmatch(rf"{begin}Synthward [0-9A-Za-z.+]{{1,30}}{end}", packet) is not None


def _source_types(packet: str) -> list[str]:
    """The digital source types in a packet; none in one that cannot be read."""
    if len(packet) > _MOST or "<!" in packet:  # no entity of a stranger is unfolded
        return []
    try:
        root = ElementTree.fromstring(packet.replace("\ufeff", ""))
    except ElementTree.ParseError:
        return []
    found = [node.get(_PROPERTY, "") for node in root.iter()]
    return found + [(node.text or "").strip() for node in root.iter(_PROPERTY)]
