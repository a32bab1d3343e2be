r"""Weighted prompts, read in one pass: compel's notation in, fragments of equal weight out.

    prompt  = { term | text }               parts of equal weight are joined by one space
    term    = group weight | word weight | group
    weight  = "+"… | "-"…                   x1.1 or x0.9 each; directly after its word or group
            | number                        after a group only: (cat)1.3
            | ".attend(" number or signs ")"
    group   = "(" prompt ")" | '"' prompt '"'   nested weights multiply; quotes pair up on one line
    word    = characters except space ( ) " , . =   and with + or - only before a letter or the like: sci-fi
    escapes = \( \) \" \+ \- \, \. \=

At the top level a parenthesis or quote inside a word is text, as in compel: `miku_(singer)`.

The result is that of compel 2.5.1's parser, which takes exponential time in nested parentheses, except that

- every escape loses its backslash, once (compel keeps that of `\+ \- \, \. \=` and eats both of `\\(`),
  an escaped quote never closes, and a backslash and an n in quotes stay what they are;
- a group is a group even with a stray `-`, `+`, `=` or `"` in it (compel reads all of `(a - b)++` as text);
- a comma gets a space only before a letter, a digit or a group, so a prompt without markup keeps its tokens
  (compel tears `,,` and `,#` apart);
- form feed and vertical tab are white space (compel fails);
- what compel reads otherwise than it looks is an error: unbalanced or empty groups, `(cat:1.3)`, `(cat)-1.2`,
  `cat(fluffy)++`, a malformed `.attend(`, and compel's other operators.
"""

import math
import re
from dataclasses import dataclass
from typing import NoReturn

from service.errors import InvalidPrompt

MAX_DEPTH = 8
MAX_WEIGHTED_TERMS = 100
MAX_WEIGHT = 2.0

_SPACE = r" \t\n\r\f\v"
_ESCAPE = r'\\[()",.+\-=]'
_NUMBER = (
    r"(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++)"  # ++ never backtracks: without it, digits cost quadratic time
)
_SIGNS = r"(?:\+++|-++)"
_ATTEND = rf"\.attend\([{_SPACE}]*+({_SIGNS}|{_NUMBER})[{_SPACE}]*+\)"

_ESCAPE_RE = re.compile(_ESCAPE)
_PARENTHESIS_RE = re.compile(rf"{_ESCAPE}|[()]")
_QUOTED_RE = re.compile(r'"(?:\\"|[^"\n\r])*+"')
_WORD_RE = re.compile(rf'(?:{_ESCAPE}|[+-](?![{_SPACE}()",.+\-=]|\Z)|[^{_SPACE}()",.+\-=])+')
_TOP_TEXT_RE = re.compile(rf"(?:{_ESCAPE}|[^{_SPACE},])+,?|,")
_GROUP_TEXT_RE = re.compile(rf'(?:{_ESCAPE}|[^{_SPACE}()",.])+|[",.]')
_WORD_WEIGHT_RE = re.compile(rf"{_ATTEND}|({_SIGNS})")
_GROUP_WEIGHT_RE = re.compile(rf"{_ATTEND}|({_SIGNS}|{_NUMBER})")
_SIGNED_NUMBER_RE = re.compile(rf"{_SIGNS}{_NUMBER}")
_LOST_WEIGHT_RE = re.compile(rf"(?:{_SIGNS}|[0-9]*\.[0-9]+)(?=[{_SPACE},]|\Z)")
_COLON_WEIGHT_RE = re.compile(rf":({_NUMBER})\Z")
_OPERATOR_RE = re.compile(r"\.(?:swap|blend|and|add)\(|\b(?:use|with)Lora\(")
_CONTROL_RE = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class Fragment:
    """Text for the tokenizer whose tokens all get the same weight."""

    text: str
    weight: float


@dataclass(frozen=True)
class ParsedPrompt:
    """A prompt as fragments (for the per-token embedding) and as plain text (for the pooled one).

    There is at least one fragment, and neighbours differ in weight. `plain` is the caller's own text if that
    has no markup.
    """

    fragments: tuple[Fragment, ...]
    plain: str

    @property
    def weighted(self) -> bool:
        """Whether any weight differs from 1."""
        return any(fragment.weight != 1 for fragment in self.fragments)


