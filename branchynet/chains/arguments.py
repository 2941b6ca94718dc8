"""The arguments of BranchyNet.from_chain, which describes them."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from branchynet.links.links import FL, Branch

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
from chainer.functions.activation.softmax import Softmax


class Arguments(NamedTuple):
    """The arguments, checked.

    Attributes:
        branches: the Branch of each exit, by the path of its layer.
        logits: path of the layer that gives the last exit's logits, or None.
        last: links that run on the chain's output, and the weight of the last exit.
        network: the list for an ordinary BranchyNet. None: the chain, or where its exits stand, needs a ChainNet.
    """

    branches: dict[str, Branch]
    logits: str | None
    last: Branch
    network: list[chainer.Link] | None


def parse(chain: chainer.Link, exits: Mapping[str, Any], final: Any) -> Arguments:
    """Checks the arguments of BranchyNet.from_chain; Raises as there."""
    if not isinstance(chain, chainer.Link):
        raise TypeError(f'chain is a {type(chain).__name__}: expected a chainer.Chain or another link')
    _check_call(chain)
    if not isinstance(exits, Mapping) or not exits:
        raise TypeError(f'exits are {exits!r}: expected a dict of links by the path of a layer, at least one')
    branches: dict[str, Branch] = {}
    for name, links in exits.items():
        path = _path(chain, name)
        if path in branches:
            raise ValueError(f'the layer {path} has two exits: expected one')
        branches[path] = _branch(f'the exit at {path}', links)
    logits = _path(chain, final) if isinstance(final, str) else None
    last = Branch([]) if final is None or logits else _branch('final', final)
    _check_own_links(chain, {**{f'the exit at {path}': branch for path, branch in branches.items()}, 'final': last})
    network = _as_list(chain, branches, logits, last) if type(chain) is chainer.Sequential else None
    return Arguments(branches, logits, last, network)


def _check_call(chain: chainer.Link) -> None:
    """Raises TypeError if a chain surely does not take one array."""
    if type(chain) is L.Classifier:
        raise TypeError('chain is a Classifier, which returns a loss: give its network, chain.predictor')
    own = type(chain).__call__ is not chainer.Link.__call__
    called: Any = chain if own else getattr(chain, 'forward', None)
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(None)
    except TypeError:
        name = f'{type(chain).__name__}.{"__call__" if own else "forward"}'
        raise TypeError(f'{name}{signature} does not take one array: expected x (B, ...) alone, and logits') from None


def _path(chain: chainer.Link, name: Any) -> str:
    """The path of a layer, as of namedlinks."""
    paths = [path for path, _ in chain.namedlinks(skipself=True)]
    path = '/' + str(name).strip('/')
    if path not in paths:
        if not paths:
            raise ValueError(f'the chain is a {type(chain).__name__} without layers: no exit can stand in it')
        near = difflib.get_close_matches(path, paths, 3, 0.4) or paths[:3]
        raise ValueError(
            f'the chain has no layer {name!r}: expected a path of chain.namedlinks(), such as {", ".join(near)}'
        )
    return path


def _branch(name: str, links: Any) -> Branch:
    """The Branch that a user gives as links and functions, or one of them."""
    if isinstance(links, Branch):
        return links
    return Branch(list(_links(name, links)))


def _links(name: str, links: Any) -> Iterator[chainer.Link]:
    if isinstance(links, (list, tuple)) or type(links) is chainer.Sequential:
        for link in links:
            yield from _links(name, link)
    elif isinstance(links, chainer.Link):
        yield links
    elif callable(links):
        yield FL(links)
    else:
        raise TypeError(f'{name} has {links!r}: expected links and functions')


def _check_own_links(chain: chainer.Link, branches: Mapping[str, Branch]) -> None:
    """Raises ValueError if a link belongs to two branches, or to the chain too."""
    owners = {id(link): 'the chain' for link in chain.links()}
    for name, branch in branches.items():
        for link in branch.links(skipself=True):
            owner = owners.setdefault(id(link), name)
            if owner != name:
                raise ValueError(f'{owner} and {name} share a {type(link).__name__}: expected links of its own')


def _as_list(
    chain: chainer.Sequential, branches: Mapping[str, Branch], logits: str | None, last: Branch
) -> list[chainer.Link] | None:
    """The list for an ordinary BranchyNet; None where an exit or the logits lie within a link of the sequence."""
    links: list[chainer.Link] = []
    ends = dict(_flatten(chain, '', links))
    if not ends.keys() >= {*branches, *([logits] if logits else [])}:
        return None
    places = [ends[path] for path in branches]
    if places != sorted(places):
        order = ', '.join(sorted(branches, key=ends.__getitem__))
        raise ValueError(f'the layers stand in the order {order}: give the exits in this order')
    if logits:
        del links[ends[logits] :]
    elif not len(last) and isinstance(links[-1], FL) and _is_softmax(links[-1]):
        del links[-1]
    if places[-1] >= len(links):
        raise ValueError(f'the exit at {list(branches)[-1]} stands where the last exit is: expected a layer before it')
    for path, branch in reversed(list(branches.items())):
        links.insert(ends[path], branch)
    return [*links, *last, Branch([], last.weight)]


def _is_softmax(link: FL) -> bool:
    """Whether a function is F.softmax, or returns what F.softmax gives, such as a lambda around it."""
    if link.fn is F.softmax:
        return True
    try:
        y = link(chainer.Variable(np.zeros((1, 2), np.float32)))
    except Exception:  # a function that takes no such array
        return False
    return type(getattr(y, 'creator', None)) is Softmax


def _flatten(sequence: chainer.Sequential, prefix: str, links: list[chainer.Link]) -> Iterator[tuple[str, int]]:
    """Appends all links and functions of a Sequential; yields the paths of links, and how many then come before."""
    paths = {id(child): f'{prefix}/{i}' for i, child in enumerate(sequence.children())}
    for element in sequence:
        if type(element) is chainer.Sequential:
            yield from _flatten(element, paths[id(element)], links)
        else:
            links.append(element if isinstance(element, chainer.Link) else FL(element))
        if id(element) in paths:
            yield paths[id(element)], len(links)
