import hashlib
import os
import subprocess
import sys

import branchynet  # noqa: F401
from branchynet.datasets import recipes

import numpy as np
import pytest

# What the recipes make of images(), on every machine. The matrix of Pythons and NumPys holds them to it.
SHA256 = {
    'gcn': '38571367f11bd176f43622552215ccc0377841b9d86e416f6f3fd83f006ab399',
    'gcn_centred': 'd4f45460152768daee6d102b286bbaf35013b368460a54567332928e902c9197',
    'zca': '1ec9a9e7eb643cd9371ef31f2f5cc20babfac165ad1ff75fea9301e671e6e9e1',
}


def images(count=300, size=8):
    """Smooth images, as photographs are: uint8 (count, 3, size, size)."""
    noise = np.random.RandomState(0).randint(0, 64, (count, 3, size + 3, size + 3))
    return sum(noise[..., i : i + size, j : j + size] for i in (0, 3) for j in (0, 3)).astype(np.uint8)


def sha256(recipe):
    x = images()
    return hashlib.sha256(recipes.RECIPES[recipe](x)(x).astype('<f4').tobytes()).hexdigest()


def test_gcn_is_what_its_formula_says():
    x = images()
    scaled = x / 255.0
    centred = scaled[250:] - scaled[:250].mean(axis=0)
    expected = centred / centred.reshape(50, -1).std(axis=1, ddof=1)[:, None, None, None]
    given = recipes.fit_gcn(x[:250])(x[250:])
    assert given.dtype == np.float32
    np.testing.assert_allclose(given, expected, rtol=1e-6, atol=1e-6)


def test_gcn_centred_is_what_its_formula_says():
    x = images()
    scaled = x / 255.0
    rows = (scaled[250:] - scaled[:250].mean(axis=0)).reshape(50, -1)
    rows -= rows.mean(axis=1, keepdims=True)
    expected = rows / rows.std(axis=1, ddof=1)[:, None]
    given = recipes.fit_gcn_centred(x[:250])(x[250:])
    assert given.dtype == np.float32
    np.testing.assert_allclose(given.reshape(50, -1), expected, rtol=1e-6, atol=1e-6)


def test_zca_is_what_its_formula_says():
    x = images()
    scaled = x.reshape(len(x), -1) / 255.0
    centred = scaled - scaled.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred / len(x) + recipes.EPSILON * np.eye(192))
    white = centred @ (vectors / np.sqrt(values)) @ vectors.T
    low, high = white.min(axis=1, keepdims=True), white.max(axis=1, keepdims=True)
    given = recipes.fit_zca(x)(x).reshape(len(x), -1)
    assert given.dtype == np.float32 and (given.min(), given.max()) == (0, 1)
    np.testing.assert_allclose(given, (white - low) / (high - low), atol=1e-6)


def test_the_order_of_sums_does_not_matter():
    a, b = np.random.RandomState(0).randn(2, 200, 200)
    order = np.random.RandomState(1).permutation(200)
    product = recipes._product(a, b)
    np.testing.assert_array_equal(recipes._product(a[:, order], b[order]), product)
    np.testing.assert_allclose(product, a @ b, atol=1e-8)


@pytest.mark.parametrize('recipe', sorted(SHA256))
def test_bits_are_the_same_everywhere(recipe):
    assert sha256(recipe) == SHA256[recipe]


@pytest.mark.parametrize('kernel', ['Prescott', 'Haswell'])
def test_bits_are_the_same_with_other_kernels(kernel):
    code = 'from test_recipes import SHA256, sha256; print({name: sha256(name) for name in SHA256})'
    env = {
        **os.environ,
        'OPENBLAS_CORETYPE': kernel,
        'OPENBLAS_NUM_THREADS': '1',
        'NPY_DISABLE_CPU_FEATURES': 'X86_V3 X86_V4 AVX512_ICL AVX512_SPR',
    }
    # NumPy warns of features that it does not know: older ones have other names.
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code],
        cwd=os.path.dirname(__file__),
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(SHA256)
