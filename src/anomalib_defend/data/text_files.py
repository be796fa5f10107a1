"""Lists and annotations that other tools have written: UTF-8, or an error that says where it is not and what to do."""

import codecs
from pathlib import Path
from xml.etree import ElementTree as ET

from anomalib_defend.files.names import to_text

_MARKS = {  # the longer ones first: UTF-32's begins like UTF-16's
    codecs.BOM_UTF8: "UTF-8",
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def read_utf8(path: Path) -> str:
    """Return the text of a UTF-8 file, which torchvision and pycocotools take for granted.

    Raises:
        ValueError: If it begins with a byte order mark, or is in another encoding; the message has the place and the
            command that converts the file.
    """
    content = path.read_bytes()
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            command = "" if encoding == "UTF-8" else f", for example by iconv -f {encoding} -t UTF-8"
            msg = (
                f"{to_text(str(path))}, line 1: the file begins with a byte order mark (BOM) of {encoding}, as editors "
                f"of Windows write it. Save it as UTF-8 without BOM{command}."
            )
            raise ValueError(msg)
    start = content.find(b"\0")
    problem, encoding = "a zero byte, as UTF-16 has them", "UTF-16"
    if start < 0:
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            start, problem = error.start, f"the byte 0x{content[error.start]:02x} is not UTF-8"
            encoding = "latin1 (or gb18030 ...)"
    line, column = content.count(b"\n", 0, start) + 1, start - content.rfind(b"\n", 0, start)
    msg = (
        f"{to_text(str(path))}, line {line}, byte {column}: {problem}. Save the file as "
        f"UTF-8, for example by iconv -f {encoding} -t UTF-8."
    )
    raise ValueError(msg)


def read_lines(path: Path) -> list[str]:
    """Return the lines of a UTF-8 file, without the white space around each; empty ones stay, to count by.

    Raises:
        ValueError: As ``read_utf8``.
    """
    text = read_utf8(path).replace("\r\n", "\n").replace("\r", "\n")
    return [line.strip() for line in text.split("\n")]


class _Builder(ET.TreeBuilder):
    """Refuses a document type, and with it entities that expand into gigabytes, in whatever encoding it is written."""

    def doctype(self, *_: object) -> None:
        msg = "a DOCTYPE is not allowed in an annotation file"
        raise ValueError(msg)


def read_xml(path: Path) -> ET.Element:
    """Return the root element of an XML file: UTF-8, UTF-16 with a mark, or the one-byte encoding that it declares.

    Raises:
        ValueError: If it is not valid, has a document type, or declares an encoding that Python's parser, and so
            torchvision, does not know; the message has the place.
    """
    try:
        return ET.fromstring(path.read_bytes(), parser=ET.XMLParser(target=_Builder()))  # noqa: S314 - no entities
    except (ET.ParseError, ValueError, LookupError) as error:
        place = "" if isinstance(error, ET.ParseError) else ", line 1"  # a ParseError has it in its message
        msg = (
            f"{to_text(str(path))}{place} is not an XML annotation file that can be read ({error}). Correct it where "
            "it was made; if it is in another encoding than its first line says, or in one of several bytes a "
            "character (gb2312, Shift-JIS ...), save it as UTF-8 with encoding='utf-8' in the first line."
        )
        raise ValueError(msg) from error
