"""oneDNN's C API, as far as the kernels need it: primitives on float32, each run by the thread that calls it."""

from __future__ import annotations

import array as packed
import ctypes
import functools
import importlib.metadata
import os
import platform
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from ctypes import Array, byref, c_char, c_char_p, c_float, c_int, c_int64, c_size_t, c_void_p
from typing import Any, Optional

from branchynet.cpu.signals import undisturbed
from branchynet.cpu.threads import SCRATCHES, Scratch, taken

import numpy as np

# Values of the enumerations in dnnl_types.h that are used.
FORWARD_TRAINING, FORWARD_INFERENCE, BACKWARD = 64, 96, 128
CONVOLUTION_DIRECT = 1
POOLING_MAX, POOLING_AVERAGE_INCLUDE_PADDING = 511, 767
_FLOAT32 = 3
RELU = 32
GIVEN_STATISTICS, SCALED, SHIFTED, WITH_RELU = 1, 2, 4, 8
# Formats: the primitive's choice; (C,); (B, C); (B, C, H, W), and weights in groups, (G, O / G, C / G, KH, KW), in that
# order; (B, C, H, W) with the channels last.
ANY, VECTOR, MATRIX, NCHW, GROUPS, NHWC = 1, 2, 3, 5, 6, 22
SRC, DST, WEIGHTS, BIAS, WORKSPACE, _SCRATCHPAD = 1, 17, 33, 41, 64, 80
DIFF_SRC, DIFF_DST, DIFF_WEIGHTS, DIFF_BIAS = 129, 145, 161, 169
MEAN, VARIANCE, SCALE, SHIFT, DIFF_SCALE, DIFF_SHIFT = 49, 50, 51, 52, 255, 256
_QUERIES = {
    SRC: 129,
    DIFF_SRC: 130,
    WEIGHTS: 131,
    DIFF_WEIGHTS: 132,
    DST: 133,
    DIFF_DST: 134,
    WORKSPACE: 135,
    _SCRATCHPAD: 136,
}
_IMPLEMENTATION = 8  # a query
_MAX_DIMS = 12


class _Argument(ctypes.Structure):
    _fields_ = [('kind', c_int), ('memory', c_void_p)]


class _Library:
    """The loaded library, its engine and the attribute that leaves scratch memory to the caller."""

    def __init__(self) -> None:
        # Calls that compute let other threads run meanwhile. Those that only set something hold the GIL: releasing and
        # retaking it would take longer than the call.
        working = ctypes.CDLL(_find())
        self.dnnl = ctypes.PyDLL(_find())
        self.gomp = ctypes.PyDLL('libgomp.so.1')
        self.sgemm = working.dnnl_sgemm
        self.sgemm.argtypes = (
            c_char,
            c_char,
            c_int64,
            c_int64,
            c_int64,
            c_float,
            c_void_p,
            c_int64,
            c_void_p,
            c_int64,
            c_float,
            c_void_p,
            c_int64,
        )
        self.execute = working.dnnl_primitive_execute
        self.execute.argtypes = c_void_p, c_void_p, c_int, c_void_p
        self.set_address = self.dnnl.dnnl_memory_set_data_handle
        self.set_address.argtypes = c_void_p, c_void_p
        self.dnnl.dnnl_memory_desc_get_size.restype = c_size_t
        self.dnnl.dnnl_primitive_desc_query_md.restype = c_void_p
        self.engine, self.attribute = c_void_p(), c_void_p()
        self.local = threading.local()
        self.call('engine_create', byref(self.engine), 1, c_size_t(0))
        self.call('primitive_attr_create', byref(self.attribute))
        self.call('primitive_attr_set_scratchpad_mode', self.attribute, 1)

    def call(self, name: str, *arguments: Any) -> None:
        """Calls dnnl_<name>.

        Raises:
            RuntimeError: it failed.
        """
        status = getattr(self.dnnl, 'dnnl_' + name)(*arguments)
        if status:
            raise RuntimeError(f'oneDNN: {name} ended with status {status}')

    def stream(self) -> c_void_p:
        """The calling thread's stream."""
        if not hasattr(self.local, 'stream'):
            self.local.stream = self.new_stream()
        return self.local.stream

    def new_stream(self) -> c_void_p:
        """A stream, by which one thread at a time runs primitives."""
        stream = _null('stream')
        self.call('stream_create', byref(stream), self.engine, 1)
        return stream


class _Handle(c_void_p):
    """An owning pointer to an object of oneDNN, null at first. The object is destroyed with the pointer."""

    destroy: Callable[[c_void_p], int]

    def __del__(self) -> None:
        if self:
            self.destroy(self)


