"""Training by several processes, the *ranks* of an MPI job, through ChainerMN.

All ranks hold the same net and the same data. Each takes its share of every batch; the gradients of the trunk and of
all exits are averaged in one pass, and every rank makes the same update.

Example:
    with parallel.job('naive') as ranks:
        trained = ranks.parallel(net)
        losses, accuracies = trained.train(x, t)  # of the whole batch, the same on all ranks
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

from branchynet.batching import check_pairs
from branchynet.chains.trunk import Trunk
from branchynet.exits import Array
from branchynet.net import BranchyNet, loss_and_accuracy, step
from branchynet.shares import SharedBatch

import chainer
import chainer.links as L
import numpy as np
from chainer.backends import cuda

T = TypeVar('T')

COMMUNICATORS = ['naive', 'flat', 'pure_nccl']
INSTALL = 'pip install "branchynet[mpi]"'
BATCH_NORMALIZATIONS = ['local', 'synchronised']


class Refused(ValueError):
    """A user's mistake that all ranks know of."""


class Alone:
    """One process, which trains by itself."""

    rank, size = 0, 1
    communicator: str | None = None
    batch_normalization: str | None = None

    def together(self, make: Callable[[], T]) -> T:
        """Calls a function on every rank.

        Args:
            make: a function that does not wait for other ranks.

        Returns:
            Its result on this rank.

        Raises:
            Refused: it raised OSError or ValueError on one of several ranks; raised on all, with the message of the
                first. A single process raises the error itself.
        """
        return make()

    def from_first(self, make: Callable[[], T]) -> T:
        """Calls a function on rank 0 alone.

        Args:
            make: a function that does not wait for other ranks.

        Returns:
            On every rank its result, which must be picklable.

        Raises:
            Refused: it raised OSError or ValueError; raised on all of several ranks. A single process raises the error
                itself.
        """
        return make()

    def check_same(self, values: dict[str, Any]) -> None:
        """Checks that all ranks have the same values.

        Args:
            values: JSON-ready values by their names.

        Raises:
            Refused: some rank has another value than rank 0.
        """

    def check_data(self, net: BranchyNet, x: Array, t: Array, batchsize: int) -> None:
        """Checks, before a training, that the net takes the data and that the ranks can share its batches.

        Args:
            net: the net.
            x: samples (N, ...).
            t: labels (N,).
            batchsize: samples of a batch; the last one may have fewer.

        Raises:
            TypeError: as of BranchyNet.check_data.
            ValueError: as of BranchyNet.check_data, or the ranks cannot share the batches.
        """
        net.check_data(x, t, x[:1])

    def parallel(self, net: BranchyNet) -> Any:
        """Returns an object that trains a net: it has `train`, `train_main` and `check_data` of a BranchyNet."""
        return net


ALONE = Alone()


