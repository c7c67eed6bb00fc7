# SPDX-License-Identifier: MIT
"""The examples in the docstrings of what users import."""

import doctest
from types import ModuleType

import pytest

import barfs
from barfs import device, errors, layout, policy, ranges, region, text
from barfs.registers import access, fields, find, model, names, places

MODULES = [barfs, device, errors, layout, policy, ranges, region, text]
MODULES += [access, fields, find, model, names, places]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_the_examples_work(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
