"""Files that appear whole, however many write them and however they end; the lock of a folder."""

import hashlib
import os
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from branchynet import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.skipif(files.fcntl is None, reason='needs flock')


def start(code, *words):
    """A Python process that runs some code, once it has printed a line."""
    process = subprocess.Popen(
        [sys.executable, '-c', code, *map(str, words)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == 'ready\n'
    return process


def kill(process):
    process.kill()
    process.communicate()


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / 'file'
    files.write_atomically(str(path), b'old')

    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr('os.fsync', interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_atomically(str(path), b'new')
    assert path.read_bytes() == b'old'
    assert os.listdir(str(tmp_path)) == ['file']


def test_a_full_disk_is_told_in_one_line(tmp_path):
    path = tmp_path / 'file'
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(OSError, match=r'file cannot be written \(File too large\)$'):
            files.write_atomically(str(path), bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(str(tmp_path)) == []


def test_many_writers_of_one_path_do_not_disturb_each_other(tmp_path):
    path, kept = str(tmp_path / 'file'), str(tmp_path / 'file.before')
    contents = {bytes([i]) * 5000 for i in range(8)}
    begin = 'from branchynet.files import write_atomically; import sys; print("ready", flush=True); sys.stdin.read(1);'
    loop = (
        '[write_atomically(sys.argv[1], bytes([int(sys.argv[2])]) * 5000, sys.argv[1] + ".before") for _ in range(100)]'
    )
    processes = [start(begin + loop, path, i) for i in range(2)]
    for process in processes:
        process.stdin.write('x')
        process.stdin.flush()
    with ThreadPoolExecutor(6) as pool:
        list(
            pool.map(
                lambda content: [files.write_atomically(path, content, kept) for _ in range(50)], sorted(contents)[2:]
            )
        )
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert sorted(os.listdir(str(tmp_path))) == ['file', 'file.before']
    for name in path, kept:
        with open(name, 'rb') as f:
            assert f.read() in contents


def test_a_later_write_removes_what_a_killed_one_left_and_no_other(tmp_path):
    writing = (
        'from branchynet.files import written_whole; import sys\n'
        'with written_whole(sys.argv[1]) as f:\n    f.write(b"half"); f.flush(); print("ready", flush=True)\n'
        '    sys.stdin.read(1)'
    )
    path = tmp_path / 'file'
    killed, alive = start(writing, path), start(writing, path)
    kill(killed)
    assert len(os.listdir(str(tmp_path))) == 2
    (tmp_path / 'file.part').write_bytes(b'of a download, which goes on from it')
    files.write_atomically(str(path), b'whole')
    assert len(os.listdir(str(tmp_path))) == 3  # the file, the download's part, and the living writer's
    alive.communicate('x')
    assert alive.returncode == 0
    assert sorted(os.listdir(str(tmp_path))) == ['file', 'file.part'] and path.read_bytes() == b'half'


def test_a_file_has_the_mode_that_open_gives(tmp_path):
    files.write_atomically(str(tmp_path / 'a'), b'')
    (tmp_path / 'b').write_bytes(b'')
    assert (tmp_path / 'a').stat().st_mode == (tmp_path / 'b').stat().st_mode


def test_what_is_replaced_can_be_kept(tmp_path):
    path, kept = tmp_path / 'file', tmp_path / 'kept'
    for content in b'first', b'second', b'third':
        files.write_atomically(str(path), content, str(kept))
    assert (path.read_bytes(), kept.read_bytes()) == (b'third', b'second')


@given(st.binary(max_size=200_000))
def test_the_digest_is_that_of_the_content(tmp_path_factory, content):
    path = tmp_path_factory.mktemp('digest') / 'file'
    path.write_bytes(content)
    assert files.digest(str(path)) == hashlib.sha256(content).hexdigest()
    assert files.digest(str(path), 'md5') == hashlib.md5(content).hexdigest()


HOLD = """
from branchynet import files
import sys
with files.lock(sys.argv[1]):
    print("ready", flush=True)
    sys.stdin.read(1)
"""


def test_the_holder_of_a_lock_is_named_and_others_wait_outside(tmp_path):
    folder = tmp_path / 'out'
    process = start(HOLD, folder)
    (folder / 'result').write_text('of the first')
    message = rf'out is in use by process {process.pid} on \S+ since \d{{4}}-.*another folder'
    with pytest.raises(OSError, match=message), files.lock(str(folder)):
        raise AssertionError
    assert (folder / 'result').read_text() == 'of the first'
    process.communicate('x')
    assert process.returncode == 0
    assert os.listdir(str(folder)) == ['result']
    with files.lock(str(folder)):
        assert sorted(os.listdir(str(folder))) == ['.lock', 'result']
    assert os.listdir(str(folder)) == ['result']


def test_the_lock_of_a_dead_process_does_not_block(tmp_path):
    process = start(HOLD, tmp_path)
    kill(process)
    assert os.listdir(str(tmp_path)) == ['.lock']
    with files.lock(str(tmp_path)):
        pass
    assert os.listdir(str(tmp_path)) == []


def test_a_lock_keeps_threads_out_of_each_others_way(tmp_path):
    inside, entered = [], []

    def enter(i):
        for _ in range(50):
            try:
                with files.lock(str(tmp_path)):
                    inside.append(i)
                    assert len(inside) == 1
                    entered.append(inside.pop())
            except OSError as e:
                assert 'in use by process' in str(e) or 'just begun' in str(e)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(enter, range(8)))
    assert entered and os.listdir(str(tmp_path)) == []


def test_where_nothing_can_be_locked_that_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(files, 'fcntl', None)
    with files.lock(str(tmp_path)):
        files.write_atomically(str(tmp_path / 'file'), b'whole')
    assert (tmp_path / 'file').read_bytes() == b'whole'
    error = capsys.readouterr().err
    assert 'cannot be locked (this system has no flock)' in error and error.count('\n') == 1
