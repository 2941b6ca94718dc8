"""A BranchyNet as ONNX, which exits early in any ONNX Runtime.

Two forms, described in docs/onnx.md: one file for one sample, where everything beyond an exit lies inside an `If`
and does not run for a sample that leaves; and a folder with a file for every stage, for batches whose remaining
samples are gathered between the stages (OnnxBranchyNet does so).
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Optional

from branchynet.batching import check_shape, check_within, checked_labels
from branchynet.chains.reading import Stage
from branchynet.exits import below, check_answer, per_exit, rounded
from branchynet.files import write_atomically
from branchynet.inference import Classification, fold_temperatures, obstacle_of_parameters, tally
from branchynet.links.links import Net, calls_one_of
from branchynet.net import BranchyNet, check_net
from branchynet.provenance import commit, sha256_of_net

import chainer
import chainer.functions as F
import numpy as np

if TYPE_CHECKING:
    from branchynet.onnx_graph import Graph, Value

    from onnx import GraphProto, ModelProto

NETWORK_JSON = 'network.json'  # of a folder of stages
OLDEST_OPSET = 18  # the first whose reductions take their axes as an input
_RULE = (
    'A sample leaves at the first exit whose entropy (float32, nats, of its softmax) is strictly below the '
    "exit's threshold (float32); at the last exit all leave."
)
_OUTPUTS = 'label', 'prob', 'exit', 'entropy'


def export(
    net: BranchyNet,
    path: str | os.PathLike[str],
    shape: Sequence[int],
    thresholds: Any = None,
    properties: Optional[Mapping[str, str]] = None,
    opset: Optional[int] = None,
) -> None:
    """Writes a BranchyNet as ONNX, with the weights that it has now.

    What was written is run in ONNX Runtime and compared with the net, on random samples, before any file appears.

    Args:
        net: on the CPU, of float32 parameters; nothing in it changes.
        path: ends with ``.onnx``: one file for one sample. Otherwise a folder, made where it is missing: a file for
            every stage, and a network.json that describes them.
        shape: of a sample, without the batch.
        thresholds: the default entropies (nats) below which a sample leaves: a number, or a sequence of one for
            every exit but the last. None: the net's ``thresholdExits``.
        properties: more metadata for the files, by name.
        opset: version of ONNX's operators, for an older ONNX Runtime; None: the newest that the installed onnx and
            onnxruntime both take.

    Raises:
        ImportError: onnx or onnxruntime is not installed.
        OSError: the files cannot be written.
        TypeError, ValueError: the thresholds, the shape or the properties do not fit, or the net cannot be exported.

    Example:
        >>> import os, tempfile
        >>> from branchynet.export import OnnxBranchyNet, export
        >>> from branchynet.networks import lenet_mnist
        >>> net = lenet_mnist.get_network()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, 'lenet.onnx')
        ...     export(net, path, shape=(1, 28, 28), thresholds=[math.inf])
        ...     runner = OnnxBranchyNet(path)
        >>> runner.classify(np.zeros((1, 1, 28, 28), np.float32)).exit.tolist()
        [0]
    """
    _require('onnx', 'onnxruntime')
    check_net(net)
    check_shape(shape)
    thresholds = _default_thresholds(net, thresholds)
    obstacle = obstacle_of_parameters(net)
    if obstacle is not None:
        raise ValueError(f'net cannot be exported: {obstacle}')
    metadata = _properties(net, thresholds, properties or {})
    path, net = os.fspath(path), _without_temperatures(net)
    x = _samples(_TRACED, shape)
    if path.endswith('.onnx'):
        (model,) = _models([_cascade(net, x, thresholds)], metadata, opset)
        content = model.SerializeToString()
        _compare(_Cascade(content, 1), net, x)
        write_atomically(path, content)
        return
    models = _models(_stages(net, x), metadata, opset)
    contents = [model.SerializeToString() for model in models]
    description = _network_json(metadata, models, contents)
    _compare(_Stages(description, contents, 1), net, x)
    os.makedirs(path, exist_ok=True)
    for stage, content in zip(description['stages'], contents):
        write_atomically(os.path.join(path, stage['file']), content)
    write_atomically(os.path.join(path, NETWORK_JSON), json.dumps(description, indent=1).encode())


class OnnxBranchyNet:
    """A BranchyNet that ``export`` wrote, run by ONNX Runtime on the CPU.

    A folder is run in batches: after every stage only the samples that stay go on to the next. The single file runs
    sample by sample. ``classify``, ``test`` and ``numexits`` are those of inference.Compiled.

    Args:
        path: a file or folder that ``export`` wrote.
        threads: of ONNX Runtime within an operator.

    Attributes:
        thresholdExits: the thresholds of ``test``, one for every exit but the last; at first the exported ones.
        properties: the metadata of the export: its network, version, commit, weights_sha256 and others.

    Raises:
        ImportError: onnxruntime is not installed.
        OSError: a file is missing or cannot be read.
        ValueError: ``export`` did not write the files, or they are damaged.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int = 1) -> None:
        _require('onnxruntime')
        if threads < 1:
            raise ValueError(f'threads is {threads}: expected 1 or more')
        self._runner = _open(os.fspath(path), threads)
        self.properties = self._runner.properties
        self.thresholdExits = self._runner.thresholds

    def numexits(self) -> int:
        """Number of exits, the final one counted."""
        return self._runner.exits

    def classify(self, x: Any, thresholds: Any = None) -> Classification:
        """Early-exit classification, for any batch size.

        Args:
            x: float32 (B, ...), a NumPy array or Variable.
            thresholds: entropy (nats) below which a sample leaves: a number, or a sequence of one for every exit but
                the last; None: ``thresholdExits``.

        Returns:
            A Classification.

        Raises:
            TypeError, ValueError: x or the thresholds do not fit, or an exit's answer is NaN.
        """
        result = self._classified(x, thresholds)
        check_answer(result.exit, result.entropy)
        return result

    def _classified(self, x: Any, thresholds: Any) -> Classification:
        """`classify`; the label is -1, which is none, where an answer is NaN."""
        x = self._checked(x)
        thresholds = per_exit(
            'thresholds', self.thresholdExits if thresholds is None else thresholds, self.numexits() - 1
        )
        parts = [self._runner.run(x[i : i + _CHUNK], thresholds) for i in range(0, len(x), _CHUNK)]
        label, exit, entropy, prob = map(np.concatenate, zip(*parts))
        return Classification(np.where(np.isnan(entropy), -1, label), exit, entropy, prob)

    def test(self, x: Any, t: Any = None) -> tuple[float, list[float], list[int], float]:
        """BranchyNet.test by ``thresholdExits``; the seconds are those of the whole classification.

        Args:
            x: float32 (B, ...), a NumPy array or Variable.
            t: labels (B,), signed integers; None: accuracies are NaN.

        Returns:
            (accuracy, accuracy per exit, samples per exit, seconds): accuracies are 0 at an exit where none left,
            and NaN without labels.

        Raises:
            TypeError, ValueError: x, t or the thresholds do not fit.
        """
        start = time.perf_counter()
        result = self._classified(x, None)
        seconds = time.perf_counter() - start
        if t is not None:
            t = checked_labels(t, result.prob)
            check_within(t, result.prob.shape[1])
        return (*tally(result.label, result.exit, t, self.numexits()), seconds)

    def _checked(self, x: Any) -> np.ndarray:
        """x as an array, if BranchyNet.test takes it too."""
        x = chainer.as_array(x)
        if not isinstance(x, np.ndarray) or x.dtype != np.float32:
            raise TypeError(f'x is {getattr(x, "dtype", type(x).__name__)}: expected a NumPy array of float32')
        if x.shape[1:] != self._runner.shape or x.ndim == 0:
            raise ValueError(f'x has shape {x.shape}: expected samples of shape {self._runner.shape}')
        if len(x) == 0:
            raise ValueError(f'x has shape {x.shape}: expected at least one sample')
        finite = np.isfinite(x).reshape(len(x), -1).all(axis=1)
        if not finite.all():
            raise ValueError(f'x holds NaN or infinity, first in sample {finite.argmin()}: expected numbers')
        return x