class Ranks(Alone):
    """The ranks that train together.

    Args:
        comm: ChainerMN's communicator.
        communicator: its name.
        batch_normalization: 'local': every rank normalises by its own share of the batch; 'synchronised': all by the
            whole batch.

    Attributes:
        rank: number of this rank, from 0.
        size: number of ranks.
        comm: as given.
        communicator: as given.
        batch_normalization: as given.
    """

    def __init__(self, comm: Any, communicator: str, batch_normalization: str = 'local') -> None:
        self.comm = comm
        self.communicator = communicator
        self.batch_normalization = batch_normalization
        self.rank, self.size = comm.rank, comm.size
        self._mpi = comm.mpi_comm

    def together(self, make: Callable[[], T]) -> T:
        """See Alone."""
        return _together(self._mpi, make)

    def from_first(self, make: Callable[[], T]) -> T:
        """See Alone."""
        result, error = self._mpi.bcast(_result_or_error(make) if self.rank == 0 else None)
        if error is not None:
            raise Refused(error)
        return result

    def check_same(self, values: dict[str, Any]) -> None:
        """See Alone."""
        first, *others = self._mpi.allgather((socket.gethostname(), values))
        for rank, (host, found) in enumerate(others, 1):
            for name, value in first[1].items():
                if found[name] != value:
                    raise Refused(
                        f'rank {rank} on {host} has {name} {found[name]}: expected {value}, which rank 0 on '
                        f'{first[0]} has'
                    )

    def check_data(self, net: BranchyNet, x: Array, t: Array, batchsize: int) -> None:
        """See Alone."""
        super().check_data(net, x, t, batchsize)
        if batchsize % self.size:
            raise ValueError(f'batchsize is {batchsize}: expected a multiple of {self.size}, the number of ranks')
        if self.batch_normalization == 'local':
            return
        if len(x) % batchsize % self.size:
            raise ValueError(
                f'{len(x)} samples leave {len(x) % batchsize} for the last batch: synchronised batch normalisation '
                f'needs a multiple of {self.size}, the number of ranks'
            )
        if net.drops_samples(batchsize):
            raise ValueError(
                'the net drops samples in training, which leaves shares of different sizes: take local batch '
                'normalisation, or thresholdExits=None and percentTrainKeeps=1'
            )

    def parallel(self, net: BranchyNet) -> Parallel:
        """See Alone."""
        if self.batch_normalization == 'synchronised':
            synchronise(net, self.comm)
        return Parallel(net, self.comm)

    def own_device(self) -> str:
        """Returns the name of the device of this rank: the CPU, or with GPUs one for every rank of a machine."""
        return 'cpu' if self.communicator == 'naive' else f'gpu:{self.comm.intra_rank}'


def _together(mpi: Any, make: Callable[[], T]) -> T:
    """See Alone.together; ``mpi`` is the communicator of mpi4py."""
    result, error = _result_or_error(make)
    errors = mpi.allgather(error)
    for rank, found in enumerate(errors):
        if found is not None:
            raise Refused(found if len(set(errors)) == 1 else f'rank {rank}: {found}')
    return result


def _result_or_error(make: Callable[[], Any]) -> tuple[Any, str | None]:
    """(result, None), or (None, message) where ``make`` raised OSError or ValueError."""
    try:
        return make(), None
    except (OSError, ValueError) as e:
        return None, str(e)


class Parallel:
    """A net that the ranks train together; its methods take the whole batch on every rank.

    Dropout has noise of its own on every rank. The generator of NumPy is left as it was, so that it stays the same on
    all ranks.

    Args:
        net: the net, with the same weights, moments and generators on all ranks.
        comm: ChainerMN's communicator.
    """

    def __init__(self, net: BranchyNet, comm: Any) -> None:
        self._net = net
        self._comm = comm
        self.check_data = net.check_data
        if net.gpu and comm.size > 1:
            cuda.cupy.random.seed(np.random.RandomState(self._own_seed()).randint(2**31))

    def train(self, x: Array, t: Array) -> tuple[list[float], list[float]]:
        """Trains all exits jointly, by one step; for arguments and returns see BranchyNet.train."""
        check_pairs(x, t)
        net, share = self._net, self._share(x)
        x, t = net.checked(x[share.samples], t[share.samples])
        with chainer.using_config('train', True), self._own_noise():
            losses, accuracies, total = net.joint_loss(x, t, share)
            means = self._step(total, [net.optimizer, *net.optimizers], [*losses, *accuracies])
        return means[: len(losses)], means[len(losses) :]

    def train_main(self, x: Array, t: Array) -> tuple[float, float]:
        """Trains main alone, by one step; for arguments and returns see BranchyNet.train_main."""
        check_pairs(x, t)
        net, share = self._net, self._share(x)
        net.check_thawed('trunk')
        x, t = net.checked(x[share.samples], t[share.samples])
        with chainer.using_config('train', True), self._own_noise():
            loss, accuracy = map(share.weighted, loss_and_accuracy(net.main(x), t))
            means = self._step(loss, [net.optimizer], [loss, accuracy])
        return means[0], means[1]

    def _share(self, x: Array) -> SharedBatch:
        return SharedBatch(len(x), self._comm.mpi_comm)

    def _step(
        self, loss: chainer.Variable, optimizers: list[chainer.Optimizer], report: list[chainer.Variable]
    ) -> list[float]:
        """Updates the parameters by gradients averaged over the ranks; returns the averages of ``report``."""
        values: list[Any] = [value.array for value in report]

        def average() -> None:
            average_in_one_pass([*message(self._net), *values], self._comm)

        step(loss, optimizers, average)
        return [float(value) for value in values]

    def _own_seed(self) -> list[int]:
        """A seed that differs by the state of NumPy's generator, the step and the rank."""
        state: Any = np.random.get_state()
        _, keys, place, *_ = state
        return [*keys[:8].tolist(), place, self._net.optimizer.t, self._comm.rank]

    @contextlib.contextmanager
    def _own_noise(self) -> Iterator[None]:
        """A context in which NumPy's generator is this rank's own."""
        if self._comm.size == 1:
            yield
            return
        before = np.random.get_state()
        np.random.seed(self._own_seed())
        try:
            yield
        finally:
            np.random.set_state(before)