@functools.cache
def _handle_type(kind: str) -> type[_Handle]:
    """The type of pointers to a dnnl_<kind>."""
    destroy = getattr(library().dnnl, f'dnnl_{kind}_destroy')
    destroy.argtypes = (c_void_p,)
    return type(kind, (_Handle,), {'destroy': destroy})


def _null(kind: str) -> _Handle:
    """A pointer to be set."""
    return _handle_type(kind)()


def _find() -> str:
    for file in importlib.metadata.files('onednn-cpu-gomp') or ():
        if file.name == 'libdnnl.so.3':
            return str(file.locate())
    raise OSError('onednn-cpu-gomp has no libdnnl.so.3')


def library() -> _Library:
    """The library.

    Raises:
        OSError, ImportError: it is not installed, or does not load.
    """
    global _loaded
    if _loaded is None:
        with _loading:  # threads that come at once share one engine: primitives of another's streams do not run
            found = _loaded or _Library()
            _loaded = _loaded or found  # a signal's handler may have loaded it meanwhile
    return _loaded


_loaded: Optional[_Library] = None
_loading = threading.RLock()


def _after_fork() -> None:
    # Another thread may have held the lock.
    global _loading
    _loading = threading.RLock()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_after_fork)


@functools.cache
def is_available() -> bool:
    """Whether the library is installed, and loads."""
    return version() is not None


def obstacle(error: Exception) -> str:
    """Why the library does not load, and the remedy, from the error that ``library`` raised."""
    if 'libgomp' in str(error):
        remedy = "install the system's libgomp, on Debian by apt-get install libgomp1"
    elif (sys.platform, platform.machine()) == ('linux', 'x86_64'):
        remedy = 'pip install onednn-cpu-gomp'
    else:
        remedy = 'it needs Linux on x86-64'
    return f'oneDNN does not load ({error}): {remedy}'


def version() -> Optional[dict[str, str]]:
    """{'version': as '3.2.0', 'isa': the instructions that its kernels use, as 'AVX2'}; None where it does not load."""
    try:
        dnnl = library().dnnl
    except (OSError, ImportError):
        return None
    dnnl.dnnl_version.restype = ctypes.POINTER(c_int * 3)
    isa = dnnl.dnnl_get_effective_cpu_isa()
    return {'version': '.'.join(map(str, dnnl.dnnl_version().contents)), 'isa': _ISAS.get(isa, hex(isa))}


@functools.cache
def has_avx512() -> bool:
    """Whether the library's kernels use AVX-512."""
    loaded = version()
    return loaded is not None and loaded['isa'].startswith('AVX512')


_ISAS = {  # dnnl_cpu_isa_t
    0x1: 'SSE41',
    0x3: 'AVX',
    0x7: 'AVX2',
    0xF: 'AVX2_VNNI',
    0x1F: 'AVX2_VNNI_2',
    0x27: 'AVX512_CORE',
    0x67: 'AVX512_CORE_VNNI',
    0xE7: 'AVX512_CORE_BF16',
    0x1EF: 'AVX512_CORE_FP16',
    0xFEF: 'AVX512_CORE_AMX',
    0x1FEF: 'AVX512_CORE_AMX_FP16',
}


class single_threaded:
    """Makes OpenMP use one thread for what this thread calls, and puts back what was."""

    def __enter__(self) -> None:
        gomp = library().gomp
        self.before = gomp.omp_get_max_threads()
        if self.before != 1:
            gomp.omp_set_num_threads(1)

    def __exit__(self, *error: object) -> None:
        if self.before != 1:
            library().gomp.omp_set_num_threads(self.before)


def integers(values: Sequence[int]) -> Array:
    """A dnnl_dims_t."""
    return (c_int64 * _MAX_DIMS)(*values)


def describe(shape: Sequence[int], form: int) -> c_void_p:
    """A memory descriptor of a float32 array; ``form`` is one of the formats above."""
    descriptor = _null('memory_desc')
    library().call('memory_desc_create_with_tag', byref(descriptor), len(shape), integers(shape), _FLOAT32, form)
    return descriptor


def create_descriptor(name: str, *arguments: Any, attribute: Optional[c_void_p] = None) -> c_void_p:
    """A primitive descriptor.

    Args:
        name: of the C function dnnl_<name>_primitive_desc_create.
        arguments: its own, after the engine.
        attribute: made by ``attribute``; None: nothing follows.
    """
    descriptor = _null('primitive_desc')
    library().call(
        name + '_primitive_desc_create',
        byref(descriptor),
        library().engine,
        *arguments,
        attribute or library().attribute,
    )
    return descriptor