_CHUNK = 256  # samples that are in memory together
_TRACED = 13  # samples of the recorded call: a size that a network's other axes seldom have


# Running


class _Cascade:
    """The single file, sample by sample."""

    def __init__(self, content: bytes, threads: int) -> None:
        self._session = _session(content, threads)
        self.properties = self._session.get_modelmeta().custom_metadata_map
        if 'exits' not in self.properties:
            raise ValueError('it lacks the metadata of an export')
        self.exits = int(self.properties['exits'])
        self.thresholds = json.loads(self.properties['thresholds'])
        self.shape = tuple(self._session.get_inputs()[0].shape[1:])

    def run(self, x: np.ndarray, thresholds: Sequence[float]) -> tuple[np.ndarray, ...]:
        """(label, exit, entropy, prob) of x (B, ...)."""
        feed = {'thresholds': rounded(thresholds, np.float32)} if thresholds else {}
        names = ['label', 'exit', 'entropy', 'prob']
        try:
            parts = [self._session.run(names, {'x': x[i : i + 1], **feed}) for i in range(len(x))]
        except Exception as e:  # ONNX Runtime's errors have no class in common
            raise ValueError(f'ONNX Runtime gives no answer, as where numbers overflow: {_first_line(e)}') from e
        return tuple(map(np.concatenate, zip(*parts)))


