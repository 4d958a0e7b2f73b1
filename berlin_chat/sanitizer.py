"""A reply's Markdown, made harmless: who wrote it is not known, and a notebook's page can do all that its owner can."""

from __future__ import annotations

import html
import re

_TAG = r"<(?=[A-Za-z/!?])"
_ENTITY = r"&(?:#[xX][0-9a-fA-F]+;?|#[0-9]+;?|\w+;)"
# Browsers skip line ends and tabs in it, and Markdown a backslash before the colon. A space, a tab or a line end behind
# the colon, but no other white space, ends an address in Markdown. It does not behind a "<", nor in TeX behind a brace,
# where spaces before the address are skipped.
_SCRIPT = r"(?P<open>[{<]\s*)?" + r"[\t\r\n]*".join("javascript") + r"[\t\r\n]*\\*:(?(open)|(?=[^ \t\r\n]))"
#: What may become a tag, a character that is not what it seems, or the address of a script.
_LIVE = re.compile(f"{_TAG}|&#|{_ENTITY}|{_SCRIPT}", re.IGNORECASE)
#: What Markdown leaves as it is: code between fences, code in a line, mathematics.
_VERBATIM = re.compile(
    r"^(?P<indent>[ \t]*)(?P<fence>`{3,}|~{3,})[^`\n]*\n(?P<block>.*?)(?:^[ \t]*(?P=fence)[`~]*[ \t]*$|\Z)"
    r"|(?<!`)(?P<ticks>``?)(?!`)(?P<code>[^\n]*?[^`\n])(?P=ticks)(?!`)"
    r"|\$\$.*?\$\$|\$[^$\n]+\$",
    re.MULTILINE | re.DOTALL,
)


def harmless(text: str) -> str:
    """Returns Markdown that is shown as the text would be, but as text where it holds HTML or the address of a script.

    JupyterLab cleans what it shows only in notebooks that its user does not trust, and trusts each cell that he ran.
    Programs do not agree about which part of a text is code. So there is no tag in what is returned but the two that
    stand here, and that holds however it is read. Code that looks like HTML loses its colours by that.

    >>> harmless("**1 < 2**, but <img src=x onerror=alert(1)>")
    '**1 < 2**, but &lt;img src=x onerror=alert(1)>'
    >>> harmless("A `<b>` is bold.")
    'A <code>&#60;b&#62;</code> is bold.'
    """
    if not _LIVE.search(text):
        return text
    parts: list[str] = []
    end = 0
    for found in _VERBATIM.finditer(text):
        parts += _prose(text[end : found.start()]), _verbatim(found)
        end = found.end()
    return "".join([*parts, _prose(text[end:])])


def _verbatim(found: re.Match[str]) -> str:
    if not _LIVE.search(found[0]):
        return found[0]
    if found["fence"]:
        return f"{found['indent']}<pre><code>{_spelled(found['block'])}</code></pre>"
    if found["ticks"]:
        return f"<code>{_spelled(found['code'])}</code>"
    # Mathematics, in which a space means nothing.
    return _without_script(re.sub(f"{_TAG}|&(?=[#\\w])", r"\g<0> ", found[0]))


def _spelled(code: str) -> str:
    """Code in HTML of which Markdown understands nothing."""
    return re.sub(r"[!-/:-@\[-`{-~]", lambda sign: f"&#{ord(sign[0])};", code)


def _prose(text: str) -> str:
    text = re.sub(_ENTITY, lambda entity: html.unescape(entity[0]), text)
    text = re.sub(r"&(?=#|\w+;)", "&amp;", text)
    return _without_script(re.sub(rf"\\?{_TAG}", "&lt;", text))


def _without_script(text: str) -> str:
    return re.sub(_SCRIPT, r"\g<open>java script:", text, flags=re.IGNORECASE)
