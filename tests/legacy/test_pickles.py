"""The reader of old pickles: what it reads, and what it refuses without running it."""

import os
import pickle

from branchynet.legacy import pickles

import pytest
from hypothesis import given
from hypothesis import strategies as st


def read(body: bytes, names=('good name',)):
    return pickles.read(b'\x80\x02' + body + b'.', names)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=300),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner)
        | st.tuples(inner, inner, inner, inner)
        | st.dictionaries(st.text(max_size=9) | st.integers(0, 99), inner)
    ),
    max_leaves=30,
)


@given(values)
def test_plain_values_are_those_of_pickle(value):
    assert pickles.read(pickle.dumps(value, 2), ()) == value


def test_strings_of_python_2():
    assert read(b'U\x03a\xe9\x00') == 'a\xe9\0'
    long = bytes(range(256)) * 8
    assert bytes(read(b'T' + len(long).to_bytes(4, 'little') + long)) == long


def test_objects_are_records():
    for body in (
        b'cgood\nname\nK\x01\x85R}U\x01aNsb',
        b'cgood\nname\nK\x01\x85\x81}U\x01aNsb',
        b'(cgood\nname\nK\x01o}U\x01aNsb',
    ):
        record = read(body)
        assert (record.name, record.args, record.state) == ('good name', (1,), {'a': None})


def test_an_object_used_twice_is_one_object():
    a, b = read(b']q\x07h\x07\x86')
    assert a is b


REFUSED = {
    'os.system': (b'cos\nsystem\nU\x04true\x85R', "names 'os system'"),
    'posix.system': (b'cposix\nsystem\nU\x04true\x85R', "names 'posix system'"),
    'eval': (b'c__builtin__\neval\nU\x011\x85R', "names '__builtin__ eval'"),
    'getattr': (b'c__builtin__\ngetattr\ncgood\nname\nU\x08__init__\x86R', "names '__builtin__ getattr'"),
    'dotted name': (b'cgood\nname.__init__\n', "names 'good name.__init__'"),
    'code': (b'cdill.dill\n_create_function\n)R', "names 'dill.dill _create_function'"),
    'class attributes': (b'cgood\nname\n}U\x01aNsb', 'a record was expected'),
    'state of a list': (b']}b', 'a record was expected'),
    'a second state': (b'cgood\nname\n)R}b}b', 'two states'),
    'a call of a text': (b'U\x04good)R', 'a class or function and its arguments were expected'),
    'a call of a record': (b'cgood\nname\n)R)R', 'a class or function and its arguments were expected'),
    'arguments in a list': (b'cgood\nname\n]R', 'a class or function and its arguments were expected'),
    'an object of nothing': (b'(o', 'a class or function'),
    'INST': (b'(ios\nsystem\n', 'no operation of such a pickle'),
    'PERSID': (b'Pname\n', 'no operation'),
    'BINPERSID': (b'NQ', 'no operation'),
    'EXT1': (b'\x82\x01', 'no operation'),
    'EXT4': (b'\x84\x01\x00\x00\x00', 'no operation'),
    'NEWOBJ_EX': (b'cgood\nname\n)}\x92', 'no operation'),
    'STACK_GLOBAL': (b'U\x02osU\x06system\x93', 'no operation'),
    'many digits': (b'I' + b'9' * 100_000 + b'\n', 'no operation'),
    'LONG4': (b'\x8b\xff\xff\xff\x7f', 'no operation'),
    'a large whole number': (b'\x8a\xff' + b'\xff' * 255, 'more than 64 bits'),
    'a claim of 1 GB': (b'T\x00\x00\x00\x40abc', 'truncated'),
    'a claim of 4 GB of text': (b'X\xff\xff\xff\xffabc', 'truncated'),
    'a negative length': (b'T\xff\xff\xff\xffabc', 'negative length'),
    'BINBYTES': (b'B\x00\x00\x00\x40abc', 'no operation'),
    'a long text': (b'X\x00\x10\x00\x00' + b'a' * 4096, 'too long'),
    'a name without an end': (b'c' + b'a' * 5000, 'too long'),
    'a key that is a tuple': (b'})Ns', 'neither text nor a whole number'),
    'a key that is a list': (b'}]Ns', 'neither text nor a whole number'),
    'a key without a value': (b'}(Nu', 'a value is missing'),
    'append to a tuple': (b')Na', 'a list was expected'),
    'items of a list': (b'](NNu', 'a dict was expected'),
    'an operand from below a mark': (b'N(\x85', 'an operand is missing'),
    'nothing': (b'', 'an operand is missing'),
    'no mark': (b'Nt', 'a mark is missing'),
    'a mark as result': (b'(', 'an operand is missing'),
    'two results': (b'NN', 'more than one object'),
    'no such memo': (b'h\x00', 'missing'),
    'a mark in the memo': (b'(q\x00h\x00', 'an operand is missing'),
}


@pytest.mark.parametrize('body, message', REFUSED.values(), ids=REFUSED)
def test_refused_without_being_run(body, message, monkeypatch):
    def run(*args):
        raise AssertionError('ran')

    monkeypatch.setattr(os, 'system', run)
    with pytest.raises(ValueError, match=message) as e:
        read(body)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('protocol', [0, 3, 4, 5])
def test_other_protocols_are_refused(protocol):
    with pytest.raises(ValueError, match='its protocol is|no operation'):
        pickles.read(pickle.dumps({'a': [1]}, protocol), ())


def test_every_truncation_is_refused():
    whole = pickle.dumps({'a': [1, 2.5, (None, True, 3)], 'b': ['text']}, 2)
    for size in range(len(whole)):
        with pytest.raises(ValueError, match='truncated'):
            pickles.read(whole[:size], ())


def test_shared_containers_of_exponential_size_are_read_as_they_are_shared():
    body = b']q\x00'
    for k in range(200):  # 2 ** 200 leaves, if they were copied, compared, hashed or printed
        body += b'h%ch%c\x86q%c' % (k, k, k + 1)
    assert len(read(b'(' + body + b't')) == 201


def test_a_pickle_has_a_limited_number_of_operations(monkeypatch):
    monkeypatch.setattr(pickles, 'MAX_OPERATIONS', 1000)
    assert len(read(b'(' + b'N' * 990 + b't')) == 990
    with pytest.raises(ValueError, match='more than 1000 operations'):
        read(b'(' + b'N' * 1000 + b't')


def test_a_large_memo_key_takes_no_memory():
    assert read(b'Nr\xff\xff\xff\xff') is None