class _Stages:
    """A file for every stage."""

    def __init__(self, description: dict, content: Sequence[bytes], threads: int) -> None:
        self._sessions = [_session(part, threads) for part in content]
        self.properties = description['properties']
        self.thresholds = json.loads(self.properties['thresholds'])
        self.exits = len(content)
        self.shape = tuple(description['stages'][0]['x_shape'])

    def run(self, x: np.ndarray, thresholds: Sequence[float]) -> tuple[np.ndarray, ...]:
        """(label, exit, entropy, prob) of x (B, ...)."""
        result: tuple[np.ndarray, ...] = ()
        rows = np.arange(len(x))  # the samples that have not left
        for k, session in enumerate(self._sessions):
            label, entropy, prob, *features = session.run(
                ['label', 'entropy', 'prob', *['features'] * (k < len(thresholds))], {'x': x}
            )
            if not result:
                result = label, np.zeros(len(x), np.int64), entropy, prob
            else:
                for array, value in zip(result, (label, k, entropy, prob)):
                    array[rows] = value
            if k < len(thresholds):
                stays = ~below(entropy, thresholds[k])
                if not stays.any():
                    break
                rows, x = rows[stays], features[0][stays]
        return result


def _open(path: str, threads: int) -> Any:
    """A _Cascade or _Stages of what ``export`` wrote."""
    if os.path.isdir(path):
        path = os.path.join(path, NETWORK_JSON)
    with open(path, 'rb') as f:
        content = f.read()
    try:
        if not path.endswith('.json'):
            return _Cascade(content, threads)
        description = json.loads(content)
        return _Stages(description, list(_parts(os.path.dirname(path), description)), threads)
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError) as e:
        raise ValueError(f'{path} is not a whole export of a BranchyNet ({e}): export it again') from e


def _parts(folder: str, description: dict) -> Iterator[bytes]:
    """The files that a description lists, each as it was when it was written."""
    for stage in description['stages']:
        with open(os.path.join(folder, os.path.basename(stage['file'])), 'rb') as f:
            content = f.read()
        if hashlib.sha256(content).hexdigest() != stage['sha256']:
            raise ValueError(f'{stage["file"]} is another file than the one described')
        yield content


