"""oneDNN's C API, as far as the kernels need it: primitives on float32, each run by the thread that calls it."""

import ctypes
import functools
import importlib.metadata
import threading
from ctypes import byref, c_char, c_char_p, c_float, c_int, c_int64, c_size_t, c_uint, c_void_p

from branchynet.cpu.threads import scratch_address

import numpy as np

# Values of the enumerations in dnnl_types.h that are used.
FORWARD_TRAINING, FORWARD_INFERENCE, BACKWARD = 64, 96, 128
CONVOLUTION_DIRECT = 1
POOLING_MAX, POOLING_AVERAGE_INCLUDE_PADDING = 511, 767
_FLOAT32 = 3
RELU = 32
GIVEN_STATISTICS, SCALED, SHIFTED = 1, 2, 4
# Formats: the primitive's choice, (C,), (B, C), (B, C, H, W) in that order and with the channels last.
ANY, VECTOR, MATRIX, NCHW, NHWC = 1, 2, 3, 5, 22
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

    def __init__(self):
        # Calls that work let other threads run meanwhile. Those that only set something keep Python's lock:
        # to take it again would cost more than they do.
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

    def call(self, name, *arguments):
        status = getattr(self.dnnl, 'dnnl_' + name)(*arguments)
        if status:
            raise RuntimeError(f'oneDNN: {name} ended with status {status}')

    def stream(self):
        if not hasattr(self.local, 'stream'):
            self.local.stream = _null('stream')
            self.call('stream_create', byref(self.local.stream), self.engine, 1)
        return self.local.stream


class _Handle(c_void_p):
    """A pointer to what oneDNN makes, null before; oneDNN has it back when Python is done with it."""

    def __del__(self):
        if self:
            self.destroy(self)


@functools.cache
def _handle_type(kind):
    """The type of pointers to a dnnl_<kind>."""
    destroy = getattr(library().dnnl, f'dnnl_{kind}_destroy')
    destroy.argtypes = (c_void_p,)
    return type(kind, (_Handle,), {'destroy': destroy})


def _null(kind):
    """A pointer to be set."""
    return _handle_type(kind)()


def _find():
    for file in importlib.metadata.files('onednn-cpu-gomp') or ():
        if file.name == 'libdnnl.so.3':
            return str(file.locate())
    raise OSError('onednn-cpu-gomp has no libdnnl.so.3')


@functools.cache
def library():
    """The library.

    Raises:
        OSError, ImportError: it is not installed, or does not load.
    """
    with _loading:  # threads that come at once share one engine: primitives of another's streams do not run
        return _load()


_loading = threading.Lock()


@functools.cache
def _load():
    return _Library()


def version():
    """Its version and the instructions that its kernels use, as 'AVX2'; None where it does not load."""
    try:
        dnnl = library().dnnl
    except (OSError, ImportError):
        return None
    dnnl.dnnl_version.restype = ctypes.POINTER(c_int * 3)
    isa = dnnl.dnnl_get_effective_cpu_isa()
    return {'version': '.'.join(map(str, dnnl.dnnl_version().contents)), 'isa': _ISAS.get(isa, hex(isa))}


_ISAS = {0x1: 'SSE41', 0x3: 'AVX', 0x7: 'AVX2', 0x27: 'AVX512_CORE', 0x67: 'AVX512_CORE_VNNI', 0xE7: 'AVX512_CORE_BF16'}


class single_threaded:
    """Makes OpenMP use one thread for what this thread calls, and puts back what was."""

    def __enter__(self):
        gomp = library().gomp
        self.before = gomp.omp_get_max_threads()
        gomp.omp_set_num_threads(1)

    def __exit__(self, *error):
        library().gomp.omp_set_num_threads(self.before)


def integers(values):
    """A dnnl_dims_t."""
    return (c_int64 * _MAX_DIMS)(*values)


def describe(shape, form):
    """A memory descriptor of a float32 array."""
    descriptor = _null('memory_desc')
    library().call('memory_desc_create_with_tag', byref(descriptor), len(shape), integers(shape), _FLOAT32, form)
    return descriptor


def create_descriptor(name, *arguments, attribute=None):
    """A primitive descriptor, by the C function that makes it."""
    descriptor = _null('primitive_desc')
    library().call(
        name + '_primitive_desc_create',
        byref(descriptor),
        library().engine,
        *arguments,
        attribute or library().attribute,
    )
    return descriptor


def implementation(descriptor):
    """oneDNN's name for the code that a primitive descriptor has chosen, as 'jit:avx2' or 'ref:any'."""
    name = c_char_p()
    library().call('primitive_desc_query', descriptor, _IMPLEMENTATION, 0, byref(name))
    return name.value.decode()


def attribute(add=False, relu=False):
    """An attribute: the result is added to what the output holds, and ReLU follows."""
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


def size(form):
    """Bytes of an array in a layout."""
    return library().dnnl.dnnl_memory_desc_get_size(form)


def equal(form, other):
    """Whether two layouts are the same."""
    return bool(library().dnnl.dnnl_memory_desc_equal(form, other))


real, flags = c_float, c_uint


