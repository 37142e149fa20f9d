"""Which options does a script's text hold, and on which line? Read as Slurm reads it. Pure; raises Refused.

`#SBATCH` stands at the very beginning of a line, before the first line that is a command; an unescaped # ends a line's options;
the words of all lines are one command line. Unknown options are named with their line.
"""

from __future__ import annotations

from typing import NamedTuple

from steelyard.errors import Refused
from steelyard.runtime.slurm.getopt import Given, NotUnderstood
from steelyard.runtime.slurm.sbatch_table import read_sbatch

SCRIPT_MAX_BYTES = 256 * 1024
HINT = ". Nothing was submitted. Correct it, or take the line out."
_MAGIC = "#SBATCH"


class Setting(NamedTuple):
    given: Given
    #: `line 4`, or `the command line`
    where: str
    #: from the command line
    called: bool


def check_text(text: str) -> list[str]:
    """What Slurm refuses, and what is no script at all; its lines."""
    if not text.strip():
        raise Refused("The script is empty. Its first line names its interpreter, such as #!/bin/bash.", code="bad-script")
    if len(text) > SCRIPT_MAX_BYTES or len(text.encode(errors="surrogatepass")) > SCRIPT_MAX_BYTES:
        limit = f"{SCRIPT_MAX_BYTES // 1024} KiB"
        raise Refused(f"The script is larger than {limit}. Move data out of it, and read it from a file.", code="bad-script")
    if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise Refused(
            "The script is no text (it holds NUL or other bytes that are not UTF-8). Submit a script.", code="bad-script"
        )
    if "\r\n" in text:
        raise Refused(
            "The script has DOS line breaks (\\r\\n). Convert it: dos2unix SCRIPT, or sed -i 's/\\r$//' SCRIPT.",
            code="bad-script",
        )
    if not text.startswith("#!"):
        raise Refused(
            "This does not look like a batch script: its first line must be #! and the path of an interpreter, such as "
            "#!/bin/bash.",
            code="bad-script",
        )
    return text.split("\n")


def _header(lines: list[str]) -> int:
    """How many lines stand before the first command."""
    for place, line in enumerate(lines):
        if line.strip() and not line.lstrip().startswith("#"):
            return place
    return len(lines)


def find_unread(lines: list[str]) -> list[str]:
    """Lines that somebody meant as options and Slurm does not read."""
    notes: list[str] = []
    end = _header(lines)
    for place, line in enumerate(lines):
        if place >= end and line.startswith(_MAGIC):
            notes.append(f"line {place + 1}: {line[:60]!r} stands after the first command and is not read, as in Slurm")
        elif place < end and not line.startswith(_MAGIC) and line.lstrip("# \t").upper().startswith("SBATCH -"):
            if line.startswith("##"):
                continue  # how options are commented out
            notes.append(f"line {place + 1}: {line[:60]!r} does not begin with {_MAGIC}, so it is a comment, as in Slurm")
        elif place < end and line.startswith(("#PBS ", "#BSUB ", "#$ -")):
            notes.append(f"line {place + 1}: {line[:60]!r} is for another batch system and is not read")
    return notes


def read_lines(lines: list[str]) -> list[Setting]:
    words: list[str] = []
    places: list[int] = []
    for place, line in enumerate(lines[: _header(lines)], 1):
        if line.startswith(_MAGIC):
            found = _split(line[len(_MAGIC) :], place)
            words += found
            places += [place] * len(found)
    try:
        given, end = read_sbatch(words)
    except NotUnderstood as err:
        raise Refused(f"line {places[err.at]}: {err}{HINT}", code="unknown-option") from None
    if end < len(words):
        raise Refused(f"line {places[end]}: {words[end][:60]!r} is no option{HINT}", code="unknown-option")
    return [Setting(each, f"line {places[each.at]}", False) for each in given]


def _split(text: str, place: int) -> list[str]:
    """Words of one line: quotes and backslashes as in Slurm, an unescaped # ends it."""
    words: list[str] = []
    word: str | None = None
    quote = ""
    chars = iter(text)
    for char in chars:
        if char == "\\" and quote != "'":
            word = (word or "") + next(chars, "")
        elif quote:
            if char == quote:
                quote = ""
            else:
                word = (word or "") + char
        elif char in "'\"":
            quote, word = char, word or ""
        elif char == "#":
            break
        elif char.isspace():
            if word is not None:
                words.append(word)
            word = None
        else:
            word = (word or "") + char
    if quote:
        raise Refused(f"line {place}: a quote ({quote}) is not closed{HINT}", code="bad-script")
    return words if word is None else [*words, word]


def read_called(options: tuple[str, ...]) -> list[Setting]:
    try:
        given, end = read_sbatch(list(options))
    except NotUnderstood as err:
        raise Refused(f"the command line: {err}. Nothing was submitted.", code="unknown-option") from None
    if end < len(options):
        raise Refused(f"the command line: {options[end][:60]!r} is no option. Nothing was submitted.", code="unknown-option")
    return [Setting(each, "the command line", True) for each in given]