def implementation(descriptor: c_void_p) -> str:
    """oneDNN's name for the code that a primitive descriptor has chosen, as 'jit:avx2' or 'ref:any'."""
    name = c_char_p()
    library().call('primitive_desc_query', descriptor, _IMPLEMENTATION, 0, byref(name))
    assert name.value is not None
    return name.value.decode()


def attribute(add: bool = False, relu: bool = False) -> c_void_p:
    """An attribute of a primitive.

    Args:
        add: whether the result is added to what the output holds.
        relu: whether ReLU follows.
    """
    created, after = _null('primitive_attr'), _null('post_ops')
    call = library().call
    call('primitive_attr_create', byref(created))
    call('primitive_attr_set_scratchpad_mode', created, 1)
    call('post_ops_create', byref(after))
    if add:
        call('post_ops_append_sum', after, c_float(1), c_int(0), c_int(0))
    if relu:
        call('post_ops_append_eltwise', after, c_int(RELU), c_float(0), c_float(0))
    call('primitive_attr_set_post_ops', created, after)
    return created


def size(form: c_void_p) -> int:
    """Bytes of an array in a layout, which is a memory descriptor."""
    return library().dnnl.dnnl_memory_desc_get_size(form)


def equal(form: c_void_p, other: c_void_p) -> bool:
    """Whether two layouts are the same."""
    return bool(library().dnnl.dnnl_memory_desc_equal(form, other))


class Calls:
    """The calls of a primitive for a block, for machine code; one thread at a time runs them.

    Args:
        kinds: the arguments that the caller places.
        scratch: slot and bytes of every scratch memory, whose places follow those of the arguments.
        numbers: how many calls; for each, the addresses of the primitive and of the stream, the number of arguments,
            the address of their list, how many of them have a place, and for each of those, the address of its memory
            object and the number of its place.
        used: the objects that the numbers name.

    Attributes:
        address: where the numbers lie.
    """

    def __init__(
        self, kinds: Sequence[int], scratch: Sequence[tuple[int, int]], numbers: packed.array, used: object
    ) -> None:
        self.kinds, self.scratch, self._numbers, self._used = kinds, scratch, numbers, used
        self.address = numbers.buffer_info()[0]


_NOWHERE: Mapping[int, int] = {}


