"""ChainerMN's batch normalization over two MPI processes, with the kernels and without."""

import sys
import textwrap

import mpi

PROGRAM = """
    import contextlib
    import branchynet, chainer, chainermn, numpy as np
    from chainermn.links import MultiNodeBatchNormalization
    from branchynet import cpu

    def run(link, x, gy):
        v = chainer.Variable(x)
        y = link(v)
        y.grad = gy
        y.backward()
        return y.array, v.grad, link.gamma.grad, link.beta.grad, link.avg_mean, link.avg_var

    comm = chainermn.create_communicator('naive')
    x, gy = np.random.RandomState(0).randn(2, 8, 3, 5, 5).astype(np.float32)
    x[4:] += 3  # the processes' own statistics differ from those of the whole batch
    whole = run(chainer.links.BatchNormalization(3), x, gy)
    part = slice(comm.rank * 4, comm.rank * 4 + 4)
    found = []
    for kernels in contextlib.nullcontext(), cpu.fast():
        with kernels:
            found.append(run(MultiNodeBatchNormalization(3, comm), x[part], gy[part]))
        y, gx, _, _, avg_mean, _ = found[-1]
        for array, right in (y, whole[0][part]), (gx, whole[1][part]), (avg_mean, whole[4]):
            np.testing.assert_allclose(array, right, rtol=1e-5, atol=2e-6)
    for fast, stock in zip(*found):  # ChainerMN's variance begins at 0, Chainer's at 1
        np.testing.assert_allclose(fast, stock, rtol=1e-6, atol=1e-6)
    print('as exact as the whole batch')
"""


def test_multi_node_batch_normalization(tmp_path):
    program = tmp_path / 'program.py'
    program.write_text(textwrap.dedent(PROGRAM))
    done = mpi.run(2, [sys.executable, str(program)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('as exact as the whole batch') == 2
