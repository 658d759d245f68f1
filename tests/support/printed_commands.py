"""The shell commands that pages, configs and scripts print."""

import ast
import re
import shlex
from pathlib import Path

# What may stand before a command on its line.
_BEFORE = re.compile(r"time|do|then|nice|\w+=.*", re.DOTALL)
_OURS = re.compile(r"(bin/|pni-|python3? )\S.*", re.DOTALL)


def printed_commands(path: Path) -> list[str]:
    """Returns each command of a file, quoted as a shell wants it.

    - Of a page: all commands in blocks marked `sh`, and what is written `like this` if
      it calls a program of this project.
    - Of a config: indented comments, and what stands in parentheses.
    - Of a script: the indented lines of its docstring.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        lines = (ast.get_docstring(ast.parse(text)) or "").splitlines()
        found = [line for line in lines if line.startswith("    ")]
    elif path.suffix == ".cfg":
        comments = "\n".join(re.findall(r"^# ?(.*)$", text, re.MULTILINE))
        found = re.findall(r"^ {2,}(\S.*)$", comments, re.MULTILINE)
        found = [line for line in found if _OURS.match(line)]
        found += re.findall(r"\((python [^)]+)\)", comments)
    else:
        blocks = r"^```(\w*)\n(.*?)^```$"
        found = []
        for language, block in re.findall(blocks, text, re.MULTILINE | re.DOTALL):
            if language == "sh":
                found += _logical_lines(block)
        prose = re.sub(blocks, "", text, flags=re.MULTILINE | re.DOTALL)
        inline = (" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose))
        found += [code for code in inline if _OURS.fullmatch(code) and " " in code]
    return [shlex.join(words) for line in found for words in _simple_commands(line)]


def _logical_lines(block):
    """Joins what a backslash or an open quotation mark continues."""
    line = ""
    for part in block.splitlines():
        line += part
        try:
            shlex.split(line, comments=True)
        except ValueError:
            line = line.removesuffix("\\") + ("" if part.endswith("\\") else "\n")
            continue
        yield line
        line = ""
    assert not line, f"never ends: {line}"


def _simple_commands(line):
    """Splits a line at `&&`, `;` and the like; leaves out comments and variables."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    words = []
    for word in [*lexer, ";"]:
        if not set(word) <= set(";&|"):
            words.append(word)
            continue
        while words and _BEFORE.fullmatch(words[0]):
            del words[0]
        if words:
            yield words
        words = []
