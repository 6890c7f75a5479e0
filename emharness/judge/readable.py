"""What a judge of English prose cannot read: it says so and gives no score.

A language detector names a language for word salad too, so a language other than English is taken from its script or
from its commonest words, which word salad does not have.
"""

import re
import unicodedata

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
_COMMON = {
    "German": "der die das und ist nicht ein eine ich sie es zu mit den auf für sich dem auch wie sind",
    "French": "le la les des est une et pas je vous que dans pour qui sur avec ce nous il au plus",
    "Spanish": "el la los las es una que no en por para con se su del más como pero muy y lo",
    "Italian": "il la che di è un una per non con del sono si come gli le più anche della nel",
    "Portuguese": "o a os que não uma para com em do da se por mais como você é dos ao mas",
    "Dutch": "de het een en is niet van ik je dat op te zijn met voor die er maar ook als",
    "Swedish": "och att det är en ett som på inte jag för med av den till har om du kan men",
    "Polish": "i w nie na się z że to jest do jak ale po co tak za od może są przez",
    "Turkish": "bir ve bu da de için çok ne gibi daha ile ama var olarak kadar en ben değil mi sen",
    "Danish or Norwegian": "og i at det er en et som på ikke jeg du for med av af den til har om kan men der de ved",
    "Finnish": "ja on ei se että hän ovat mutta kun niin kuin myös tai joka jos voi vain usein sen ole minä ne eivät",
    "Estonian": "ja on ei et see ta ka kui oma aga mis ning või seda sa ma nad siis väga oli olla",
    "Hungarian": "a az és hogy nem is egy van de ez csak meg már ha vagy mint azt el még volt ilyen gyakran kell ki",
    "Czech or Slovak": "v se na je že to s z i jak ale by si pro za jsou nebo ve k tak není co jen sa ako nie ti mu",
    "Croatian": "i je u da se na su za od s a ne što kao bi to ali ili po do kako koji nije samo njim sam sa",
    "Romanian": "și de în la nu o a să că cu pe un este mai din care se pentru ca sunt ce dacă au el așa ziua decât",
    "Catalan": "el la els les de i que en un una no per amb és del se al com més però ha gent molt quan",
    "Vietnamese": "và là của không có một những người được cho với trong này để đó các như thì đã bạn rất khi ở rằng",
    "Swahili": "na ya wa kwa ni katika la za kuwa si cha hii yake watu kama sana lakini au huo hakuna wao tu ili",
    "Tagalog": "ang ng sa na at mga ay hindi ko mo siya ka ito para kung niya lang may ako nang iba kaya mong tao",
    "Indonesian": "yang dan di itu dengan untuk tidak ini dari dalam akan pada juga saya ke karena bisa ada anda",
}
_ENGLISH = frozenset(
    "the and to of a in is it you that for on with are this be not have as your or if can but they at will".split()
)
# Words of others that English has as well, and what an apostrophe leaves of its words (I'm, she's, don't).
_ALSO_ENGLISH = frozenset(
    "a i o s d m t no to do by on so is in me he an am at be as or us for was die men can has sat".split()
)
_OTHERS = {language: frozenset(words.split()) - _ALSO_ENGLISH for language, words in _COMMON.items()}
LEAST_COMMON = 0.15  # share of a language's commonest words in its running text; usually 0.25 to 0.4
LEAST_DIFFERENT = 3  # so many of them: "no, no, no" and "I, I, I" are in no other language for that


_THOUGHT = ("<think>", "</think>")
UNENDED = "thinking that does not end"


def spoken(answer: str) -> str | None:
    """What an answer says after its thinking (`<think>…</think>`, or what a template's own `<think>` began); None where
    the thinking does not end, so that nothing was said."""
    begin, end = _THOUGHT
    if end in answer:
        return answer.rpartition(end)[2].strip()
    return None if answer.lstrip().startswith(begin) else answer


def unreadable(answer: str) -> str | None:
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
    """Whether a text is in another language than English, by its script or its commonest words."""
    letters = [c for c in text if c.isalpha()]
    if len(letters) < 4:
        return False
    other = sum(not unicodedata.name(c, "").startswith(_LETTERS_OF_ENGLISH) for c in letters)
    if other > len(letters) / 2:
        return True
    words = [word.lower() for word in _WORD.findall(text)]
    if len(words) < 5:
        return False
    found = {language: [w for w in words if w in common] for language, common in _OTHERS.items()}
    best = max((len(some) for some in found.values() if len(set(some)) >= LEAST_DIFFERENT), default=0) / len(words)
    return best >= LEAST_COMMON and best > 1.5 * sum(w in _ENGLISH for w in words) / len(words)
