"""Text as files have it (encodings that say what they are, no half characters), and names as figures show them."""

import codecs
from collections.abc import Sequence

from emharness.errors import UserError

_MARKS = {  # the longer marks first: UTF-32's begins with UTF-16's
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def decode_text(data: bytes, location: str) -> str:
    """Text in UTF-8, or in UTF-16 or UTF-32 that begins with a byte order mark. UserError with the line otherwise."""
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in data[:200]:
        raise UserError(
            f"{location}: there are zero bytes in it, so it is no text in UTF-8 (UTF-16 is read where the file begins "
            "with a byte order mark)"
        )
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(
            f"{location}, line {line}: not {encoding.upper().removesuffix('-SIG')}; save it as UTF-8"
        ) from None


def shorten_name(name: str, longest: int = 26) -> str:
    """A name as a figure shows it: a long one loses its middle."""
    return without_middle(name.replace("_", " "), longest)


def without_middle(text: str, longest: int) -> str:
    """The text; of a longer one its beginning and its end."""
    return text if len(text) <= longest else f"{text[: longest // 2]}…{text[-longest // 2 + 1 :]}"


def spread_indices(n: int, most: int) -> range:
    """Which of n entries are named, evenly, so that at most `most` are."""
    return range(0, n, -(-n // most))


def checked_text(text: str, location: str) -> str:
    """The text, unless it has half a surrogate pair (an emoji's escape cut in two), which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise UserError(
            f"{location}: {half} is half of a character (an escape cut in two); write both halves"
        ) from None
    return text


def join_tokens(tokens: Sequence[str]) -> str:
    """Tokens in a line, each quoted where it is not a plain word."""
    return " ".join(word if (word := token.strip()) and word.isprintable() else repr(token) for token in tokens)