def parse(text: str, *, field: str = "prompt") -> ParsedPrompt:
    """The fragments of `text`, with weights in 0…2, in time linear in its length.

    Raises:
        InvalidPrompt: with the index of the faulty character in `text`; `field` says which prompt that is.
    """
    reader = _Reader(text, field)
    reader.read()
    return reader.parsed()


@dataclass
class _Group:
    """A group or a weighted word. Group 0 is the whole prompt, and a parent precedes its children."""

    start: int
    parent: int
    first_piece: int
    factor: float = 1.0


@dataclass(frozen=True)
class _Piece:
    text: str
    group: int
    end: int
    touches: bool
    """Whether it directly follows the piece before it."""
    spaced: bool
    """Whether a space between the two leaves their tokens as they are."""


class _Reader:
    def __init__(self, text: str, field: str) -> None:
        self.text, self.field = text, field
        self.groups = [_Group(start=0, parent=0, first_piece=0)]
        self.open = [0]
        self.closing_quote = -1
        self.text_parentheses: list[int] = []
        self.pieces: list[_Piece] = []
        self.weighted_terms = 0

    def read(self) -> None:
        self.refuse_control_characters_and_operators()
        at = 0
        while at < len(self.text):
            character = self.text[at]
            if character in " \t\n\r\f\v":
                at += 1
            elif character == "(":
                at = self.open_group(at)
            elif (character == ")" and len(self.open) > 1) or at == self.closing_quote:
                at = self.close_group(at)
            elif character == '"' and (quoted := _QUOTED_RE.match(self.text, at)):
                self.closing_quote = quoted.end() - 1
                at = self.open_group(at)
            else:
                at = self.read_text(at)
        unclosed = self.text_parentheses + [self.groups[number].start for number in self.open[1:]]
        if unclosed:
            self.fail(unclosed[-1], r'this "(" is never closed; add ")", or write "\(" for a literal one')

    def open_group(self, at: int) -> int:
        self.refuse_malformed_attend(at)
        if len(self.open) > MAX_DEPTH:
            self.fail(
                at, f"groups nest at most {MAX_DEPTH} deep; multiply the weights and write fewer groups"
            )
        self.open.append(self.new_group(at))
        return at + 1

    def close_group(self, at: int) -> int:
        """Close the innermost group at its last character, read its weight, and return where that ends."""
        group = self.groups[self.open.pop()]
        pair = self.text[group.start] + self.text[at]
        if pair == '")':
            self.fail(at, r'this ")" has no "(" inside the quotes; write "\)" for a literal one')
        if pair == '("':
            self.fail(group.start, r'this "(" is not closed before the quotes end; add ")", or write "\("')
        if group.first_piece == len(self.pieces):
            self.fail(
                group.start, f"nothing is inside {pair}; remove it, or put a backslash before each mark"
            )
        if pair == "()":
            self.refuse_colon_weight(group.start, at)
        if signed := _SIGNED_NUMBER_RE.match(self.text, at + 1):
            fact = f'"{signed.group()}" is a sign and a number, and a weight is one of the two'
            self.fail(at + 1, f'{fact}; write "--" or "0.8", or put a space before what is text')
        if weight := _GROUP_WEIGHT_RE.match(self.text, at + 1):
            self.set_weight(group, weight)
        return weight.end() if weight else at + 1

    def read_text(self, at: int) -> int:
        """Read a weighted word, or a run of text without weight, and return where that ends."""
        word = _WORD_RE.match(self.text, at)
        if word and (weight := _WORD_WEIGHT_RE.match(self.text, word.end())):
            number = self.new_group(at)
            self.set_weight(self.groups[number], weight)
            self.add_piece(word, number)
            return weight.end()
        top = len(self.open) == 1
        run = (_TOP_TEXT_RE if top else _GROUP_TEXT_RE).match(self.text, at)
        assert run, "white space and parentheses of groups have been dealt with"
        if top:
            self.pair_text_parentheses(run)
        self.add_piece(run, self.open[-1])
        return run.end()

    def pair_text_parentheses(self, run: re.Match[str]) -> None:
        """Pair the parentheses that are text, so that a forgotten one is found and no weight gets lost."""
        for mark in _PARENTHESIS_RE.finditer(self.text, *run.span()):
            at = mark.start()
            if mark.group() == "(":
                self.refuse_malformed_attend(at)
                self.text_parentheses.append(at)
            elif mark.group() == ")":
                if not self.text_parentheses:
                    self.fail(at, r'this ")" closes nothing; remove it, or write "\)" for a literal one')
                start = self.text_parentheses.pop()
                self.refuse_colon_weight(start, at)
                if _LOST_WEIGHT_RE.match(self.text, at + 1):
                    fact = 'this "(" is part of the word before it and cannot have a weight'
                    self.fail(start, rf'{fact}; put a space before it, or write "\(" and "\)" for text')

    def new_group(self, at: int) -> int:
        self.groups.append(_Group(at, self.open[-1], len(self.pieces)))
        return len(self.groups) - 1

    def set_weight(self, group: _Group, weight: re.Match[str]) -> None:
        self.weighted_terms += 1
        if self.weighted_terms > MAX_WEIGHTED_TERMS:
            self.fail(
                group.start,
                f"this is weighted term {MAX_WEIGHTED_TERMS + 1} and the last one allowed is "
                f"{MAX_WEIGHTED_TERMS}; put terms of equal weight into one group",
            )
        operator = weight.group(1) or weight.group(2)
        if operator[0] in "+-":
            # More than 999 signs would overflow a float, and are far out of range anyway.
            group.factor = (1.1 if operator[0] == "+" else 0.9) ** min(len(operator), 999)
        else:
            group.factor = float(operator)
        if not math.isfinite(group.factor):
            self.fail(
                weight.start(), f"this weight is not a finite number; write one from 0 to {MAX_WEIGHT:g}"
            )

    def add_piece(self, source: re.Match[str], group: int) -> None:
        text = _ESCAPE_RE.sub(lambda escape: escape.group()[1], source.group())
        touches = bool(self.pieces) and self.pieces[-1].end == source.start()
        spaced = not touches or len(self.open) > 1 or text[0].isalnum()
        self.pieces.append(_Piece(text, group, source.end(), touches, spaced))

    def parsed(self) -> ParsedPrompt:
        weights = [1.0]
        for group in self.groups[1:]:
            weights.append(weights[group.parent] * group.factor)
        plain: list[str] = []
        fragments: list[tuple[list[str], float]] = []
        for piece in self.pieces:
            weight = weights[piece.group]
            if weight > MAX_WEIGHT:
                fact = f'"{piece.text[:40]}" gets the weight {weight:.4g} and {MAX_WEIGHT:g} is the most'
                self.fail(self.groups[piece.group].start, f"{fact}; lower it, or that of a group around it")
            plain += ["" if piece.touches else " ", piece.text]
            if fragments and fragments[-1][1] == weight:
                fragments[-1][0].extend((" " if piece.spaced else "", piece.text))
            else:
                fragments.append(([piece.text], weight))
        text = "".join(plain[1:])
        return ParsedPrompt(
            fragments=tuple(Fragment("".join(parts), weight) for parts, weight in fragments)
            or (Fragment("", 1.0),),
            plain=self.text if text.split() == self.text.split() else text,
        )

    def refuse_control_characters_and_operators(self) -> None:
        if control := _CONTROL_RE.search(self.text):
            name = f"U+{ord(control.group()):04X}"
            self.fail(control.start(), f"the character {name} cannot be part of a prompt; remove it")
        if operator := _OPERATOR_RE.search(self.text):
            name = operator.group()
            way_out = (
                "name LoRAs in `loras` of the request" if "Lora" in name else "send one request per prompt"
            )
            fact = f'"{name}" is not supported here'
            self.fail(operator.start(), rf'{fact}; {way_out}, or write "{name[:-1]}\(" for the literal text')

    def refuse_malformed_attend(self, at: int) -> None:
        if self.text.endswith(".attend", 0, at):
            fact = '".attend(" takes a number, plus signs or minus signs, directly after a word or group'
            self.fail(at - 7, rf'{fact}: "(cat).attend(1.2)"; write ".attend\(" for the literal text')

    def refuse_colon_weight(self, start: int, at: int) -> None:
        weight = _COLON_WEIGHT_RE.search(self.text, max(start + 1, at - 12), at)
        if weight and float(weight.group(1)) <= MAX_WEIGHT:
            target, number = self.text[start + 1 : weight.start()], weight.group(1)
            target = target if len(target) <= 40 else f"{target[:40]}…"
            fact = f'"({target}:{number})" is not how weights are written here'
            self.fail(
                start, f'{fact}; write "({target}){number}", or put a space after the colon if it is text'
            )

    def fail(self, position: int, message: str) -> NoReturn:
        raise InvalidPrompt(message, position=position, field=self.field)
