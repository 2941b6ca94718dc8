"""The documentation site: Sphinx with furo; pages in Markdown, the API from docstrings. docs/build.sh builds it."""

from __future__ import annotations

import io
from contextlib import redirect_stdout, suppress

import branchynet
from branchynet import cli

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

project = 'BranchyNet on Chainer 7'
copyright = 'the maintainers of BranchyNet on Chainer 7, MIT license'
release = branchynet.__version__
html_theme = 'furo'
html_title = f'BranchyNet {release}'
html_static_path = ['_static']
html_css_files = ['style.css']
html_copy_source = False
templates_path = ['_templates']
exclude_patterns = ['_build']

extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.autosummary',
    'sphinx.ext.doctest',
    'sphinx.ext.napoleon',
    'sphinx.ext.viewcode',
]

# The pages are Markdown that reads well where the repository is shown too, with its names of headings.
myst_heading_anchors = 4
suppress_warnings = ['myst.header']  # CHANGELOG.md, which one page includes, starts with a heading of the first level

# The API: signatures as they are written, their types where the arguments are described.
autodoc_member_order = 'bysource'
autodoc_typehints = 'signature'
autodoc_preserve_defaults = True
autosummary_context = {'main_class': {'branchynet.net': 'BranchyNet', 'branchynet.inference': 'Compiled'}}
add_module_names = False
napoleon_use_ivar = True
napoleon_use_rtype = False  # what a docstring says before a colon in Returns is a name, seldom a type
python_maximum_signature_line_length = 90

# Names in annotations that belong to other projects: the site is built without the network, so nothing looks them up.
nitpick_ignore_regex = [
    ('py:.*', r'(chainer|numpy|np|os|collections|install|branchynet.shares|branchynet.cpu)\..*|Path|PathLike|Figure')
]
nitpick_ignore = [
    ('py:class', alias)
    for alias in ('Array', 'Feed', 'Part', 'Point', 'Setting', 'Side', 'Stage', 'branchynet.parallel.T')
]

# Examples in docstrings; docs/build.sh runs them.
doctest_global_setup = 'import math; import branchynet; import numpy as np; np.random.seed(0)'

# `sphinx-build -b linkcheck docs ...` tries the external links; it needs the network, so docs/build.sh does not.
linkcheck_timeout = 20
linkcheck_retries = 2


class CommandHelp(SphinxDirective):
    """What every command's --help prints."""

    def run(self) -> list[nodes.Node]:
        """A section for every command."""
        return [self._section(command.name) for command in cli.COMMANDS]

    def _section(self, name: str) -> nodes.section:
        printed = io.StringIO()
        with redirect_stdout(printed), suppress(SystemExit):
            cli.main([name, '--help'])
        section = nodes.section(ids=[name], names=[name])
        section += nodes.title(text=name)
        section += nodes.literal_block(printed.getvalue(), printed.getvalue(), language='text')
        return section


def skip_member(app: Sphinx, what: str, name: str, member: object, skip: bool, options: object) -> bool | None:
    """Leaves out checks of arguments, and the fields of a NamedTuple, which its docstring describes."""
    return True if name.startswith('check_') or type(member).__name__ == '_tuplegetter' else None


def setup(app: Sphinx) -> None:
    """Adds what is defined here."""
    app.add_directive('command-help', CommandHelp)
    app.connect('autodoc-skip-member', skip_member)
