#!/usr/bin/env python3
"""Checks of comments for tests/lint.sh: tests/lint_comments.py FILE...

Reads C, shell, Python, CMake and proto files. Prints one line for each finding, "warn FILE:LINE: text":
- a sentence that begins with a subject clause ("What a member trains is ..."), see docs/style.md;
- a reference to a document that is not in the repository.
Then "info" or "warn" lines with the share of comments in the folders named in RATIO_FOLDERS.
"""
import collections
import re
import sys

RATIO_FOLDERS = ("engine", "coordinator", "client")
RATIO_MIN = 0.15  # lines of comment for a line of code

# The alternatives are tried in this order, so a comment sign inside a string is not a comment.
C_TOKEN = re.compile(r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|/\*.*?\*/|//[^\n]*', re.S)
DOCSTRING = re.compile(r'(?:\A(?:#![^\n]*\n)?|:\n)[ \t]*"""(.*?)"""', re.S)
HASH_LINE = re.compile(r"\s*#(?!!)[ \t]?(.*)")
HASH_AFTER_CODE = re.compile(r"\s#\s+([^\"']*)$")

# A sentence starts with the comment, after an empty line, or after the end of another sentence.
START = r"(?:\A|\n[ \t]*\n|[.!?]\)?\s+)[\"'(\s-]*"
SUBJECT = re.compile(START + r"\b(What|Whatever|Who|Whoever|Whose|Which|Whichever)\b[^.!?]*(.?)")
# "Where nvcc is absent, ..." is a condition and has a comma; without one it names a place.
PLACE = re.compile(START + r"\b(Where)\b[^.!?,]*(?:[.!?]|\Z)")

ABSENT = re.compile(
    r"(?<!GGUF )(?<!gRPC )(?<!protobuf )(?<!safetensors )\bspecification\b|\balgorithms sheet\b|\btraps? [0-9]"
    r"|\bdesign,? section\b|\(section [0-9]|\breference,? (?:section\b|\"|[0-9])|\bissue [0-9]|\btable [A-Z]\b", re.I)


def c_comments(text):
    """(first line, text) of each comment; a line's leading star goes, so that sentences join."""
    for token in C_TOKEN.finditer(text):
        found = token.group(0)
        if not found.startswith("/"):
            continue
        body = re.sub(r"^/\*+ ?|\*+/$|^// ?", "", found)
        lines = [re.sub(r"^\s*\* ?", "", line) for line in body.split("\n")]
        yield text.count("\n", 0, token.start()) + 1, "\n".join(lines)


def hash_comments(text):
    """The same for "#": neighbouring comment lines are one comment; Python docstrings are comments."""
    for found in DOCSTRING.finditer(text):
        yield text.count("\n", 0, found.start(1)) + 1, found.group(1)
    block = []
    lines = text.split("\n")
    for number, line in enumerate(lines + [""], 1):
        whole, after = HASH_LINE.match(line), HASH_AFTER_CODE.search(line)
        if whole:
            block.append(whole.group(1))
            continue
        if block:
            yield number - len(block), "\n".join(block)
        block = []
        if after:
            yield number, after.group(1)


def comments_of(name, text):
    return c_comments(text) if name.endswith((".c", ".h", ".cu", ".cuh", ".proto")) else hash_comments(text)


def line_of(start, text, place):
    return start + text.count("\n", 0, place)


def findings(start, text):
    for found in SUBJECT.finditer(text):
        if found.group(2) != "?":
            yield line_of(start, text, found.start(1)), f'a sentence begins with "{found.group(1)}": name the thing'
    for found in PLACE.finditer(text):
        yield line_of(start, text, found.start(1)), 'a sentence begins with "Where": name the place'
    for found in ABSENT.finditer(text):
        yield line_of(start, text, found.start()), f'"{found.group(0)}": not a document of this repository'


def count_lines(text):
    """(lines with comment, lines with code): a line with both counts twice, a lone comment sign not at all."""
    commented = 0
    for token in C_TOKEN.finditer(text):
        if token.group(0).startswith("/"):
            commented += sum(line.strip(" \t*/") != "" for line in token.group(0).split("\n"))
    code = C_TOKEN.sub(lambda m: "\n" * m.group(0).count("\n") if m.group(0)[0] == "/" else m.group(0), text)
    return commented, sum(line.strip() != "" for line in code.split("\n"))


def main():
    counts = collections.defaultdict(lambda: [0, 0])
    for name in sys.argv[1:]:
        with open(name, encoding="utf-8") as file:
            text = file.read()
        for start, comment in comments_of(name, text):
            for line, finding in findings(start, comment):
                print(f"warn {name}:{line}: {finding}")
        folder = name.split("/")[0]
        if folder in RATIO_FOLDERS and name.endswith((".c", ".h")):
            counts[folder] = [a + b for a, b in zip(counts[folder], count_lines(text))]
    for folder, (comment, code) in sorted(counts.items()):
        ratio = comment / max(code, 1)
        print(f"{'info' if ratio >= RATIO_MIN else 'warn'} {folder}/: {ratio:.3f} lines of comment for a line of"
              f" code, at least {RATIO_MIN}")


if __name__ == "__main__":
    main()