class Primitive:
    """A primitive for blocks of one shape; any thread may call it.

    Args:
        descriptor: what create_descriptor returned.
        formats: memory descriptor of every argument, as the caller has it; None: as the primitive does.
            An argument that the primitive wants in another layout is reordered on the way in or out,
            but for weights, which ``pack`` reorders once for many blocks.
    """

    def __init__(self, descriptor, formats):
        self._library = library()
        self._formats = {}
        self._reorders = {}
        for kind, given in formats.items():
            wanted = self._query(descriptor, kind) or given
            self._formats[kind] = wanted
            if given is not None and not equal(given, wanted):
                self._reorders[kind] = Reorder(wanted, given) if kind in _OUTPUTS else Reorder(given, wanted)
        self._pack = self._reorders.pop(WEIGHTS, None)
        self.sizes = {kind: size(form) for kind, form in self._formats.items()}
        scratchpad = self._query(descriptor, _SCRATCHPAD)
        self._scratchpad = size(scratchpad) if scratchpad else 0
        if self._scratchpad:
            self._formats[_SCRATCHPAD] = scratchpad
        self._handle = _null('primitive')
        self._library.call('primitive_create', byref(self._handle), descriptor)
        self._local = threading.local()
        self._descriptor = descriptor  # the formats belong to it

    def _query(self, descriptor, kind):
        found = None
        if kind in _QUERIES:
            found = self._library.dnnl.dnnl_primitive_desc_query_md(descriptor, _QUERIES[kind], 0)
        return c_void_p(found) if found else None

    def format(self, kind):
        """The layout that the primitive wants for an argument."""
        return self._formats[kind]

    def pack(self, weights):
        """The weights as the primitive wants them, perhaps the array itself."""
        if self._pack is None:
            return weights
        packed = np.empty(self.sizes[WEIGHTS], np.uint8)
        self._pack.run({SRC: weights.ctypes.data, DST: packed.ctypes.data})
        return packed

    def __call__(self, addresses):
        """Runs on the addresses of all arguments, in the calling thread."""
        inner = dict(addresses)
        for kind, reorder in self._reorders.items():
            inner[kind] = scratch_address(kind, self.sizes[kind])
            if kind not in _OUTPUTS:
                reorder.run({SRC: addresses[kind], DST: inner[kind]})
        self.run(inner)
        for kind, reorder in self._reorders.items():
            if kind in _OUTPUTS:
                reorder.run({SRC: inner[kind], DST: addresses[kind]})

    def run(self, addresses):
        """Runs on addresses of arguments in the primitive's own layouts."""
        local, library = self._local, self._library
        if not hasattr(local, 'arguments'):
            local.memories, local.arguments = self._make_arguments({})
        memories, set_address = local.memories, library.set_address
        if self._scratchpad:
            set_address(memories[_SCRATCHPAD], scratch_address(_SCRATCHPAD, self._scratchpad))
        for kind, address in addresses.items():
            set_address(memories[kind], address)
        if library.execute(self._handle, library.stream(), len(memories), local.arguments):
            raise RuntimeError('oneDNN: primitive_execute failed')

    def bound(self, arrays):
        """A function of no arguments that runs on these arrays, in the primitive's own layouts, and returns a status.

        The caller keeps the arrays; one thread at a time calls it.
        """
        addresses = {kind: array.ctypes.data for kind, array in arrays.items()}
        memory = np.empty(self._scratchpad, np.uint8)
        if self._scratchpad:
            addresses[_SCRATCHPAD] = memory.ctypes.data
        memories, arguments = self._make_arguments(addresses)
        stream = _null('stream')
        self._library.call('stream_create', byref(stream), self._library.engine, 1)
        execute = functools.partial(self._library.execute, self._handle, stream, len(arguments), arguments)
        execute.keeps = self, memory, memories
        return execute

    def _make_arguments(self, addresses):
        """(memory object of every argument, the array that oneDNN takes)."""
        memories = {}
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

    def __init__(self, source, target):
        descriptor = _null('primitive_desc')
        engine = library().engine
        library().call(
            'reorder_primitive_desc_create', byref(descriptor), source, engine, target, engine, library().attribute
        )
        super().__init__(descriptor, {SRC: None, DST: None})


def _row_length(a):
    """Elements from row to row; NumPy has any stride, even 0, where there is one row."""
    return a.strides[0] // 4 if len(a) > 1 else a.shape[1]


def matmul(a, b, out, transpose_a=False, transpose_b=False):
    """out (M, N) = a (M, K) b (K, N); matrices whose rows are contiguous, in this thread."""
    m, n = out.shape
    k = a.shape[0] if transpose_a else a.shape[1]
    status = library().sgemm(
        b'T' if transpose_a else b'N',
        b'T' if transpose_b else b'N',
        m,
        n,
        k,
        1,
        a.ctypes.data,
        _row_length(a),
        b.ctypes.data,
        _row_length(b),
        0,
        out.ctypes.data,
        _row_length(out),
    )
    if status:
        raise RuntimeError(f'oneDNN: sgemm ended with status {status}')
