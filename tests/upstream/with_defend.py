"""A pytest plugin: Defend, small and without download, where anomalib's suites take a model."""

from __future__ import annotations

import inspect
from functools import partial

import pytest

import anomalib_defend.data  # noqa: F401 - the bare names, also where the package is not installed
from anomalib_defend.models import Defend

# the suites make the model without arguments, and train for max_epochs=1, which Defend refuses for two stages
SMALL = {"backbone": "vit_digits_patch8_96", "dense_epochs": 0, "distill_epochs": 1}
CLI_MODEL = "Padim"  # in all command lines of the suite


def pytest_configure() -> None:
    parameters = [p for p in inspect.signature(Defend.__init__).parameters.values() if p.default is not p.empty]
    Defend.__init__.__defaults__ = tuple(SMALL.get(p.name, p.default) for p in parameters)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for module in {item.module for item in items if item.path.name == "test_cli.py"}:
        module.AnomalibCLI = partial(run_defend, module.AnomalibCLI)
    others = [
        item
        for item in items
        if hasattr(item, "callspec") and item.callspec.params.get("model_name", "defend") != "defend"
    ]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


def not_defend(parameters: dict[str, object]) -> bool:
    return parameters.get("model_name", "defend") != "defend"


def run_defend(cli: type, args: list[str]) -> object:
    return cli(args=[argument.replace(CLI_MODEL, "Defend") for argument in args])