def average_in_one_pass(arrays: list[Array], comm: Any) -> None:
    """Replaces arrays by their means over the ranks, all in one message.

    Args:
        arrays: arrays of any shape, the same shapes on all ranks.
        comm: ChainerMN's communicator.
    """
    xp = chainer.backend.get_array_module(*arrays)
    packed: Any = chainer.Parameter(xp.concatenate([array.ravel() for array in arrays]))
    packed.grad = packed.array
    link = chainer.Link()
    with link.init_scope():
        link.packed = packed
    comm.multi_node_mean_grad(link)
    ends = np.cumsum([array.size for array in arrays])
    for array, end in zip(arrays, ends.tolist()):
        array[...] = packed.grad[end - array.size : end].reshape(array.shape)


def message(net: BranchyNet) -> list[Array]:
    """The numbers that differ among the ranks after a step: gradients, and running statistics of a rank's own samples.

    Args:
        net: the net, after a backward pass.

    Returns:
        Its own arrays.
    """
    from chainermn.links import MultiNodeBatchNormalization

    gradients = [param.grad for param in net.params() if param.grad is not None]
    local = [link for link in net.links() if not isinstance(link, MultiNodeBatchNormalization)]
    statistics = [getattr(link, name) for link in local for name in sorted(link._persistent)]
    return gradients + [value for value in statistics if getattr(value, 'dtype', np.dtype(int)).kind == 'f']


def synchronise(net: BranchyNet, comm: Any) -> None:
    """Replaces batch normalisation by ChainerMN's, which normalises by the whole batch.

    chainermn.links.create_mnbn_model would make copies; here the parameters stay the same objects, which optimisers
    and the nets of several exits share.

    Args:
        net: the net.
        comm: ChainerMN's communicator.

    Raises:
        Refused: ChainerMN has no link that does the same as one of the net's.
    """
    stops = [id(layer) for layer in net.main.stops()] if isinstance(net.main, Trunk) else []
    for path, link in net.namedlinks():
        if isinstance(link, (L.BatchNormalization, L.DecorrelatedBatchNormalization)):
            _check_synchronisable(path, link)
            if id(link) in stops:  # ChainerMN's link does not call link hooks, by which a pass stops
                raise Refused(f'{path} cannot be synchronised, as an exit stands after it: move the exit')
    made: dict[int, chainer.Link] = {}
    for container in list(net.links()):
        if isinstance(container, chainer.ChainList):
            for i, link in enumerate(container):
                container[i] = _synchronised(link, comm, made)
        for name, link in list(vars(container).items()):
            if isinstance(link, L.BatchNormalization):
                setattr(container, name, _synchronised(link, comm, made))


def _check_synchronisable(path: str, link: Any) -> None:
    """Raises Refused unless ChainerMN has a link that does the same as a normalisation over batches."""
    expected = 'expected L.BatchNormalization over the default axes; take local batch normalisation'
    if type(link) is not L.BatchNormalization:
        raise Refused(f'{path} is a {type(link).__name__}, which cannot be synchronised: {expected}')
    if link.axis is not None:
        raise Refused(f'{path} normalises over the axes {link.axis}, which cannot be synchronised: {expected}')