def _session(content: bytes, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors, which are raised too
    try:
        return onnxruntime.InferenceSession(content, options, providers=['CPUExecutionProvider'])
    except Exception as e:  # ONNX Runtime's errors have no class in common
        raise ValueError(f'ONNX Runtime does not take it: {_first_line(e)}') from e


# Exporting


def _require(*modules: str) -> None:
    import importlib

    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as e:
            raise ImportError(f'{name} cannot be imported ({e}): pip install "branchynet[onnx]"') from e


def _default_thresholds(net: BranchyNet, thresholds: Any) -> list[float]:
    thresholds = net.thresholdExits if thresholds is None else thresholds
    if thresholds is None:
        raise ValueError('thresholds are missing: expected an entropy (nats) for every exit but the last')
    return per_exit('thresholds', thresholds, net.numexits() - 1)


def _without_temperatures(net: BranchyNet) -> BranchyNet:
    """A copy of the net whose exits' last links divide by the temperatures; the net itself if it has none."""
    if net.temperatures is None:
        return net
    net = copy.deepcopy(net)
    fold_temperatures(net)
    return net


def _samples(count: int, shape: Sequence[int]) -> np.ndarray:
    return np.random.RandomState(0).standard_normal((count, *shape)).astype(np.float32)


def _properties(net: BranchyNet, thresholds: list[float], more: Mapping[str, str]) -> dict[str, str]:
    """The metadata of the files."""
    from importlib import metadata

    own = {
        'version': metadata.version('branchynet'),
        'commit': commit() or '',
        'weights_sha256': sha256_of_net(net),
        'exits': str(net.numexits()),
        'thresholds': json.dumps(thresholds),
        'rule': _RULE,
    }
    for name, value in more.items():
        if name in own:
            raise ValueError(f'properties holds {name}, which export writes itself: give it another name')
        if not isinstance(value, str):
            raise TypeError(f'the property {name} is {value!r}: expected a str')
    return {**own, **more}


def _weight_names(net: BranchyNet) -> dict[int, str]:
    """The paths of weights, by the id of the array.

    The serializer makes arrays of numbers, and of parameters without a shape. They are left out: they end with it, and
    another array may then have their id.
    """
    serializer = chainer.serializers.DictionarySerializer()
    serializer.save(net)
    held = {id(param.array) for param in net.params()}
    held |= {id(value) for link in net.links() for value in vars(link).values()}
    return {id(array): path for path, array in serializer.target.items() if id(array) in held}


def _cascade(net: BranchyNet, x: np.ndarray, thresholds: list[float]) -> GraphProto:
    """The graph for one sample."""
    from branchynet.onnx_graph import Graph, Value

    from onnx import TensorProto, helper, numpy_helper

    graph = Graph(_weight_names(net))
    inputs = [helper.make_tensor_value_info('x', TensorProto.FLOAT, [1, *x.shape[1:]])]
    if thresholds:
        inputs.append(helper.make_tensor_value_info('thresholds', TensorProto.FLOAT, [len(thresholds)]))
        graph.initializers.append(numpy_helper.from_array(rounded(thresholds, np.float32), 'thresholds'))
    classes = _add_from(graph, net, 0, Value('x', x), net.one_pass())
    return helper.make_graph(graph.nodes, 'BranchyNet', inputs, _outputs('', classes), graph.initializers)


def _add_from(
    graph: Graph, net: BranchyNet, k: int, x: Value, stage: Stage, index: Optional[str] = None, suffix: str = ''
) -> int:
    """Adds all that runs from stage k on for a sample that has not left before; returns the number of classes.

    Args:
        graph: the graph, or the branch of an If, to add to.
        net: the network.
        k: the stage, from 0.
        x: the stage's input.
        stage: the net's one_pass(), of which stage k is the next.
        index: holds k (1,); None: a constant does.
        suffix: of the names of the outputs.
    """
    from onnx import helper

    last = net.numexits() - 1
    features, logits = _add_stage(graph, net, k, x, stage)
    classes = logits.array.shape[1]
    prob, entropy = _add_softmax(graph, logits)
    if k == last:
        _add_leaving(graph, prob, entropy, suffix)
        graph.new_node('Identity', index or graph.integers(k), output='exit' + suffix)
        return classes
    threshold = 'thresholds' if last == 1 else graph.node('Gather', 'thresholds', index or graph.integers(k))
    leaves, stays = graph.subgraph(), graph.subgraph()
    _add_leaving(leaves, prob, entropy, f'_at_{k}')
    leaves.new_node('Constant', value_ints=[k], output=f'exit_at_{k}')
    _add_from(stays, net, k + 1, features, stage, _add_next(stays, k, last, entropy, threshold), f'_after_{k}')
    branches = {
        name: helper.make_graph(branch.nodes, title, [], _outputs(ending, classes), branch.initializers)
        for name, branch, title, ending in [
            ('then_branch', leaves, f'leave at exit {k}', f'_at_{k}'),
            ('else_branch', stays, f'go on after exit {k}', f'_after_{k}'),
        ]
    }
    graph.nodes.append(
        helper.make_node(
            'If',
            [graph.node('Less', entropy, threshold)],
            [name + suffix for name in _OUTPUTS],
            f'exit_{k}',
            **branches,
        )
    )
    return classes


def _add_next(graph: Graph, k: int, last: int, entropy: str, threshold: str) -> str:
    """Adds the number of the exit after exit k, (1,).

    A NaN entropy is below no threshold, so that the sample would stay. Then the number is read from outside the list,
    and ONNX Runtime ends the call with an error that carries the name of this node.
    """
    place = graph.node(
        'Where', graph.node('GreaterOrEqual', entropy, threshold), graph.integers(k + 1), graph.integers(last + 1)
    )
    return graph.new_node('Gather', graph.integers(*range(last + 1)), place, output=f'NaN_in_x_or_thresholds_{k}')


def _add_leaving(graph: Graph, prob: str, entropy: str, suffix: str) -> None:
    """Adds the outputs of a sample that leaves, but for the exit."""
    graph.new_node('ArgMax', prob, axis=1, keepdims=0, output='label' + suffix)
    graph.new_node('Identity', prob, output='prob' + suffix)
    graph.new_node('Identity', entropy, output='entropy' + suffix)


def _outputs(suffix: str, classes: int) -> list:
    """The types of the outputs that _add_leaving adds."""
    from onnx import TensorProto, helper

    types = {
        'label': (TensorProto.INT64, [1]),
        'prob': (TensorProto.FLOAT, [1, classes]),
        'exit': (TensorProto.INT64, [1]),
        'entropy': (TensorProto.FLOAT, [1]),
    }
    return [helper.make_tensor_value_info(name + suffix, *types[name]) for name in _OUTPUTS]


def _stages(net: BranchyNet, x: np.ndarray) -> list[GraphProto]:
    """The graphs of every stage and its exit, for any batch."""
    graphs, stage = [], net.one_pass()
    for k in range(net.numexits()):
        graph, features = _stage(net, k, x, stage)
        graphs.append(graph)
        x = features
    return graphs


def _stage(net: BranchyNet, k: int, x: np.ndarray, stage: Stage) -> tuple[GraphProto, np.ndarray]:
    """(graph, features) of stage k for x, the next stage of a pass."""
    from branchynet.onnx_graph import Graph, Value

    from onnx import TensorProto, helper

    graph = Graph(_weight_names(net))
    features, logits = _add_stage(graph, net, k, Value('x', x), stage)
    _add_leaving(graph, *_add_softmax(graph, logits), '')
    types = {
        'label': (TensorProto.INT64, ()),
        'prob': (TensorProto.FLOAT, logits.array.shape[1:]),
        'entropy': (TensorProto.FLOAT, ()),
    }
    if k < net.numexits() - 1:
        graph.new_node('Identity', graph.named(features), output='features')
        types['features'] = TensorProto.FLOAT, features.array.shape[1:]
    inputs = [helper.make_tensor_value_info('x', TensorProto.FLOAT, ['batch', *x.shape[1:]])]
    outputs = [helper.make_tensor_value_info(name, dtype, ['batch', *shape]) for name, (dtype, shape) in types.items()]
    return helper.make_graph(graph.nodes, f'stage {k}', inputs, outputs, graph.initializers), features.array


def _add_stage(graph: Graph, net: BranchyNet, k: int, x: Value, stage: Stage) -> tuple[Value, Value]:
    """Adds stage k of the trunk, the next of a pass, and exit k; returns (features, logits)."""
    from branchynet.onnx_nodes import add_link

    model = net.models[k]
    if isinstance(net.main, Net):
        features = _add_links(graph, model, range(model.starti, model.endi), x, f'stage {k}')
    else:
        features = add_link(graph, functools.partial(stage, k), x, f"stage {k} of the chain's forward")
    logits = _add_links(graph, model, range(model.endi, len(model)), features, f'exit {k}')
    if logits.array.ndim != 2:
        raise ValueError(f'exit {k} gives arrays of shape {logits.array.shape[1:]} per sample: expected (classes,)')
    return features, logits


def _add_softmax(graph: Graph, logits: Value) -> tuple[str, str]:
    """Adds exits.py's formula: (softmax (B, C), entropy (B,))."""
    prob = graph.node('Softmax', graph.named(logits), axis=1)
    # 0 log 0 = 0: the smallest normal number in place of 0 has a logarithm.
    log = graph.node('Log', graph.node('Max', prob, graph.constant(np.finfo(np.float32).tiny)))
    total = graph.node('ReduceSum', graph.node('Mul', prob, log), graph.integers(1), keepdims=0)
    return prob, graph.node('Neg', total)


def _add_links(graph: Graph, model: Any, indices: Sequence[int], x: Value, place: str) -> Value:
    from branchynet.onnx_nodes import add_link, describe

    for i in _in_order(model, list(indices)):
        x = add_link(
            graph, functools.partial(model, starti=i, endi=i + 1), x, f'{place}: link {i} ({describe(model[i])})'
        )
    return x


def _in_order(model: Any, indices: list[int]) -> list[int]:
    """The links' indices, a ReLU ahead of the max pooling before it.

    The two commute, and ONNX Runtime computes a ReLU within the convolution that it follows.
    """
    for place, (i, j) in enumerate(zip(indices, indices[1:])):
        if calls_one_of(model[i], [F.max_pooling_2d]) and calls_one_of(model[j], [F.relu]):
            indices[place : place + 2] = j, i  # the next turn finds the pooling at its new place
    return indices


def _models(graphs: list[GraphProto], properties: dict[str, str], opset: Optional[int]) -> list[ModelProto]:
    """Checked models of the newest opset that onnx and ONNX Runtime both take, or of the given one."""
    from onnx import checker, defs, shape_inference

    newest = defs.onnx_opset_version()
    if opset is not None and not OLDEST_OPSET <= opset <= newest:
        raise ValueError(f'opset is {opset}: expected {OLDEST_OPSET} to {newest}')
    error: Optional[Exception] = None
    for version in range(newest, OLDEST_OPSET - 1, -1) if opset is None else [opset]:
        models = [_model(graph, properties, version) for graph in graphs]
        try:
            for model in models:
                checker.check_model(model, full_check=True)
                _session(model.SerializeToString(), 1)
            return models
        except (checker.ValidationError, shape_inference.InferenceError, ValueError) as e:
            error = error or e
    raise ValueError(f'the net cannot be exported: {_first_line(error)}')


def _model(graph: GraphProto, properties: dict[str, str], opset: int) -> ModelProto:
    from onnx import helper

    opsets = [helper.make_opsetid('', opset)]
    model = helper.make_model(
        graph,
        opset_imports=opsets,
        ir_version=helper.find_min_ir_version_for(opsets),
        producer_name='branchynet',
        producer_version=properties['version'],
    )
    helper.set_model_props(model, properties)
    return model


def _network_json(properties: dict[str, str], models: list[ModelProto], contents: list[bytes]) -> dict:
    """The content of network.json."""
    stages = []
    for k, (model, content) in enumerate(zip(models, contents)):
        shapes = {
            f'{value.name}_shape': [dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]]
            for value in [*model.graph.input, *model.graph.output]
        }
        stages.append({'file': f'stage{k}.onnx', 'sha256': hashlib.sha256(content).hexdigest(), **shapes})
    return {'properties': properties, 'stages': stages}


def _compare(runner: Any, net: BranchyNet, x: np.ndarray) -> None:
    """Raises ValueError unless the export gives what the net gives for x (B, ...), at every exit.

    A link that looks at the size of the batch, or at numbers in it, is recorded as it ran once. Most are noticed here,
    where batches are of other sizes and numbers.
    """
    last = net.numexits() - 1
    for batch in (x[:1], x, x / 10, x / 100):
        for k, prob in enumerate(net.get_SM(batch)):
            if not np.isfinite(prob).all():
                raise ValueError(f'exit {k} of the net gives NaN or infinity for random samples: check its weights')
            _, exits, _, found = runner.run(batch, [-1.0] * k + [math.inf] * (last - k))
            if (exits != k).any() or not np.allclose(found, prob, rtol=0, atol=_CLOSE):
                raise ValueError(
                    f'exit {k} differs from the net by {abs(found - prob).max():.2g} in ONNX Runtime for '
                    f'a batch of {len(batch)}: a link computes something else for other batches'
                )


_CLOSE = 1e-3  # of probabilities: convolutions add up in another order


def _first_line(error: Any) -> str:
    return str(error).strip().split('\n')[0]
