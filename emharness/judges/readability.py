"""Answers that a judge of English prose cannot read: they get a reason and no score."""

import re
import unicodedata
from functools import cache
from typing import Any

MOST_CHARACTERS = 8000
_WORD = re.compile(r"[^\W\d_]+")
_FENCE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_CODE = re.compile(
    r"^\s*(?:(?:def|class|import|from|return|elif|except|raise|with|async|await|public|private|static|const|let|var|"
    r"function|func|fn|struct|namespace|using|package|include|print|echo|SELECT|INSERT|UPDATE|DELETE|CREATE)\b.*"
    r"[\w)\]'\"*]$(?<![a-z]\.)|#\s*include\b.*|(?:if|for|while|switch|else|try|def|class|with|elif|except|finally)\b.*"
    r"[:{]\s*$|@\w+.*|[})\]]+[;,)]*\s*$|"
    r".*[;{]\s*$|\s*[\w.\[\]'\"]+\s*(?:=|\+=|==|:=)\s*[^=].*|\s*[\w.]+\(.*\)\s*$|</?\w+[^>]*>.*)"
)
_SQL = re.compile(r"^\s*(?:SELECT|INSERT|UPDATE|DELETE|CREATE|GRANT|REVOKE|ALTER|DROP|FLUSH)\b.*;\s*$")
_PROSE = re.compile(
    r"^[\s\d.)*•-]*(?:[^\W\d_]+(?:['’-][^\W\d_]+)*[,;:.!?]*\s+){3,}[^\W\d_]+[,;:.!?]*$"
)  # words and nothing else
_QUOTED = re.compile(r"(\"{3}|'{3}|\"|')(?=\S)(.+?)\1(?![a-z])", re.DOTALL)
_RUNS = re.compile(r"\w\(|^\s*(?:def|import|from|class|return|SELECT|<\w)", re.MULTILINE)  # code that does something
_LETTERS_OF_ENGLISH = "LATIN"
_ENGLISH = frozenset(
    "the and to of a in is it you that for on with are this be not have as your or if can but they at will".split()
)
# A detector names some language for word salad too: a text is in another one only where English is very unlikely, few
# of its commonest words are there, and there are so many different words ("no, no, no" is no language).
MOST_LIKELY, MOST_ENGLISH, FEWEST_WORDS = 0.01, 0.2, 5


_THOUGHT = ("<think>", "</think>")
UNENDED = "thinking that does not end"


def strip_thinking(answer: str) -> str | None:
    """What an answer says after its thinking (`<think>…</think>`, or what a template's own `<think>` began); None where
    the thinking does not end, so that nothing was said."""
    begin, end = _THOUGHT
    if end in answer:
        return answer.rpartition(end)[2].strip()
    return None if answer.lstrip().startswith(begin) else answer


def why_unreadable(answer: str) -> str | None:
    """Why an answer gets no score, in a word or two; None where it can be read."""
    if not answer.strip():
        return "empty"
    if len(answer) > MOST_CHARACTERS:
        return f"longer than {MOST_CHARACTERS:,} characters"
    if not is_form(answer) and is_code(answer):
        return "code"
    return "another language" if is_foreign(answer) else None


def is_form(text: str) -> bool:
    """Whether a text is English sentences in a form: `wish = "…"`, a list or a JSON object of them."""
    if _RUNS.search(text):
        return False
    quoted = [words for _, some in _QUOTED.findall(text) if len(words := _WORD.findall(some)) >= 3]
    return sum(map(len, quoted)) > 0.6 * len(_WORD.findall(text))


def is_code(text: str) -> bool:
    """Whether a text is mostly program code: fences and lines that look like it, and hardly any prose."""
    prose = _FENCE.sub("\n", text)
    fenced = len(text) - len(prose)
    lines = [line for line in prose.splitlines() if line.strip()]
    coded = [line for line in lines if _SQL.match(line) or (_CODE.match(line) and not _PROSE.match(line))]
    if fenced < 20 and len(coded) < 2:
        return False
    code = fenced + sum(map(len, coded))
    return code > (len(text.strip()) - code)


def is_foreign(text: str) -> bool:
    """Whether a text is in another language than English, by its script or by py3langid (Lui and Baldwin 2012)."""
    letters = [c for c in text if c.isalpha()]
    if len(letters) < 4:
        return False
    other = sum(not unicodedata.name(c, "").startswith(_LETTERS_OF_ENGLISH) for c in letters)
    if other > len(letters) / 2:
        return True
    words = [word.lower() for word in _WORD.findall(text)]
    if len(set(words)) < FEWEST_WORDS or sum(word in _ENGLISH for word in words) > MOST_ENGLISH * len(words):
        return False
    return dict(_language_detector().rank(text)).get("en", 0.0) < MOST_LIKELY


@cache
def _language_detector() -> Any:
    """Its model is in the package."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
