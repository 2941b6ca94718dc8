"""Early exit in machine code: one call takes samples from the input to label and exit, without Python between stages.

A Cascade is a net's exits and its main for samples of one shape, with the weights that the net has when it is made.
Samples go through one after the other, so that a sample's result does not depend on the batch that it came in.
Threads share the code and the packed weights, and the samples of a batch; each has a workspace of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Callable, NamedTuple, Optional

from branchynet.cpu import planar
from branchynet.cpu.emitter import DOUBLE, INT, REAL, Emitter, aligned, integer
from branchynet.cpu.engine import NotFinite, Result, label_of
from branchynet.cpu.graph import Node, NotCovered, Operations, ancestors, fuse_rectifiers
from branchynet.cpu.memory import LINE
from branchynet.cpu.planar import Plane, vector_plane
from branchynet.cpu.team import run_frames
from branchynet.cpu.threads import taken, workers
from branchynet.exits import answer, leave_at

import numpy as np
from llvmlite import ir

_DONE, _NOT_FINITE, _UNCERTAIN = 0, -1, -2  # a sample's status
_LOWEST = float(np.finfo(np.float32).min)
_CHUNK = 8  # samples that a thread takes at once


class Cascade:
    """A net's exits and main, compiled for samples (C, H, W): an Engine.

    Args:
        operations: of the net.

    Raises:
        NotCovered: the exits have different numbers of classes.
    """

    most = 1024  # so that an interrupt need not wait for all samples of a large batch

    def __init__(self, operations: Operations) -> None:
        x, trunk, heads, main = operations
        outputs = heads if main is None else [*heads, main]
        fuse_rectifiers(outputs)
        self.exits, self.classes = len(heads), heads[0].shape[0]
        if any(output.shape != (self.classes, 1, 1) for output in outputs):
            raise NotCovered('exits of different numbers of classes')
        writer = _Writer(x, outputs)
        writer.write_leave(trunk, heads)
        writer.write_record(trunk, heads)
        if main is not None:
            writer.write_main(main)
        self._calls = writer.emit.compiled(
            'leave', 'share_leave', 'record', *(['main', 'share_main'] if main is not None else [])
        )
        self._constants = writer.emit.constants.block()
        self._layout, self._shape = writer.layout, x.shape
        self._workspaces: list[_Workspace] = []  # spare ones

    def leave(self, x: np.ndarray, thresholds: Sequence[float]) -> Result:
        """Early exit.

        Args:
            x: float32 (N, C, H, W), contiguous.
            thresholds: E - 1 numbers, nats, as the exit rule compares them.

        Raises:
            NotFinite: x has a NaN or an infinity.
        """
        label, exits = np.empty(len(x), np.int64), np.empty(len(x), np.int64)
        logits = np.empty((len(x), self.classes), np.float32)
        stopped, seconds = self._call_in_chunks('leave', x, [label, exits, logits], thresholds)
        for part in stopped:
            seconds += self._leave_alone(x[part], (label[part], exits[part], logits[part]), thresholds)
        return Result(label, exits, logits, seconds)

    def _call_in_chunks(
        self, name: str, x: np.ndarray, results: Sequence[np.ndarray], thresholds: Sequence[float] = ()
    ) -> tuple[list[slice], float]:
        """Calls 'leave' or 'main' for samples, which threads share.

        Args:
            name: of the function.
            x: float32 (N, C, H, W), contiguous.
            results: arrays (N, ...) of _LABEL, _EXIT and _LOGITS, which it fills.
            thresholds: of `leave`.

        Returns:
            (parts of the samples that it leaves to be done, each from where it has stopped; seconds, of all threads).
        """
        starts = np.arange(0, len(x), _CHUNK)
        workspaces = [taken(self._workspaces, self._new_workspace) for _ in range(workers(len(starts)))]
        begun, done = np.zeros(1, np.int64), np.zeros(len(starts), np.int64)
        arrays = [array.ctypes.data for array in (begun, done, x, *results)]
        for workspace in workspaces:
            workspace.thresholds[: len(thresholds)] = thresholds
            workspace.seconds[0] = 0.0
        run_frames(self._calls[f'share_{name}'], [(workspace.address, len(x), *arrays) for workspace in workspaces])
        seconds = sum(float(workspace.seconds[0]) for workspace in workspaces)
        self._workspaces += workspaces[::-1]
        stops = np.minimum(starts + _CHUNK, len(x))
        return [slice(*part) for part in zip(starts + done, stops) if part[0] < part[1]], seconds

    def _leave_alone(self, x: np.ndarray, results: tuple[np.ndarray, ...], thresholds: Sequence[float]) -> float:
        """`leave` of samples by the calling thread; returns the seconds."""
        workspace, count, done = taken(self._workspaces, self._new_workspace), len(x), 0
        label, exits, logits = results
        seconds = 0.0
        workspace.thresholds[:] = thresholds
        while done < count:
            workspace.place(x[done:], label[done:], exits[done:], logits[done:])
            done += self._calls['leave'](workspace.address)
            seconds += float(workspace.seconds[0])
            if done < count:
                exits[done], label[done], logits[done], more = self._ruled(workspace, x[done : done + 1])
                seconds += more
                done += 1
        self._workspaces.append(workspace)
        return seconds

    def leave_one(self, x: np.ndarray, thresholds: Sequence[float]) -> tuple[int, int, float]:
        """(label, exit, seconds in the trunk's stages) of one sample (1, C, H, W): ``leave`` at the least cost."""
        workspace = taken(self._workspaces, self._new_workspace)
        workspace.x[...] = x
        workspace.thresholds[:] = thresholds
        workspace.place_one()
        if self._calls['leave'](workspace.address):
            label, k, seconds = int(workspace.label[0]), int(workspace.exit[0]), float(workspace.seconds[0])
        else:
            k, label, _, seconds = self._ruled(workspace, workspace.x)
        self._workspaces.append(workspace)
        return label, k, seconds

    def _ruled(self, workspace: _Workspace, x: np.ndarray) -> tuple[int, int, np.ndarray, float]:
        """(exit, label, logits, seconds) of a sample whose entropy is so near a threshold that rounding decides."""
        if workspace.status == _NOT_FINITE:
            raise NotFinite
        logits, released, _ = self.record(x)
        k = int(leave_at(answer(logits[:, 0]).entropy[:, None], workspace.thresholds.tolist())[0])
        return k, label_of(logits[k, 0]), logits[k, 0], float(released[: k + 1].sum())

    def record(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Every exit's answer to x (N, C, H, W), without early exit.

        Returns:
            (logits, released, whole): float32 (E, N, C); seconds (E, N) in the trunk's stage before each exit; seconds
            (E, N) in that stage, the exit's links, softmax and entropy.

        Raises:
            NotFinite: x has a NaN or an infinity.
        """
        workspace, count = taken(self._workspaces, self._new_workspace), len(x)
        logits = np.empty((self.exits, count, self.classes), np.float32)
        released, whole = np.empty((self.exits, count)), np.empty((self.exits, count))
        workspace.place(x, logits=logits, released=released, whole=whole)
        done = self._calls['record'](workspace.address)
        self._workspaces.append(workspace)
        if done < count:
            raise NotFinite
        return logits, released, whole

    def main(self, x: np.ndarray) -> tuple[np.ndarray, float]:
        """main's logits, float32 (N, C), of x (N, C, H, W), and its seconds.

        Raises:
            NotFinite: x has a NaN or an infinity.
        """
        logits, none = np.empty((len(x), self.classes), np.float32), np.empty(0, np.int64)
        stopped, seconds = self._call_in_chunks('main', x, [none, none, logits])
        if stopped:
            raise NotFinite
        return logits, seconds

    def main_one(self, x: np.ndarray) -> int:
        """The label that main gives one sample (1, C, H, W), at the least cost."""
        workspace = taken(self._workspaces, self._new_workspace)
        workspace.x[...] = x
        workspace.place_one()
        done, label = self._calls['main'](workspace.address), label_of(workspace.logits)
        self._workspaces.append(workspace)
        if not done:
            raise NotFinite
        return label

    def _new_workspace(self) -> _Workspace:
        return _Workspace(self._layout, self._constants, self._shape, self.exits, self.classes)


# Places of a frame's 64-bit numbers: addresses, a count and a status.
(_MEMORY, _CONSTANTS, _THRESHOLDS, _SECONDS, _X, _COUNT, _LABEL, _EXIT, _LOGITS, _RELEASED, _WHOLE, _STATUS) = range(12)


class _Workspace:
    """The memory that one call at a time uses, and the frame of addresses by which machine code finds its arguments.

    Attributes:
        address: of the frame.
        x, label, exit, logits: of one sample.
        thresholds: float64 (E - 1,). seconds: float64 (1,), in the trunk's stages during a call.
    """

    def __init__(
        self, layout: _Layout, constants: np.ndarray, shape: tuple[int, int, int], exits: int, classes: int
    ) -> None:
        self._memory = layout.allocate()
        self._frame = np.zeros(12, np.int64)
        self.address = self._frame.ctypes.data
        self.x = np.zeros((1, *shape), np.float32)
        self.label, self.exit = np.zeros(1, np.int64), np.zeros(1, np.int64)
        self.logits = np.zeros((1, classes), np.float32)
        self.thresholds, self.seconds = np.zeros(exits - 1), np.zeros(1)
        self._constants = constants
        for place, array in (
            (_MEMORY, self._memory),
            (_CONSTANTS, constants),
            (_THRESHOLDS, self.thresholds),
            (_SECONDS, self.seconds),
        ):
            self._frame[place] = array.ctypes.data
        self.place(self.x, self.label, self.exit, self.logits)
        self._one = self._frame[_X:_RELEASED].copy()

    @property
    def status(self) -> int:
        """Of the sample at which the last call stopped."""
        return int(self._frame[_STATUS])

    def place(
        self,
        x: np.ndarray,
        label: Optional[np.ndarray] = None,
        exit: Optional[np.ndarray] = None,
        logits: Optional[np.ndarray] = None,
        released: Optional[np.ndarray] = None,
        whole: Optional[np.ndarray] = None,
    ) -> None:
        """Where a call finds its samples, and where it writes."""
        self._frame[_X], self._frame[_COUNT] = x.ctypes.data, len(x)
        for place, array in zip(range(_LABEL, _WHOLE + 1), (label, exit, logits, released, whole)):
            self._frame[place] = 0 if array is None else array.ctypes.data
        self.seconds[0] = 0.0

    def place_one(self) -> None:
        """The workspace's own sample."""
        self._frame[_X:_RELEASED] = self._one
        self.seconds[0] = 0.0


class _Layout:
    """Where planes lie in a workspace's memory; a place is used again for planes of one kind, as its padding fits."""

    def __init__(self) -> None:
        self._size = LINE  # the clock's numbers come first
        self._filled: list[tuple[int, Plane]] = []
        self._free: dict[Plane, list[int]] = {}

    def take(self, plane: Plane) -> int:
        """Offset in bytes of a free place."""
        free = self._free.setdefault(plane, [])
        if free:
            return free.pop()
        place = self._size
        self._size += -(-plane.size // LINE) * LINE
        if plane.fill:
            self._filled.append((place, plane))
        return place

    def give_back(self, plane: Plane, place: int) -> None:
        self._free[plane].append(place)

    def allocate(self) -> np.ndarray:
        """float32, with the planes' padding."""
        block = aligned(self._size // 4)
        for place, plane in self._filled:
            block[place // 4 : (place + plane.size) // 4] = plane.fill
        return block


class _Section(NamedTuple):
    """The nodes of a stage, those of its exit that later stages use again, and those of the exit alone."""

    stage: list[Node]
    reused: list[Node]
    head: list[Node]


class _Writer:
    """Writes a cascade's functions; each takes the address of a frame and returns how many samples went well."""

    def __init__(self, x: Node, outputs: Sequence[Node]) -> None:
        self.emit, self.layout = Emitter(), _Layout()
        self._x, self._classes = x, outputs[0].shape[0]
        self._planes = _planes(ancestors(outputs))

    def write_leave(self, trunk: Sequence[Node], heads: Sequence[Node]) -> None:
        """Early exit."""
        emit, sections = self.emit, _sections(trunk, heads)

        def sample(frame: ir.Value, i: ir.Value) -> None:
            body = self._begin(frame, i, _nodes(sections), heads)
            seconds, waiting = ir.Constant(DOUBLE, 0.0), None
            for k, section in enumerate(sections):
                _, trunk_seconds, waiting = self._until_head(body, section, waiting)
                seconds = emit.builder.fadd(seconds, trunk_seconds)
                body.run(section.head)
                logits = body.address(heads[k])
                label, entropy = self._label_and_entropy(logits)
                if k + 1 == len(sections):
                    self._answer(frame, i, k, label, logits, seconds)
                    return
                threshold = emit.load(emit.add(self._field(frame, _THRESHOLDS), 8 * k), DOUBLE)
                # The rule works in float32: a smaller difference is the rule's to decide.
                margin = ir.Constant(DOUBLE, 1e-7 * (100 + self._classes))
                leaves = emit.builder.fcmp_ordered('<', entropy, emit.builder.fsub(threshold, margin))
                with emit.builder.if_then(leaves):
                    self._answer(frame, i, k, label, logits, seconds)
                stays = emit.builder.fcmp_ordered('>', entropy, emit.builder.fadd(threshold, margin))
                with emit.builder.if_then(emit.builder.not_(stays), likely=False):
                    emit.builder.ret(integer(_UNCERTAIN))

        self._write_share('leave', self._for_every_sample('leave', sample))

    def write_record(self, trunk: Sequence[Node], heads: Sequence[Node]) -> None:
        """Every exit's answer, and its times."""
        emit, sections = self.emit, _sections(trunk, heads)

        def sample(frame: ir.Value, i: ir.Value) -> None:
            body = self._begin(frame, i, _nodes(sections), heads)
            count, waiting = self._field(frame, _COUNT), None
            for k, section in enumerate(sections):
                start, trunk_seconds, waiting = self._until_head(body, section, waiting)
                body.run(section.head)
                logits, classes = body.address(heads[k]), self._classes
                self._label_and_entropy(logits)  # for its time
                whole = emit.builder.fsub(body.now(), start)
                index = emit.builder.add(i, emit.builder.mul(count, integer(k)))
                self._copy(logits, emit.at(self._field(frame, _LOGITS), index, 4 * classes), classes)
                emit.store(trunk_seconds, emit.at(self._field(frame, _RELEASED), index, 8))
                emit.store(whole, emit.at(self._field(frame, _WHOLE), index, 8))

        self._for_every_sample('record', sample)

    def write_main(self, output: Node) -> None:
        """main's logits."""
        nodes = [node for node in ancestors([output]) if node is not self._x]

        def sample(frame: ir.Value, i: ir.Value) -> None:
            body = self._begin(frame, i, nodes, [output])
            body.run(nodes)
            classes = output.shape[0]
            self._copy(body.address(output), self.emit.at(self._field(frame, _LOGITS), i, 4 * classes), classes)

        self._write_share('main', self._for_every_sample('main', sample))

    def _for_every_sample(self, name: str, sample: Callable[..., None]) -> ir.Function:
        """The function ``name``: calls ``sample(frame, i)`` until it returns a status below 0."""
        emit = self.emit
        inner = emit.function((name, 'sample'), 2, sample)

        def write(frame: ir.Value) -> ir.Value:
            count = self._field(frame, _COUNT)

            def body(i: ir.Value) -> None:
                status = emit.builder.call(inner, [frame, i])
                with emit.builder.if_then(emit.builder.icmp_signed('<', status, integer(_DONE)), likely=False):
                    emit.store(status, emit.add(frame, 8 * _STATUS))
                    emit.builder.ret(i)

            emit.loop_if_any(count, body, (), 1)
            return count

        return emit.function(name, 1, write)

    def _write_share(self, name: str, function: ir.Function) -> None:
        """Calls the function ``name`` for chunks of samples that no other thread has begun.

        Its frame: the address of a workspace's frame, the number of samples, and the addresses of the number of chunks
        that are begun, of how many samples of each chunk are done, of x, labels, exits and logits.
        """
        emit, plane, classes = self.emit, self._planes[self._x], self._classes
        steps = {_X: 4 * plane.channels * plane.height * plane.width, _LABEL: 8, _EXIT: 8, _LOGITS: 4 * classes}

        def write(frame: ir.Value) -> None:
            build = emit.builder
            workspace, total, begun, done, *arrays = emit.words(frame, 8)
            size = integer(_CHUNK)
            chunks = build.sdiv(build.add(total, integer(_CHUNK - 1)), size)

            def chunk(i: ir.Value) -> None:
                first = build.mul(i, size)
                rest = build.sub(total, first)
                count = build.select(build.icmp_signed('<', rest, size), rest, size)
                emit.store(count, emit.add(workspace, 8 * _COUNT))
                for (place, step), array in zip(steps.items(), arrays):
                    emit.store(emit.at(array, first, step), emit.add(workspace, 8 * place))
                memory = self._field(workspace, _MEMORY)
                start = _now(emit, memory)
                emit.store(build.call(function, [workspace]), emit.at(done, i, 8))
                if name == 'main':  # the others time what is in them
                    total_seconds = self._field(workspace, _SECONDS)
                    spent = build.fsub(_now(emit, memory), start)
                    emit.store(build.fadd(emit.load(total_seconds, DOUBLE), spent), total_seconds)

            emit.shared_loop(begun, chunks, chunk)

        emit.function(f'share_{name}', 1, write)

    def _begin(self, frame: ir.Value, i: ir.Value, nodes: Sequence[Node], outputs: Sequence[Node]) -> _Body:
        """Copies sample i into its plane, or returns from the function where it is not finite."""
        emit, plane = self.emit, self._planes[self._x]
        places = self._places(nodes, outputs)
        body = _Body(emit, self._field(frame, _MEMORY), self._field(frame, _CONSTANTS), self._planes, places)
        source = emit.at(self._field(frame, _X), i, 4 * plane.channels * plane.height * plane.width)
        status = emit.builder.call(planar.copy_in(emit, plane), [source, body.address(self._x)])
        with emit.builder.if_then(emit.builder.icmp_signed('!=', status, integer(0)), likely=False):
            emit.builder.ret(integer(_NOT_FINITE))
        return body

    def _places(self, nodes: Sequence[Node], outputs: Sequence[Node]) -> dict[Node, int]:
        """Offset in the workspace of every node, where the nodes are computed in this order."""
        last = {inner: turn for turn, node in enumerate(nodes) for inner in node.inputs}
        places = {self._x: self.layout.take(self._planes[self._x])}
        taken = [self._x]  # no set, whose order would make the code another one in each process
        for turn, node in enumerate(nodes):
            places[node] = self.layout.take(self._planes[node])
            taken.append(node)
            for inner in dict.fromkeys(node.inputs):
                if last[inner] == turn and inner not in outputs:
                    self.layout.give_back(self._planes[inner], places[inner])
                    taken.remove(inner)
        for node in taken:
            self.layout.give_back(self._planes[node], places[node])
        return places

    def _until_head(self, body: _Body, section: _Section, waiting: Optional[ir.Value]) -> tuple[ir.Value, ...]:
        """Runs a stage, and what the exit shares with later stages.

        Args:
            body: of the function.
            section: its nodes.
            waiting: seconds of the nodes that the exit before shares with this stage, None for none.

        Returns:
            (start, seconds of the stage, seconds that wait for the next stage).
        """
        fsub = self.emit.builder.fsub
        start = body.now()
        body.run(section.stage)
        end = body.now()
        seconds = fsub(end, start)
        if waiting is not None:
            seconds = self.emit.builder.fadd(seconds, waiting)
        if not section.reused:
            return start, seconds, None
        body.run(section.reused)
        return start, seconds, fsub(body.now(), end)

    def _answer(
        self, frame: ir.Value, i: ir.Value, k: int, label: ir.Value, logits: ir.Value, seconds: ir.Value
    ) -> None:
        """Writes a sample's answer, adds its seconds in the trunk's stages, and returns from the function."""
        emit, classes, total = self.emit, self._classes, self._field(frame, _SECONDS)
        emit.store(emit.builder.fadd(emit.load(total, DOUBLE), seconds), total)
        emit.store(integer(k), emit.at(self._field(frame, _EXIT), i, 8))
        emit.store(label, emit.at(self._field(frame, _LABEL), i, 8))
        self._copy(logits, emit.at(self._field(frame, _LOGITS), i, 4 * classes), classes)
        emit.builder.ret(integer(_DONE))

    def _field(self, frame: ir.Value, place: int) -> ir.Value:
        return self.emit.load(self.emit.add(frame, 8 * place), INT)

    def _copy(self, source: ir.Value, place: ir.Value, count: int) -> None:
        emit = self.emit
        emit.loop(count, lambda c: emit.store(emit.load(emit.at(source, c, 4), REAL), emit.at(place, c, 4)))

    def _label_and_entropy(self, logits: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The first class of the highest logit, -1 where the answer is NaN, and the entropy (nats, float64)."""
        function = self.emit.function('entropy', 2, self._write_entropy, result=DOUBLE)
        label = self.emit.builder.alloca(INT)
        entropy = self.emit.builder.call(function, [logits, self.emit.builder.ptrtoint(label, INT)])
        return self.emit.builder.load(label), entropy

    def _write_entropy(self, logits: ir.Value, label_address: ir.Value) -> ir.Value:
        # With d the distance from the highest logit: entropy = log(sum exp(-d)) + sum(d exp(-d)) / sum exp(-d).
        emit, builder = self.emit, self.emit.builder
        exp, log = (emit.external(f'llvm.{name}.f64', DOUBLE, [DOUBLE]) for name in ('exp', 'log'))

        def higher(c: ir.Value, label: ir.Value, top: ir.Value) -> list[ir.Value]:
            value = emit.load(emit.at(logits, c, 4), REAL)
            is_higher = builder.fcmp_ordered('>', value, top)
            return [builder.select(is_higher, c, label), builder.select(is_higher, value, top)]

        def term(c: ir.Value, total: ir.Value, weighted: ir.Value) -> list[ir.Value]:
            value = builder.fpext(emit.load(emit.at(logits, c, 4), REAL), DOUBLE)
            distance = builder.fsub(builder.fpext(top, DOUBLE), value)
            power = builder.call(exp, [builder.fneg(distance)])
            is_impossible = builder.fcmp_ordered('==', power, zero)  # and its distance may be infinite
            product = builder.select(is_impossible, zero, builder.fmul(power, distance))
            return [builder.fadd(total, power), builder.fadd(weighted, product)]

        zero = ir.Constant(DOUBLE, 0.0)
        label, top = emit.loop(self._classes, higher, [integer(0), emit.load(logits, REAL)])
        total, weighted = emit.loop(self._classes, term, [zero, zero])
        entropy = builder.fadd(builder.call(log, [total]), builder.fdiv(weighted, total))
        is_number = builder.fcmp_ordered('ord', entropy, entropy)
        emit.store(builder.select(is_number, label, integer(-1)), label_address)
        return entropy


class _Body(NamedTuple):
    """The inside of a function that computes nodes."""

    emit: Emitter
    memory: ir.Value
    constants: ir.Value
    planes: dict[Node, Plane]
    places: dict[Node, int]

    def address(self, node: Node) -> ir.Value:
        """The address of a node's plane."""
        return self.emit.add(self.memory, self.places[node])

    def run(self, nodes: Iterable[Node]) -> None:
        """Computes nodes, inputs first."""
        for node in nodes:
            function, offsets = self._kernel(node)
            source, *more = [self.address(inner) for inner in node.inputs]
            constants = [self.emit.add(self.constants, offset) for offset in offsets]
            self.emit.builder.call(function, [source, self.address(node), *constants, *more])

    def _kernel(self, node: Node) -> tuple[ir.Function, list[int]]:
        """The function of a node, and the offsets of its constants."""
        emit, x, y, given = self.emit, self.planes[node.inputs[0]], self.planes[node], node.arguments
        if node.kind == 'convolution':
            onto = self.planes[node.inputs[1]] if len(node.inputs) > 1 else None
            w, b = given['w']
            return planar.convolution(emit, x, y, w, b, given['settings'], node.rectifier, onto)
        if node.kind == 'linear':
            w, b = given['w']
            return planar.linear(emit, x, y, w, b, node.rectifier)
        if node.kind == 'scaling':
            scale, shift = given['w']
            return planar.scaling(emit, x, y, scale, shift, node.rectifier)
        if node.kind == 'pooling':
            return planar.pooling(emit, x, y, given['maximum'], *given['windows']), []
        if node.kind == 'local_response':
            return planar.local_response(emit, x, y, **given), []
        if node.kind == 'rectified':
            return planar.rectified(emit, x, y, given['rectifier']), []
        if node.kind in ('sum', 'concat'):
            write = {'sum': planar.sum_of, 'concat': planar.concat}[node.kind]
            return write(emit, [self.planes[inner] for inner in node.inputs], y), []
        return {'copy': planar.copy, 'shortcut': planar.shortcut}[node.kind](emit, x, y), []

    def now(self) -> ir.Value:
        """Seconds, of a clock that only moves forward."""
        return _now(self.emit, self.memory)


def _now(emit: Emitter, memory: ir.Value) -> ir.Value:
    clock = emit.external('clock_gettime', ir.IntType(32), [ir.IntType(32), INT])

    def write(place: ir.Value) -> ir.Value:
        emit.builder.call(clock, [ir.Constant(ir.IntType(32), _MONOTONIC), place])
        seconds, nanoseconds = (
            emit.builder.sitofp(emit.load(emit.add(place, offset), INT), DOUBLE) for offset in (0, 8)
        )
        return emit.builder.fadd(seconds, emit.builder.fmul(nanoseconds, ir.Constant(DOUBLE, 1e-9)))

    return emit.builder.call(emit.function('now', 1, write, result=DOUBLE), [memory])


_MONOTONIC = getattr(time, 'CLOCK_MONOTONIC', 1)


def _sections(trunk: Sequence[Node], heads: Sequence[Node]) -> list[_Section]:
    """A Section for every exit."""
    wanted = {node for node in ancestors(heads) if node.kind != 'input'}

    def new(nodes: Iterable[Node]) -> list[Node]:
        found = [node for node in nodes if node in wanted]
        wanted.difference_update(found)
        return found

    sections = []
    for k, (feature, head) in enumerate(zip(trunk, heads)):
        later = set(ancestors([*trunk[k + 1 :], *heads[k + 1 :]]))
        stage = new(ancestors([feature]))
        reused = new(node for node in ancestors([head]) if node in later)
        sections.append(_Section(stage, reused, new(ancestors([head]))))
    return sections


def _nodes(sections: Iterable[_Section]) -> list[Node]:
    """The nodes of all sections, inputs first."""
    return [node for section in sections for part in section for node in part]


def _planes(nodes: Sequence[Node]) -> dict[Node, Plane]:
    """How every node lies in memory: with the padding that its readers need."""
    above, beside, fill = dict.fromkeys(nodes, 0), dict.fromkeys(nodes, 0), dict.fromkeys(nodes, 0.0)
    for node in nodes:
        if node.kind in ('convolution', 'pooling'):
            source = node.inputs[0]
            rooms = node.padding()
            above[source], beside[source] = max(above[source], rooms[0]), max(beside[source], rooms[1])
            if source.kind == 'copy':
                fill[source] = _LOWEST
    return {
        node: vector_plane(node.shape[0])
        if node.is_vector
        else Plane(*node.shape, above[node], beside[node], fill[node])
        for node in nodes
    }
