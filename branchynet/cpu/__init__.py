"""Fast float32 kernels for Chainer's functions on NumPy arrays; explicit, reversible, bit-stable.

    with branchynet.cpu.fast():
        loss = model(x, t)
        loss.backward()

or ``enable()`` and ``disable()``. After ``enable()``, and as long as any thread is inside ``fast()``, Chainer's own
functions (F.convolution_2d, F.max_pooling_2d, ...) take these kernels for float32 arrays, in
any Chainer code; everything else, subclasses of Chainer's functions, chainer.static_graph, and all of it when off, is
stock Chainer.

Work goes in blocks of a few images, small enough for the cache, which threads share. The order
of every sum depends on the shapes alone, so 1, 2 or 64 threads give identical bits, whatever OpenMP or BLAS
are told. Convolutions, pooling, batch normalisation and matrix products are oneDNN's (the wheel
onednn-cpu-gomp; without it they stay Chainer's, with one warning), each call run by one thread. Machine code of this
package (by llvmlite; without it, oneDNN's and NumPy's) computes 3x3 convolutions of stride 1 and padding 1 with
channels in multiples of 16, by Winograd's algorithm (not AlexNet's; it may give NaN where a plain sum is infinite);
batch normalisation of channels in multiples of 8 that lie last in memory; linear layers and their gradients for
few samples; and all that goes element by element.

oneDNN's convolutions are slow for some shapes: for kernels of about 14 pixels and more, long sequences, large patches,
few channels, a single window, or many weights and few pixels. There, convolutions are oneDNN's matrix products.
Poolings of few channels and linear layers of little work stay Chainer's, because they take less time there.

What a convolution returns has Chainer's shape, (B, C, H, W), but lies in memory with its channels last
(``y.array.strides``); code that needs C-contiguous arrays asks for them by np.ascontiguousarray.

Memory of large results is kept for the next ones, but never more than was in use at once; ``disable()`` gives it back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from branchynet.cpu.threads import set_num_threads  # noqa: F401

if TYPE_CHECKING:
    from branchynet.cpu import install


def enable() -> None:
    """Lets Chainer's functions take the fast kernels; a second call changes nothing."""
    from branchynet.cpu import install

    install.enable()


def disable() -> None:
    """Back to stock Chainer, in a ``fast()`` of this thread too; other threads' blocks go on.

    The memory that the kernels keep for their next calls, after ``fast()`` too, goes back to the system.
    """
    from branchynet.cpu import install

    install.disable()


def fast() -> install.Block:
    """enable() for the length of a ``with`` block or, as a decorator, of a function; then it is as it was before."""
    from branchynet.cpu import install

    return install.Block()
