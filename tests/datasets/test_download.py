import http.server
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import branchynet  # noqa: F401
from branchynet.datasets import folder

import pytest
from published import md5, sha256

CONTENT = bytes(range(256)) * 1000
MD5 = md5(CONTENT)
HALF = len(CONTENT) // 2


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves the server's content, from where it is asked to if the server can; cuts the answer off."""

    def do_GET(self):
        asked = self.headers.get('Range')
        self.server.asked.append(asked)
        content, start = self.server.content, 0
        if asked and self.server.ranges:
            start = int(asked[len('bytes=') : -1])
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header('Content-Range', 'bytes %d-%d/%d' % (start, len(content) - 1, len(content)))
        else:
            self.send_response(200)
        self.send_header('Content-Length', str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : self.server.cut])

    def log_message(self, *args):
        pass


@pytest.fixture(params=[True, False], ids=['ranges', 'no ranges'])
def server(request):
    """A server that can, or cannot, go on from the middle of a file."""
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.content, server.cut, server.ranges, server.asked = CONTENT, None, request.param, []
    server.url = 'http://127.0.0.1:%d/f' % server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'data' / 'f'


def test_one_of_several_downloads_and_the_others_wait(server, path):
    server.cut = HALF
    with pytest.raises(OSError, match='the connection closed after'):
        folder.download(server.url, str(path), MD5)
    server.cut, server.asked[:] = None, []
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: folder.download(server.url, str(path), MD5), range(4)))
    assert path.read_bytes() == CONTENT and [one.name for one in path.parent.iterdir()] == ['f']
    assert len(server.asked) == 1


@pytest.mark.parametrize('expected', [MD5, sha256(CONTENT)])
def test_download(server, path, expected):
    folder.download(server.url, str(path), expected)
    assert path.read_bytes() == CONTENT
    assert os.listdir(str(path.parent)) == ['f']


def test_a_download_that_was_cut_off_goes_on(server, path):
    server.cut = HALF
    with pytest.raises(OSError, match='the connection closed after %d of %d bytes' % (HALF, len(CONTENT))) as info:
        folder.download(server.url, str(path), MD5)
    assert '\n' not in str(info.value) and MD5 in str(info.value)
    assert os.listdir(str(path.parent)) == ['f.part']
    server.cut = None
    folder.download(server.url, str(path), MD5)
    assert path.read_bytes() == CONTENT and os.listdir(str(path.parent)) == ['f']
    assert server.asked == [None, 'bytes=%d-' % HALF]


@pytest.mark.parametrize('left', [b'x' * HALF, CONTENT, CONTENT + b'more', b'x' * len(CONTENT)])
def test_whatever_was_left_the_file_is_whole(server, path, left):
    path.parent.mkdir()
    (path.parent / 'f.part').write_bytes(left)
    folder.download(server.url, str(path), MD5)
    assert path.read_bytes() == CONTENT and os.listdir(str(path.parent)) == ['f']


def test_another_file_is_refused_and_what_was_there_kept(server, path):
    path.parent.mkdir()
    path.write_bytes(b'before')
    server.content = CONTENT[:-1] + b'x'
    with pytest.raises(OSError, match=f'has MD5 .*expected {MD5}'):
        folder.download(server.url, str(path), MD5)
    assert path.read_bytes() == b'before' and os.listdir(str(path.parent)) == ['f']


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs /dev/full')
def test_a_full_disk(server, path):
    path.parent.mkdir()
    (path.parent / 'f.part').symlink_to('/dev/full')
    with pytest.raises(OSError, match='No space left'):
        folder.download(server.url, str(path), MD5)
    assert not path.exists()
    assert os.listdir(str(path.parent)) == ['f.part']  # to go on from
