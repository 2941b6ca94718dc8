"""Pickles of Python 2, read without running anything in them.

Python's own unpickler imports and calls what a file names, so that opening a file runs its author's code. The
reader below imports nothing, calls nothing and sets no attribute: every object of the file becomes a `Record`
of the name, the arguments and the state that the file gives, and the caller decides what a record means. A file
that names anything outside the caller's list is refused.

The operations are those of pickle's protocol 2 (PEP 307; `pickletools` of the standard library describes each).
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from typing import Any, Callable

# Ten times as many as the largest known file has, the released ResNet-110. A stack, lists and dicts of so many
# objects take less than 500 MB.
MAX_OPERATIONS = 2_000_000
# Longer strings are the contents of arrays: they stay in the file's bytes.
LONGEST_TEXT = 1024


class Name(str):
    """A class or function that the file names, as 'module name'."""


class Record:
    """An object as the file describes it.

    Attributes:
        name: of its class, or of the function that would return it.
        args: the arguments of that call.
        state: None, or the state that the object would have been given then (often its attributes).
    """

    __slots__ = ('args', 'name', 'state')

    def __init__(self, name: Name, args: tuple[Any, ...]) -> None:
        self.name = name
        self.args = args
        self.state: Any = None

    def __repr__(self) -> str:
        return f'<{self.name}>'


def read(data: bytes, names: Collection[str]) -> Any:
    """Reads a pickle of protocol 2.

    Args:
        data: the whole pickle.
        names: the classes and functions that it may name, as 'module name'.

    Returns:
        The object. Numbers, lists, tuples and dicts are Python's; a string of Python 2 is a str with one
        character for each byte, or a memoryview of ``data`` where it is longer than ``LONGEST_TEXT``; a class
        or function is a `Name`; any other object is a `Record`.

    Raises:
        ValueError: ``data`` is no such pickle, is truncated, or names anything else.
    """
    reader = _Reader(data, names)
    for _ in range(MAX_OPERATIONS):
        code = reader.take(1)[0]
        if code == ord('.'):  # STOP
            return reader.result()
        operation = _OPERATIONS.get(code)
        if operation is None:
            raise ValueError(f'byte {reader.position - 1} is {code:#04x}, which is no operation of such a pickle')
        operation(reader)
    raise ValueError(f'it has more than {MAX_OPERATIONS} operations')


class _Mark:
    """Where the items of a list, tuple or dict begin on the stack."""


_MARK = _Mark()


class _Reader:
    """The machine that a pickle is a program for: bytes, a stack and a memo of earlier objects."""

    def __init__(self, data: bytes, names: Collection[str]) -> None:
        self.data = memoryview(data)
        self.names = names
        self.position = 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    # Bytes

    def take(self, count: int) -> memoryview:
        """The next ``count`` bytes, which the file must have."""
        if count > len(self.data) - self.position:
            raise ValueError(f'it is truncated: {count} bytes were expected at byte {self.position}')
        self.position += count
        return self.data[self.position - count : self.position]

    def number(self, form: str) -> Any:
        """The next number, in a form of `struct`."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        """The text up to the next line feed."""
        text = bytes(self.data[self.position : self.position + LONGEST_TEXT])
        end = text.find(b'\n')
        if end < 0:
            raise ValueError(f'it is truncated, or a name in it is too long, at byte {self.position}')
        self.position += end + 1
        return text[:end].decode('latin-1')

    def text(self, form: str) -> None:
        """Pushes a string of Python 2, whose length comes first."""
        count = self.number(form)
        if count < 0:
            raise ValueError(f'a string at byte {self.position} has a negative length')
        raw = self.take(count)
        self.push(raw if count > LONGEST_TEXT else bytes(raw).decode('latin-1'))

    def unicode(self) -> None:
        raw = self.take(self.number('<I'))
        if len(raw) > LONGEST_TEXT:
            raise ValueError(f'a text at byte {self.position} is too long')
        self.push(bytes(raw).decode('utf-8'))

    def long(self) -> None:
        count = self.number('B')
        if count > 8:
            raise ValueError(f'a number at byte {self.position} has more than 64 bits')
        self.push(int.from_bytes(self.take(count), 'little', signed=True))

    # Stack

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise ValueError(f'an operand is missing at byte {self.position}')
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        """Takes the items above the last mark off the stack, and the mark."""
        for start in range(len(self.stack) - 1, -1, -1):
            if self.stack[start] is _MARK:
                items = self.stack[start + 1 :]
                del self.stack[start:]
                return items
        raise ValueError(f'a mark is missing at byte {self.position}')

    def below(self, kind: type) -> Any:
        """The top of the stack, which must be of a kind."""
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise ValueError(f'a {kind.__name__.lower()} was expected at byte {self.position}')
        return self.stack[-1]

    def result(self) -> Any:
        value = self.pop()
        if self.stack:
            raise ValueError('it holds more than one object')
        return value

    # Containers

    def tuple(self, count: int) -> None:
        self.push(tuple([self.pop() for _ in range(count)][::-1]))

    def extend(self, items: list[Any]) -> None:
        self.below(list).extend(items)

    def update(self, items: list[Any]) -> None:
        if len(items) % 2:
            raise ValueError(f'a value is missing at byte {self.position}')
        target = self.below(dict)
        for key, value in zip(items[::2], items[1::2]):
            # A tuple of tuples takes exponential time to hash.
            if not isinstance(key, (str, int)):
                raise ValueError(f'a key at byte {self.position} is neither text nor a whole number')
            target[key] = value

    # Names, and the objects that they stand for

    def name(self) -> None:
        module, name = self.line(), self.line()
        full = f'{module} {name}'
        if full not in self.names:
            raise ValueError(f'it names {full[:100]!r}, and nothing but networks and arrays is read')
        self.push(Name(full))

    def record(self, name: Any, args: Any) -> None:
        if not isinstance(name, Name) or not isinstance(args, tuple):
            raise ValueError(f'a class or function and its arguments were expected at byte {self.position}')
        self.push(Record(name, args))

    def call(self) -> None:
        args = self.pop()
        self.record(self.pop(), args)

    def instance(self) -> None:
        """An object of a class of the old style."""
        name, *args = self.pop_mark() or [None]
        self.record(name, tuple(args))

    def build(self) -> None:
        state = self.pop()
        record = self.below(Record)
        if record.state is not None:
            raise ValueError(f'{record} has two states at byte {self.position}')
        record.state = state

    # Memo

    def get(self, form: str) -> None:
        key = self.number(form)
        if key not in self.memo:
            raise ValueError(f'an object that was expected earlier is missing at byte {self.position}')
        self.push(self.memo[key])

    def put(self, form: str) -> None:
        key = self.number(form)
        value = self.pop()
        self.push(value)
        self.memo[key] = value


def _protocol(reader: _Reader) -> None:
    protocol = reader.number('B')
    if protocol != 2:
        raise ValueError(
            f'its protocol is {protocol}, of Python 3: only dill opens it, and runs what is in it; Python 2 writes 2'
        )


_OPERATIONS: dict[int, Callable[[_Reader], None]] = {
    ord(code): operation
    for code, operation in {
        b'\x80': _protocol,
        b'N': lambda r: r.push(None),
        b'\x88': lambda r: r.push(True),
        b'\x89': lambda r: r.push(False),
        b'K': lambda r: r.push(r.number('B')),
        b'M': lambda r: r.push(r.number('<H')),
        b'J': lambda r: r.push(r.number('<i')),
        b'G': lambda r: r.push(r.number('>d')),
        b'\x8a': _Reader.long,
        b'U': lambda r: r.text('B'),
        b'T': lambda r: r.text('<i'),
        b'X': _Reader.unicode,
        b'(': lambda r: r.push(_MARK),
        b')': lambda r: r.tuple(0),
        b'\x85': lambda r: r.tuple(1),
        b'\x86': lambda r: r.tuple(2),
        b'\x87': lambda r: r.tuple(3),
        b't': lambda r: r.push(tuple(r.pop_mark())),
        b']': lambda r: r.push([]),
        b'a': lambda r: r.extend([r.pop()]),
        b'e': lambda r: r.extend(r.pop_mark()),
        b'}': lambda r: r.push({}),
        b's': lambda r: r.update([r.pop(), r.pop()][::-1]),
        b'u': lambda r: r.update(r.pop_mark()),
        b'c': _Reader.name,
        b'R': _Reader.call,  # REDUCE
        b'\x81': _Reader.call,  # NEWOBJ
        b'o': _Reader.instance,
        b'b': _Reader.build,
        b'h': lambda r: r.get('B'),
        b'j': lambda r: r.get('<I'),
        b'q': lambda r: r.put('B'),
        b'r': lambda r: r.put('<I'),
    }.items()
}