def _synchronised(link: chainer.Link, comm: Any, made: dict[int, chainer.Link]) -> chainer.Link:
    """The link that takes the place of another: the same one, or what was or is now made of batch normalisation."""
    from chainermn.links import MultiNodeBatchNormalization

    if not isinstance(link, L.BatchNormalization):
        return link
    if id(link) not in made:
        scales: list[str] = [name for name in ('gamma', 'beta') if getattr(link, name) is not None]
        mean: Any = link.avg_mean
        new = MultiNodeBatchNormalization(
            mean.shape, comm, link.decay, link.eps, mean.dtype, use_gamma='gamma' in scales, use_beta='beta' in scales
        )
        new.to_device(link.device)
        for name in [*scales, 'avg_mean', 'avg_var', 'N']:
            setattr(new, name, getattr(link, name))
        made[id(link)] = new
    return made[id(link)]


@contextlib.contextmanager
def job(communicator: str, batch_normalization: str = 'local') -> Iterator[Ranks]:
    """A context in which the ranks that mpiexec started work together, and all end where one of them fails.

    Where an exception leaves the context, it is reported on standard error and all ranks end: with status 2 for a
    mistake that all know of; else the MPI job is aborted, because the other ranks would wait for this one.

    Args:
        communicator: name of a communicator of ChainerMN: 'naive', or with GPUs 'flat' or 'pure_nccl'.
        batch_normalization: 'local' or 'synchronised', see Ranks.

    Yields:
        The Ranks.

    Raises:
        OSError: mpi4py or an MPI is missing.
        SystemExit: a mistake that all ranks know of, such as a communicator that does not work here.
    """
    mpi = _world()
    try:
        comm = _together(mpi, lambda: _create(communicator))
        yield Ranks(comm, communicator, batch_normalization)
    except Refused as e:
        if mpi.rank == 0:
            print(f'branchynet: {e}', file=sys.stderr, flush=True)
        mpi.Barrier()  # mpiexec kills all ranks as soon as one has ended with this status
        raise SystemExit(2) from e
    except BaseException as e:
        _abort(mpi, e)


def mpiexec(ranks: int, words: Sequence[str]) -> list[str]:
    """Returns the command line that runs a command on several ranks of this machine.

    Args:
        ranks: number of ranks; there may be more of them than cores.
        words: the command.

    Raises:
        OSError: there is no mpiexec.
    """
    found = shutil.which('mpiexec', path=os.path.join(sys.prefix, 'bin')) or shutil.which('mpiexec')
    if found is None:
        raise OSError(f'mpiexec is missing: run {INSTALL}')
    version = subprocess.run([found, '--version'], capture_output=True, text=True).stdout
    root = ['--allow-run-as-root'] if hasattr(os, 'geteuid') and os.geteuid() == 0 else []
    options = ['--oversubscribe', '--bind-to', 'none', *root] if 'Open MPI' in version else []
    return [found, *options, '-n', str(ranks), *words]


def _world() -> Any:
    """The communicator of mpi4py that all ranks belong to."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as e:  # RuntimeError: mpi4py finds no MPI
        raise OSError(f'training on several ranks needs mpi4py and an MPI ({_first_line(e)}): run {INSTALL}') from e
    return MPI.COMM_WORLD


def _create(communicator: str) -> Any:
    """ChainerMN's communicator of a name."""
    if communicator != 'naive' and not cuda.available:
        raise OSError(f'communicator is {communicator}, which needs CuPy and a GPU: take naive on a CPU')
    import chainermn

    try:
        return chainermn.create_communicator(communicator)
    except (ImportError, RuntimeError) as e:
        raise OSError(f'communicator is {communicator}, which does not work here: {_first_line(e)}') from e


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _abort(mpi: Any, error: BaseException) -> NoReturn:
    """Reports an error and ends all ranks."""
    if os.environ.get('BRANCHYNET_DEBUG') or not isinstance(error, (OSError, ValueError, KeyboardInterrupt)):
        traceback.print_exception(type(error), error, error.__traceback__)
    words = 'interrupted' if isinstance(error, KeyboardInterrupt) else f'{type(error).__name__}: {error}'
    print(f'branchynet: rank {mpi.rank} on {socket.gethostname()}: {words}', file=sys.stderr, flush=True)
    mpi.Abort(2)
    raise AssertionError('MPI_Abort returned')
