"""JSON files whose content is an attrs class: read strictly, written atomically.

Example:
    results = schema.structure(schema.read_json(path, 'the results of a run'), Results)
    schema.write(path, results)
"""

from __future__ import annotations

import json
import os
from typing import Any, TypeVar, get_origin

from branchynet.files import write_atomically

import attrs
import cattrs
from cattrs.cols import list_structure_factory
from cattrs.gen import make_dict_structure_fn

T = TypeVar('T')

_NOUNS = {
    dict: 'an object',
    list: 'a list',
    str: 'a text',
    bool: 'true or false',
    int: 'a whole number',
    float: 'a number',
}


def structure(content: Any, kind: type[T], where: str = '') -> T:
    """Makes an object of an attrs class from JSON-ready content.

    Args:
        content: JSON-ready content, as json.load returns it.
        kind: an attrs class whose fields are annotated.
        where: the path of the content inside its file, for messages.

    Returns:
        The object.

    Raises:
        ValueError: a key is missing or unknown, or a value has another type or fails a validator. The message is one
            line that begins with the value's path: `measured.knee.exit_percent[0] is "x": expected a number`.
    """
    try:
        return _converter.structure(content, kind)
    except (cattrs.BaseValidationError, ValueError, TypeError) as e:
        raise ValueError(_first(e, where)) from e


def unstructure(value: Any) -> Any:
    """Returns the JSON-ready content of an attrs object, without the fields that have their default value."""
    return _converter.unstructure(value)


def read_json(path: str, expected: str) -> Any:
    """Returns the content of a JSON file.

    Args:
        path: path of the file.
        expected: a noun for the message of an error, such as 'the results of a run'.

    Raises:
        OSError: the file is missing or is not JSON.
    """
    try:
        with open(path, encoding='utf-8') as f:
            return json.load(f)
    except FileNotFoundError:
        raise FileNotFoundError(f'{path} is missing: expected {expected}') from None
    except NotADirectoryError:
        raise NotADirectoryError(f'{os.path.dirname(path)} is a file: expected the folder of {expected}') from None
    except (ValueError, RecursionError) as e:
        raise OSError(f'{path} is damaged ({e}): expected {expected}') from e


def read(path: str, kind: type[T], expected: str) -> T:
    """Reads an object of an attrs class from a JSON file.

    Args:
        path: path of the file.
        kind: as in `structure`.
        expected: as in `read_json`.

    Returns:
        The object.

    Raises:
        OSError: the file is missing or damaged.
    """
    try:
        return structure(read_json(path, expected), kind)
    except ValueError as e:
        raise OSError(f'{path} is damaged: {e}') from e


def write(path: str, value: Any) -> None:
    """Writes an attrs object, or JSON-ready content, to a JSON file, atomically.

    Args:
        path: path of the file.
        value: the object or the content.

    Raises:
        OSError: the file cannot be written.
    """
    write_atomically(path, (json.dumps(unstructure(value), indent=1) + '\n').encode())


def _make_converter() -> cattrs.Converter:
    """A converter that refuses values of another type, and unknown keys."""
    converter = cattrs.Converter(forbid_extra_keys=True, omit_if_default=True)
    for kind in str, bool, int, float:
        converter.register_structure_hook(kind, _scalar)
    converter.register_structure_hook_factory(
        attrs.has, lambda kind, c: _checked(dict, make_dict_structure_fn(kind, c, _cattrs_forbid_extra_keys=True))
    )
    converter.register_structure_hook_factory(
        lambda kind: get_origin(kind) is list, lambda kind, c: _checked(list, list_structure_factory(kind, c))
    )
    converter.register_structure_hook_factory(
        lambda kind: get_origin(kind) is dict, lambda kind, c: _checked(dict, c.gen_structure_mapping(kind))
    )
    return converter


def _scalar(value: Any, kind: type) -> Any:
    accepted = (int, float) if kind is float else (kind,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise _Expected(value, kind)
    return kind(value)


def _checked(json_kind: type, hook: Any) -> Any:
    """Restricts ``hook`` to values of the JSON type."""

    def structure_checked(value: Any, kind: Any) -> Any:
        if not isinstance(value, json_kind):
            raise _Expected(value, json_kind)
        return hook(value, kind)

    return structure_checked


class _Expected(ValueError):
    """A value has another type than the one expected."""

    def __init__(self, value: Any, kind: type) -> None:
        text = json.dumps(value)
        super().__init__(f'is {text if len(text) <= 40 else text[:37] + "..."}: expected {_NOUNS[kind]}')


def _first(error: Exception, where: str) -> str:
    """The first mistake that an error reports, after the path of the value."""
    words, _, path = cattrs.transform_error(error, where, _words)[0].rpartition(' @ ')
    return f'{path.lstrip(".") or "the content"} {words}'


def _words(error: BaseException, _: Any) -> str:
    """Says what is wrong with a value, in words that follow its path."""
    if isinstance(error, KeyError):
        return 'is missing'
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        return f'has the unknown key {min(error.extra_fields)}'
    return str(error)


_converter = _make_converter()
