"""Turns the Markdown of docs/man into manual pages: python tools/man.py docs/man/gpud.8.md gpud.8

It knows the Markdown that the manual uses, and refuses what it does not know rather than print it wrong: a first line
``% NAME(section) gpud | Manual`` with ``#`` and ``##`` headings, or ``# name(section) - purpose`` with ``##`` and
``###``; paragraphs, ``-`` and ``1.`` lists (nested by indentation), definition lists (a term, then ``:`` and its text),
fenced and indented code, tables, ``**bold**``, ``*italic*``, ```code``` and links.
"""

import re
import sys
from pathlib import Path

TITLE = re.compile(r"([#%])\s*`?([\w.-]+)\((\d)\)`?\s*(?:[\w ]*\||-+|—|–)?\s*(.*)$")
ITEM = re.compile(r"(\s*)(?:([-*+])|(\d+)[.)])\s+(.*)$")
DEFINITION = re.compile(r":\s+(.*)$")


def escape(text: str) -> str:
    """Plain text as roff takes it literally."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    text = text.replace("^", "\\(ha").replace("~", "\\(ti")
    # Terminals without Unicode have no sign for it.
    text = text.replace("…", "...")
    return re.sub(r"[^\x00-\x7f]", lambda match: f"\\[u{ord(match[0]):04X}]", text)


def literal(text: str) -> str:
    """Text without the backslashes that kept it from being read as Markdown."""
    return re.sub(r"\\([\\`*_<>|#\[\]-])", r"\1", text)


def inline(text: str) -> str:
    """One paragraph's text with its fonts."""
    spans = r"(`+)(.+?)\1|\*\*(.+?)\*\*|(?<![\w*\\])\*((?:\\.|[^*\s\\])(?:\\.|[^*\\])*)\*(?!\w)"
    spans += r"|(?<!\w)_([^_\s][^_]*?)_(?!\w)"
    pattern = re.compile(spans + r"|\[([^\]]+)\]\(([^)\s]+)\)|<(https?://[^>]+)>|\\([\\`*_<>|#\[\]-])")
    out, at = [], 0
    for match in pattern.finditer(text):
        out.append(escape(text[at : match.start()]))
        at = match.end()
        _, code, bold, star, under, label, target, address, escaped = match.groups()
        if code is not None:
            out.append(f"\\fB{escape(code.strip())}\\fR")
        elif bold is not None:
            out.append(f"\\fB{escape(literal(bold.replace('`', '')))}\\fR")
        elif star is not None or under is not None:
            out.append(f"\\fI{escape(literal(star or under))}\\fR")
        elif label is not None:
            shown = inline(label)
            out.append(f"{shown} ({escape(target)})" if target.startswith("http") else shown)
        else:
            out.append(escape(address or escaped))
    out.append(escape(text[at:]))
    return "".join(out)


def line(text: str) -> str:
    """A line of output that does not begin like a request."""
    return "\\&" + text if text.startswith((".", "'")) else text