class Primitive:
    """A primitive for blocks of one shape; any thread may call it.

    Args:
        descriptor: made by create_descriptor.
        formats: memory descriptor of every argument, as the caller has it; None: as the primitive does.
            An argument that the primitive wants in another layout is reordered on the way in or out,
            but for weights, which ``pack`` reorders once for many blocks.

    Attributes:
        is_product: whether its code is that of matrix products, which signals must not disturb.
    """

    def __init__(self, descriptor: c_void_p, formats: Mapping[int, Optional[c_void_p]]) -> None:
        self._library = library()
        self._formats: dict[int, c_void_p] = {}
        self._reorders: dict[int, Reorder] = {}
        for kind, given in formats.items():
            wanted = self._query(descriptor, kind) or given
            assert wanted is not None
            self._formats[kind] = wanted
            if given is not None and not equal(given, wanted):
                self._reorders[kind] = Reorder(wanted, given) if kind in _OUTPUTS else Reorder(given, wanted)
        self._pack = self._reorders.pop(WEIGHTS, None)
        self.sizes = {kind: size(form) for kind, form in self._formats.items()}
        scratchpad = self._query(descriptor, _SCRATCHPAD)
        self._scratchpad = size(scratchpad) if scratchpad else 0
        if scratchpad and self._scratchpad:
            self._formats[_SCRATCHPAD] = scratchpad
        self._handle = _null('primitive')
        self._library.call('primitive_create', byref(self._handle), descriptor)
        self._arguments: list[tuple[dict[int, c_void_p], Array]] = []  # that no call uses
        self._descriptor = descriptor  # the formats belong to it
        self.is_product = 'gemm' in implementation(descriptor)
        execute = self._library.execute
        self._execute: Any = functools.partial(undisturbed, execute) if self.is_product else execute

    def _query(self, descriptor: c_void_p, kind: int) -> Optional[c_void_p]:
        found = None
        if kind in _QUERIES:
            found = self._library.dnnl.dnnl_primitive_desc_query_md(descriptor, _QUERIES[kind], 0)
        return c_void_p(found) if found else None

    def format(self, kind: int) -> c_void_p:
        """The layout that the primitive wants for an argument."""
        return self._formats[kind]

    def pack(self, weights: np.ndarray) -> np.ndarray:
        """The weights as the primitive wants them, perhaps the array itself."""
        if self._pack is None:
            return weights
        packed = np.empty(self.sizes[WEIGHTS], np.uint8)
        self._pack.run({SRC: weights.ctypes.data, DST: packed.ctypes.data})
        return packed

    def __call__(self, addresses: Mapping[int, int]) -> None:
        """Runs in the calling thread, on the addresses of all arguments in the layouts that the caller gave."""
        inner, scratch = dict(addresses), taken(SCRATCHES, Scratch)
        for kind, reorder in self._reorders.items():
            inner[kind] = scratch.address(kind, self.sizes[kind])
            if kind not in _OUTPUTS:
                reorder.run({SRC: addresses[kind], DST: inner[kind]})
        self.run(inner)
        for kind, reorder in self._reorders.items():
            if kind in _OUTPUTS:
                reorder.run({SRC: inner[kind], DST: addresses[kind]})
        SCRATCHES.append(scratch)

    def run(self, addresses: Mapping[int, int]) -> None:
        """Runs in the calling thread, on the addresses of arguments in the primitive's own layouts."""
        library, scratch = self._library, taken(SCRATCHES, Scratch)
        memories, arguments = own = taken(self._arguments, self._make_arguments)
        if self._scratchpad:
            library.set_address(memories[_SCRATCHPAD], scratch.address(_SCRATCHPAD, self._scratchpad))
        for kind, address in addresses.items():
            library.set_address(memories[kind], address)
        failed = self._execute(self._handle, library.stream(), len(memories), arguments)
        self._arguments.append(own)
        SCRATCHES.append(scratch)
        if failed:
            raise RuntimeError('oneDNN: primitive_execute failed')

    def calls(self) -> Calls:
        """The numbers with which machine code makes the calls of ``__call__``, block after block."""
        kinds = tuple(self.sizes)
        places = {kind: i for i, kind in enumerate(kinds)}
        inner, before, after = dict(places), [], []
        scratch = [(kind, self.sizes[kind]) for kind in self._reorders]
        for i, (kind, reorder) in enumerate(self._reorders.items(), len(kinds)):
            inner[kind] = i
            if kind in _OUTPUTS:
                after.append((reorder, {SRC: i, DST: places[kind]}))
            else:
                before.append((reorder, {SRC: places[kind], DST: i}))
        order: list[tuple[Primitive, dict[int, int]]] = [*before, (self, inner), *after]
        for primitive, own in order:
            if primitive._scratchpad:
                own[_SCRATCHPAD] = len(kinds) + len(scratch)
        scratch.append((_SCRATCHPAD, max(primitive._scratchpad for primitive, _ in order)))
        stream = self._library.new_stream()
        numbers: list[Any] = [len(order)]
        used: list[object] = [stream]
        for primitive, own in order:
            memories, arguments = primitive._make_arguments()
            numbers += primitive._handle.value, stream.value, len(memories), ctypes.addressof(arguments), len(own)
            for kind, place in own.items():
                numbers += memories[kind].value, place
            used += primitive, memories, arguments
        return Calls(kinds, scratch, packed.array('q', numbers), used)

    def bound(self, arrays: Mapping[int, np.ndarray]) -> Callable[[], int]:
        """A function of no arguments that runs on these arrays, in the primitive's own layouts, and returns a status.

        The caller keeps the arrays; one thread at a time calls it.
        """
        addresses = {kind: array.ctypes.data for kind, array in arrays.items()}
        memory = np.empty(self._scratchpad, np.uint8)
        if self._scratchpad:
            addresses[_SCRATCHPAD] = memory.ctypes.data
        memories, arguments = self._make_arguments(addresses)
        stream = self._library.new_stream()
        execute: Any = functools.partial(self._execute, self._handle, stream, len(arguments), arguments)
        execute.keeps = self, memory, memories
        return execute

    def _make_arguments(self, addresses: Mapping[int, int] = _NOWHERE) -> tuple[dict[int, c_void_p], Array]:
        """(memory object of every argument, the array that oneDNN takes)."""
        memories: dict[int, c_void_p] = {}
        arguments = (_Argument * len(self._formats))()
        for i, (kind, form) in enumerate(self._formats.items()):
            memories[kind] = _null('memory')
            self._library.call(
                'memory_create', byref(memories[kind]), form, self._library.engine, c_void_p(addresses.get(kind))
            )
            arguments[i] = _Argument(kind, memories[kind])
        return memories, arguments


_OUTPUTS = {DST, DIFF_SRC, DIFF_WEIGHTS, DIFF_BIAS}


class Reorder(Primitive):
    """Copies an array from one layout to another."""

    def __init__(self, source: c_void_p, target: c_void_p) -> None:
        descriptor = _null('primitive_desc')
        engine = library().engine
        library().call(
            'reorder_primitive_desc_create', byref(descriptor), source, engine, target, engine, library().attribute
        )
        super().__init__(descriptor, {SRC: None, DST: None})
