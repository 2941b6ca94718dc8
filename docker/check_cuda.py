"""Checks, with or without a GPU, that CUDA's libraries load from the locked wheels and that a kernel compiles."""

import branchynet  # noqa: F401  before CuPy: it loads CUDA's libraries
from branchynet import devices

import cupy
from chainer.backends import cuda
from cupy.cuda import compiler
from cupy_backends.cuda.libs import cudnn, nvrtc

KERNEL = '#include <cuda_fp16.h>\nextern "C" __global__ void halve(__half* x) { *x = __hmul(*x, __half(.5f)); }'

version = cudnn.getVersion()
if not 8900 <= version < 9000 or not cuda.cudnn_enabled:
    raise SystemExit(f'cuDNN is {version}, taken by Chainer: {cuda.cudnn_enabled}; expected 8.9, True')
with open('/proc/self/maps') as f:
    (path,) = {line.split()[-1] for line in f if line.rstrip().endswith('/libcudnn.so.8')}
print(f'CuPy {cupy.__version__}, cuDNN {version} from {path}')

# NVRTC is called directly, because CuPy asks a GPU for the architecture to compile for.
program = nvrtc.createProgram(KERNEL, 'halve.cu', (), ())
nvrtc.compileProgram(program, ('-arch=sm_90', *compiler._get_extra_include_dir_opts()))
major, minor = nvrtc.getVersion()
print(f"NVRTC {major}.{minor}, a kernel for sm_90 compiled with CUDA's headers: {len(nvrtc.getCUBIN(program))} bytes")
print(f'GPUs that the driver has: {devices.count_gpus()}')
