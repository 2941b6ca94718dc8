"""Fast float32 kernels for Chainer's functions on NumPy arrays; explicit, reversible, bit-stable.

    with branchynet.cpu.fast():
        loss = model(x, t)
        loss.backward()

or ``enable()`` and ``disable()``. While it is on, Chainer's own functions (F.convolution_2d,
F.max_pooling_2d, ...) take these kernels for float32 arrays, in any Chainer code; everything else, and
all of it when off, is stock Chainer.

Work goes in blocks of a few images, small enough for the cache, which threads share. Blocks and the order
of every sum depend on the shapes alone, so 1, 2 or 64 threads give identical bits, whatever OpenMP or BLAS
are told. Convolutions, pooling, batch normalisation and matrix products are oneDNN's (the wheel
onednn-cpu-gomp; without it they stay Chainer's, with one warning), each call run by one thread.

What a convolution returns has Chainer's shape, (B, C, H, W), but lies in memory with its channels last
(``y.array.strides``); code that needs C-contiguous arrays asks for them by np.ascontiguousarray.
"""
import contextlib

from branchynet.cpu.threads import set_num_threads  # noqa: F401


def enable():
    """Lets Chainer's functions take the fast kernels; a second call changes nothing."""
    from branchynet.cpu import functions
    functions.install()


def disable():
    """Back to stock Chainer."""
    from branchynet.cpu import functions
    functions.uninstall()


@contextlib.contextmanager
def fast():
    """enable() for the length of a block; afterwards it is as it was before."""
    from branchynet.cpu import functions
    before = functions.installed()
    functions.install(stacklevel=4)  # contextlib calls this
    try:
        yield
    finally:
        if not before:
            functions.uninstall()
