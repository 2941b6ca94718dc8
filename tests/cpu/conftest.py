"""Fixtures that tests of several kernels share."""

from branchynet.cpu import linear

import pytest


@pytest.fixture
def set_large(monkeypatch):
    """A function that sets how many bytes of a linear layer's weights are large; products are described anew."""

    def forget():
        linear._product.cache_clear()
        linear._product_of_gw.cache_clear()

    def set_bytes(count):
        monkeypatch.setattr(linear, '_LARGE', count)
        forget()

    yield set_bytes
    monkeypatch.undo()
    forget()
