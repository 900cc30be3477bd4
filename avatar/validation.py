"""What pydantic found wrong, as the sentence that a user reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from pydantic import ValidationError

from avatar.errors import BadInput

_LONGEST_SHOWN = 60  # characters of a wrong value in a message

Made = TypeVar("Made")

KINDS = {
    "int": "a whole number",
    "float": "a number",
    "string": "text in quotes",
    "bool": "true or false",
    "tuple": "a list",
}


def shown(value: Any) -> str:
    """A user's value in a message: whole, unless it is endless."""
    if isinstance(value, int) and abs(value) >= 10**_LONGEST_SHOWN:
        return f"a number of more than {_LONGEST_SHOWN} digits"
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def nearest(word: Any, names: Iterable[str]) -> str:
    """ " Did you mean 'size'?", or "" when no name is close."""
    word = word[:_LONGEST_SHOWN] if isinstance(word, str) else ""
    close = get_close_matches(word, list(names), 1, 0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def made(holder: type[Made], allowed: Mapping[str, str], where: str, given: Mapping[str, Any]) -> Made:
    """A holder of what a user gave; None leaves a field as it is. See bad_input. Raises: BadInput."""
    try:
        return holder(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise bad_input(error, holder, allowed, where) from error


def bad_input(error: ValidationError, holder: type, allowed: Mapping[str, str], where: str = "") -> BadInput:
    """The first fault of a dataclass's values, with the nearest known word.

    holder: the dataclass. allowed: ranges in words, by field name. where: "[memory] ", put before each name.
    """
    fault = error.errors()[0]
    name, value, kind = str(fault["loc"][0]), fault["input"], fault["type"]
    field = f"{where}{name}"
    if kind == "unexpected_keyword_argument":
        return BadInput(f"{where}unknown key {shown(name)}.{nearest(name, get_type_hints(holder))}")
    if kind == "missing":
        return BadInput(f"{name!r} is missing.", f'Add {name} = "…" at the top.')
    if kind == "literal_error":
        words = [str(word) for word in _choices(get_type_hints(holder)[name])]
        return BadInput(
            f"{field} is {shown(value)}.{nearest(value, words)}", f"It must be one of: {', '.join(words)}."
        )
    if isinstance(value, int) and not isinstance(value, bool) and "float" in kind:
        return BadInput(f"{field} is {shown(value)}.", "Give a smaller number.")
    type_name = kind.partition("_")[0]
    if kind.endswith(("_type", "_parsing", "_from_float")) and type_name in KINDS:
        return BadInput(f"{field} must be {KINDS[type_name]}.", f"It is {shown(value)}.")
    return BadInput(f"{field} is {shown(value)}.", f"It must be {allowed.get(name) or fault['msg']}.")


def _choices(hint: Any) -> tuple[Any, ...]:
    """The words of a Literal, also of one inside a tuple."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return next((found for inner in get_args(hint) if (found := _choices(inner))), ())
