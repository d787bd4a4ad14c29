"""What must not be shown of a line that an engine prints: keys, tokens, passwords. Knows patterns, holds no secret.

The rule: what stands where a secret stands is replaced (behind ``--api-key``, ``API_KEY=``, ``Authorization:``, in an
address), and so is what has the form of one: gpud's own keys of engines, and the tokens of the hubs and services whose
tools engines use. A word too many costs a detail; a word too few costs a key.
"""

import re

REDACTED = "[redacted]"

_NAMED = re.compile(
    r"""(?ix)
    ( (?: (?: api | access ) [-_ ]? key | (?<![a-z_]) [a-z_]{0,40} token | secret | passw(?:or)?d )
      ["']? \s* [:=] \s* ["']?
    | --api-key [\s=]+ ["']?
    | authorization ["']? \s* [:=] \s* ["']? (?:bearer\s+|basic\s+)?
    | bearer \s+
    | x-api-key ["']? \s* [:=] \s* ["']?
    )
    ( (?! \[redacted ) [^\s"',;&\]})]{8,} )
    """
)
_ADDRESS = re.compile(r"(?<=://)[^\s/@:]*:[^\s/@]+(?=@)")
_FORMED = re.compile(
    r"""(?x)
    \b (?: hf_[A-Za-z0-9]{16,} | sk-[A-Za-z0-9_-]{16,} | gh[pousr]_[A-Za-z0-9]{16,} ) \b
    # A key as gpud gives one to each start of an engine: 32 random bytes, base64 for addresses.
    | (?<! [\w./-] ) (?= [\w-]*[a-z] ) (?= [\w-]*[A-Z] ) (?= [\w-]*[0-9] ) [A-Za-z0-9_-]{43} (?! [\w./-] )
    """
)
_HINTS = ("key", "token", "secret", "passw", "authorization", "bearer", "://", "hf_", "sk-", "gh")
_LONG = re.compile(r"[\w-]{43}")


def redacted(text: str) -> str:
    """The text without what looks like a secret."""
    lower = text.lower()
    if not any(hint in lower for hint in _HINTS) and not _LONG.search(text):
        return text
    text = _NAMED.sub(_keep_name, text)
    text = _ADDRESS.sub(REDACTED, text)
    return _FORMED.sub(REDACTED, text)


def _keep_name(match: re.Match[str]) -> str:
    # A number, or a word in angle brackets, is of the vocabulary ("EOS token = 128009", "eos_token: <|im_end|>").
    return match[0] if match[2].isdigit() or match[2].startswith("<") else match[1] + REDACTED
