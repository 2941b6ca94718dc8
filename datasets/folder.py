"""The data folder: where files are found, checked before use, and downloaded."""
import gzip
import hashlib
import http.client
import os
import shutil
import sys
import urllib.request

from branchynet.training import progress

_TIMEOUT = 20  # seconds without an answer
_BLOCK = 1 << 16


def root():
    """The data folder: BRANCHYNET_DATA, else datasets/data of a checkout, else in the user's cache."""
    checkout = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'data')
    if os.environ.get('BRANCHYNET_DATA'):
        return os.environ['BRANCHYNET_DATA']
    if os.path.isdir(checkout):
        return checkout
    cache = os.environ.get('XDG_CACHE_HOME') or os.path.join(os.path.expanduser('~'), '.cache')
    return os.path.join(cache, 'branchynet')


def command():
    """The branchynet command as it can be typed here: by its name where it is on the PATH."""
    beside = os.path.join(os.path.dirname(sys.executable), 'branchynet')
    return 'branchynet' if shutil.which('branchynet') or not os.path.exists(beside) else beside


def read_gzip(path, sha256):
    """Content of a gzip file, whose SHA-256 (of the content) must be the one expected.

    Raises:
        OSError: the file is missing or damaged; one line with the file and what was expected.
    """
    try:
        with gzip.open(path) as f:
            content = f.read()
    except FileNotFoundError:
        raise FileNotFoundError('%s is missing: expected content of SHA-256 %s' % (path, sha256)) from None
    except (EOFError, gzip.BadGzipFile, gzip.zlib.error) as e:
        raise OSError('%s is damaged (%s): expected content of SHA-256 %s' % (path, e, sha256)) from e
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise OSError('%s has content of SHA-256 %s: expected %s' % (path, found, sha256))
    return content


def download_gzip(path, sha256, mirrors):
    """Downloads a gzip file from the first mirror that has it; `path` appears only once it is whole.

    Raises:
        OSError: no mirror gave the expected content; one line with every mirror's failure.
    """
    part, failures = path + '.part', []
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        for mirror in mirrors:
            url = mirror + os.path.basename(path)
            try:
                _fetch(url, part)
                read_gzip(part, sha256)
            except (OSError, http.client.HTTPException) as e:
                failures.append('%s: %s' % (url, e))
            else:
                os.replace(part, path)
                return
    finally:
        if os.path.exists(part):
            os.remove(part)
    raise OSError('%s is missing and cannot be downloaded: expected content of SHA-256 %s (%s)' % (
        path, sha256, '; '.join(failures)))


def _fetch(url, path):
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as response, open(path, 'wb') as f:
        size = int(response.headers.get('Content-Length') or 0)
        for _ in progress(range(-(-size // _BLOCK) or 1), os.path.basename(path)):
            f.write(response.read(_BLOCK))
        f.write(response.read())