class Page:
    """One page on its way from Markdown to roff, a line at a time."""

    def __init__(self, source: str, origin: str) -> None:
        self.lines = source.expandtabs(4).splitlines()
        self.origin = origin
        self.at = 0
        self.out: list[str] = []
        self.depth = 0
        self.top = 1

    def error(self, message: str) -> SystemExit:
        return SystemExit(f"{self.origin}:{self.at + 1}: {message}")

    def peek(self) -> str | None:
        return self.lines[self.at] if self.at < len(self.lines) else None

    def convert(self) -> str:
        self.title()
        while (text := self.peek()) is not None:
            self.block(text)
        self.indent_to(0)
        return "\n".join(self.out) + "\n"

    def title(self) -> None:
        while (text := self.peek()) is not None and not text.strip():
            self.at += 1
        match = TITLE.match(text or "")
        if not match:
            raise self.error('the first line must be "# name(section)"')
        mark, name, section, rest = match.groups()
        # Pandoc's way has the title in a line of its own kind, and sections are headings of the first level.
        self.top = 1 if mark == "%" else 2
        purpose = rest if mark == "#" else ""
        self.out.append(f'.TH "{escape(name.upper())}" "{section}" "" "gpud" "gpud manual"')
        self.out += [".nh", ".ad l"]
        self.at += 1
        if purpose and not any(re.match(r"##?\s+NAME\s*$", text, re.IGNORECASE) for text in self.lines):
            self.out += [".SH NAME", f"{escape(name)} \\- {inline(purpose.rstrip('.'))}"]

    def block(self, text: str) -> None:
        if not text.strip():
            self.at += 1
        elif heading := re.match(r"(#{1,4})\s+(.*?)\s*#*$", text):
            self.heading(len(heading[1]), heading[2])
        elif text.lstrip().startswith("```"):
            self.fence()
        elif text.startswith("|"):
            self.table()
        elif re.match(r"<!--", text):
            self.comment()
        elif ITEM.match(text):
            self.item(ITEM.match(text))
        elif DEFINITION.match(text):
            raise self.error("a definition without its term")
        elif text.startswith("    ") and self.depth == 0:
            self.code_block()
        elif self.depth and text.startswith(" "):
            self.paragraph(".sp", text)
        elif self.term_ahead():
            self.definition(text)
        else:
            self.indent_to(0)
            self.paragraph(".PP", text)

    def heading(self, level: int, text: str) -> None:
        self.indent_to(0)
        self.out.append(f".SH {inline(text.upper())}" if level <= self.top else f".SS {inline(text)}")
        self.at += 1

    def comment(self) -> None:
        while (text := self.peek()) is not None:
            self.at += 1
            if "-->" in text:
                return

    def fence(self) -> None:
        opening = self.lines[self.at]
        margin = len(opening) - len(opening.lstrip())
        self.at += 1
        body = []
        while (text := self.peek()) is not None and not text.strip().startswith("```"):
            body.append(text[margin:] if not text[:margin].strip() else text)
            self.at += 1
        if self.peek() is None:
            raise self.error("a ``` that is never closed")
        self.at += 1
        self.code(body)

    def code_block(self) -> None:
        body = []
        while (text := self.peek()) is not None and (text.startswith("    ") or not text.strip()):
            body.append(text[4:])
            self.at += 1
        while body and not body[-1].strip():
            body.pop()
        self.code(body)

    def code(self, body: list[str]) -> None:
        self.out += [".PP" if self.depth == 0 else ".sp", ".RS 4", ".nf", *(line(escape(text)) for text in body)]
        self.out += [".fi", ".RE"]

    def paragraph(self, request: str, text: str) -> None:
        self.out += [request, line(inline(self.gather(text.strip())))]

    def gather(self, first: str) -> str:
        """``first`` and the lines that go on with it, as one text."""
        parts = [first]
        self.at += 1
        while (text := self.peek()) is not None and text.strip() and not self.starts_something(text):
            parts.append(text.strip())
            self.at += 1
        return " ".join(parts)

    @staticmethod
    def starts_something(text: str) -> bool:
        return bool(re.match(r"#{1,4}\s|\s*```|\|", text) or ITEM.match(text) or DEFINITION.match(text))

    def item(self, match: re.Match[str] | None) -> None:
        assert match is not None
        margin, bullet, number, text = match.groups()
        self.indent_to(len(margin) // 2 + 1)
        mark, width = ("\\(bu", 2) if bullet else (f"{number}.", 4)
        self.out += [f'.IP "{mark}" {width}', line(inline(self.gather(text)))]

    def indent_to(self, depth: int) -> None:
        """Nested lists: the first level needs no indentation of its own."""
        while self.depth < depth:
            self.depth += 1
            if self.depth > 1:
                self.out.append(".RS 4")
        while self.depth > depth:
            if self.depth > 1:
                self.out.append(".RE")
            self.depth -= 1

    def term_ahead(self) -> bool:
        """Whether the paragraph here is a term: the next line that is not empty begins with a colon."""
        at = self.at + 1
        while at < len(self.lines) and not self.lines[at].strip():
            at += 1
        return at < len(self.lines) and bool(DEFINITION.match(self.lines[at]))

    def definition(self, term: str) -> None:
        self.indent_to(0)
        self.out += [".TP", line(inline(term.strip()))]
        self.at += 1
        first = True
        while (text := self.peek()) is not None:
            if not text.strip():
                self.at += 1
            elif match := DEFINITION.match(text):
                self.definition_text(match[1], first)
                first = False
            elif text.startswith("  "):
                self.definition_continues(text)
            else:
                return

    def definition_text(self, text: str, first: bool) -> None:
        if not first:
            self.out.append(".IP")
        self.out.append(line(inline(self.gather(text))))

    def definition_continues(self, text: str) -> None:
        """What is indented below a definition belongs to it."""
        self.out.append(".RS")
        self.depth = 1
        if text.lstrip().startswith("```"):
            self.fence()
        elif ITEM.match(text):
            while (text := self.peek() or "") and (match := ITEM.match(text)) and text.startswith("  "):
                mark = "\\(bu" if match[2] else f"{match[3]}."
                self.out += [f'.IP "{mark}" 3', line(inline(self.gather(match[4])))]
        elif text.startswith("        "):
            self.code_block()
        else:
            self.out += [".PP", line(inline(self.gather(text.strip())))]
        self.depth = 0
        self.out.append(".RE")

    def table(self) -> None:
        """A table as a list: the first column names, the others explain, with the heads where there are several."""
        self.indent_to(0)
        rows = []
        while (text := self.peek()) is not None and text.startswith("|"):
            rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", text.strip().strip("|"))])
            self.at += 1
        if len(rows) < 3 or not all(re.fullmatch(r":?-+:?", cell) for cell in rows[1]):
            raise self.error("a table needs a head, a line of dashes, and rows")
        heads = rows[0]
        for row in rows[2:]:
            self.out += [".TP", line(inline(row[0]))]
            cells = [
                inline(cell) if len(heads) == 2 else f"{inline(head)}: {inline(cell)}"
                for head, cell in zip(heads[1:], row[1:], strict=False)
                if cell
            ]
            self.out.append(line("\n.br\n".join(cells)))


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit("usage: man.py SOURCE.md PAGE")
    source, page = Path(sys.argv[1]), Path(sys.argv[2])
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(Page(source.read_text(), str(source)).convert())


if __name__ == "__main__":
    main()
