"""The values of a terraform.tfvars, or of any other file of HCL that is literal."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import Error, MissingLibraryError

ESCAPES = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\"}
ESCAPE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))", re.DOTALL)


@dataclass
class Setting:
    """One value of a tfvars."""

    name: str
    line: int
    value: object


class Map(list):
    """The settings of a map."""


def read(text: str) -> list[Setting]:
    """The values of a tfvars; those of nested maps with the names joined by an underscore, nulls left out.

    No message has a value in it: it may be a secret.

    :raises Error: it is no HCL, or not literal; every such line is named.
    """
    try:
        import hcl2
        from lark.exceptions import LarkError, UnexpectedInput
    except ImportError as error:
        raise MissingLibraryError("python-hcl2", str(error)) from None

    if lone := re.search(r"\r(?!\n)", text):
        line = text.count("\n", 0, lone.start()) + 1
        raise Error(f"line {line}: a carriage return within the line; expected it as \\r")
    # The grammar lets $${ reach to a } anywhere in the file. In HCL, it is no more than three characters.
    spare = (chr(code) for code in range(0xE000, 0xF900) if chr(code) not in text)
    marks = {next(spare): "${", next(spare): "%{"}
    for mark, sign in marks.items():
        text = text.replace(sign[0] + sign, mark)
    place = None
    try:
        tree = hcl2.parses_to_tree(text)
    except UnexpectedInput as error:
        place = f"line {error.line}" if getattr(error, "line", -1) > 0 else "its end"
    except LarkError:
        place = "an unknown line"
    # The parser's own message repeats the line; so nothing of it may hang on this one.
    if place:
        raise Error(f"it is no HCL at {place}; expected lines of the form name = value")
    reader = Reader(marks)
    settings = reader.body(tree.children[0])
    if reader.problems:
        raise Error("; ".join(reader.problems), problems=reader.problems)
    return settings


class Reader:
    """Values of a parsed tree, and what of it is not literal."""

    def __init__(self, marks: dict[str, str]):
        self.marks = marks
        self.problems: list[str] = []

    def body(self, tree) -> list[Setting]:
        """The settings of a whole file."""
        settings = []
        for item in tree.children:
            if item.data == "attribute":
                name, _, value = item.children
                settings += self.flat(Setting(word(name), item.meta.line, self.value(value)))
            elif item.data == "block":
                self.refuse(item, "a block")
        for name in {entry.name for entry in settings}:
            lines = [entry.line for entry in settings if entry.name == name]
            if len(lines) > 1:
                self.problems.append(f"line {lines[1]}: {name} is given a second time, after line {lines[0]}")
        return [entry for entry in settings if entry.value is not None]

    def flat(self, setting: Setting) -> list[Setting]:
        """A setting, or those of its map."""
        if not isinstance(setting.value, Map):
            return [setting]
        inner = [Setting(f"{setting.name}_{item.name}", item.line, item.value) for item in setting.value]
        return [entry for item in inner for entry in self.flat(item)]

    def value(self, tree):
        """A literal's value; a map is a list of settings."""
        if tree.data == "unary_op" and tree.children[0] == "-" and len(tree.children) == 2:
            number = self.value(tree.children[1])
            if isinstance(number, (int, float)) and not isinstance(number, bool):
                return -number
        if tree.data != "expr_term" or len(tree.children) != 1 or not hasattr(tree.children[0], "data"):
            return self.refuse(tree, "an expression")
        [inner] = tree.children
        kinds = {
            "literal_value": lambda: {"true": True, "false": False, "null": None}[str(inner.children[0])],
            "int_lit": lambda: int(inner.children[0]),
            "float_lit": lambda: float(inner.children[0]),
            "string": lambda: "".join(self.part(item) for item in inner.children[1:-1]),
            "heredoc_template": lambda: self.heredoc(inner, trim=False),
            "heredoc_template_trim": lambda: self.heredoc(inner, trim=True),
            "tuple": lambda: self.items(inner),
            "object": lambda: Map(self.element(item) for item in inner.children if tree_name(item) == "object_elem"),
        }
        what = {"identifier": "a reference", "function_call": "a function"}
        if inner.data not in kinds:
            return self.refuse(inner, what.get(inner.data, "an expression"))
        return kinds[inner.data]()

    def items(self, tree) -> list:
        """The values of a list."""
        values = [self.value(item) for item in tree.children if tree_name(item) not in ("", "new_line_or_comment")]
        return self.refuse(tree, "a map in a list") if any(isinstance(item, Map) for item in values) else values

    def element(self, tree) -> Setting:
        """An entry of a map."""
        key, _, value = tree.children
        [name] = key.children
        if tree_name(name) == "expr_term" and tree_name(name.children[0]) in ("identifier", "literal_value"):
            [name] = name.children
        text = str(self.value(name)) if tree_name(name) == "expr_term" else word(name)
        return Setting(text, tree.meta.line, self.value(value))

    def part(self, tree) -> str:
        """A part of a quoted text, without its escapes."""
        [token] = tree.children
        if hasattr(token, "data"):
            return self.refuse(tree, "a template") or ""
        if "\n" in token:
            return self.refuse(tree, "a text without an end in its line") or ""
        text = ESCAPE.sub(lambda match: self.unescaped(match, token), token)
        return self.unmarked(text)

    def unescaped(self, match, token) -> str:
        """What a backslash and its characters stand for."""
        code = int(match[1] or match[2] or "0", 16)
        if match[3] in ESCAPES:
            return ESCAPES[match[3]]
        if match[3] or code > 0x10FFFF or 0xD800 <= code < 0xE000:
            self.problems.append(f"line {token.line}: a backslash that HCL does not know")
            return ""
        return chr(code)

    def heredoc(self, tree, trim: bool) -> str:
        """The text between a heredoc's first line and its last one."""
        _, *lines, last = re.split(r"(?<=\n)", str(tree.children[0]).removesuffix("\n"))
        if any(re.search(r"[$%]\{", line) for line in lines):
            return self.refuse(tree, "a template") or ""
        if any(line.strip() == last.strip() for line in lines):
            return self.refuse(tree, f"a second {last.strip()}, with spaces after it") or ""
        if trim:
            indents = [len(line) - len(line.lstrip()) for line in lines if line.strip()]
            lines = [line[min(indents, default=0) :] if line.strip() else line for line in lines]
        return self.unmarked("".join(lines))

    def unmarked(self, text: str) -> str:
        """A text with what was hidden from the parser."""
        for mark, sign in self.marks.items():
            text = text.replace(mark, sign)
        return text

    def refuse(self, tree, what: str) -> None:
        """Remember something that has no value by itself."""
        self.problems.append(f"line {tree.meta.line}: {what}; expected a literal value")


def tree_name(item) -> str:
    """The rule of a tree; empty for a token."""
    return getattr(item, "data", "")


def word(tree) -> str:
    """A name."""
    return str(tree.children[0])
