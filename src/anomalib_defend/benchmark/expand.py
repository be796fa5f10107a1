"""A comparison's YAML file, expanded into cells: model x data x category x seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from anomalib_defend.suggest import did_you_mean

from .plan import Cell, Comparison, ComparisonError, Settings

CONFIGS = Path(__file__).parent / "configs"  # the package's own comparisons
_KEYS = {"title", "variables", "reference", "accelerator", "seeds", "trainer", "models", "data", "cells"}
_MODEL_KEYS = {"class_path", "init_args", "trainer"}
_DATA_KEYS = {"class_path", "init_args", "categories", "model_args", "paper", "by_novel_class"}
_BLOCK_KEYS = {"models", "data", "categories", "seeds", "model_args", "data_args", "trainer"}
_PATHS = ("root", "weights", "fake_dir", "fake_cache", "outlier_dir")  # made absolute: a cell runs in its own folder


def find(comparison: str) -> Path:
    """A YAML file by its path, or one of the package's by its name, with or without ``.yaml``.

    Raises:
        ComparisonError: If there is neither; names those of the package.
    """
    file, name = Path(comparison), comparison.removesuffix(".yaml")
    if file.is_file():
        return file
    names = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    if name in names:
        return CONFIGS / f"{name}.yaml"
    near = did_you_mean(file.stem, names)
    msg = f"{comparison} is no file, and no comparison of the package.{near} The package has {_listed(names)}."
    raise ComparisonError(msg)


def load(file: Path | str, variables: Mapping[str, str] | None = None) -> Comparison:
    """Read a YAML file.

    Args:
        file: The YAML file, as in ``configs``.
        variables: Replace those of the same name under ``variables:``.

    Raises:
        ComparisonError: If the file is malformed; names file and key.
    """
    file = Path(file)
    known: set[str] = set()
    try:
        config = OmegaConf.load(file)
        if not isinstance(config, DictConfig):
            msg = f"{file} must hold a mapping with the keys {_listed(sorted(_KEYS))}."
            raise ComparisonError(msg)
        known = set(config.get("variables") or {})
        for name, value in (variables or {}).items():
            if name not in known:
                msg = f"{file}: variables has no {name!r}, only {_listed(known)}.{did_you_mean(name, known)}"
                raise ComparisonError(msg)
            config.variables[name] = value
        content: Any = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        hint = f"variables are {_listed(known)}; --set NAME=VALUE replaces one"
        msg = f"{file}: {str(error).splitlines()[0]} ({hint})."
        raise ComparisonError(msg) from error
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{file}: {error}"
        raise ComparisonError(msg) from error
    except Exception as error:
        if type(error).__module__.startswith("yaml"):
            msg = f"{file} is not valid YAML: {error}"
            raise ComparisonError(msg) from error
        raise
    return _expand(content, file)


def _expand(content: Any, file: Path) -> Comparison:
    where = str(file)
    _check(content, _KEYS, where, required=("models", "data", "seeds"))
    seeds = _seeds(content["seeds"], where)
    models = _named(content["models"], _MODEL_KEYS, f"{where}: models")
    data = _named(content["data"], _DATA_KEYS, f"{where}: data")
    device = content.get("accelerator", "cpu")
    if device not in {"cpu", "cuda"}:
        msg = f"{where}: accelerator must be cpu or cuda, got {device!r}."
        raise ComparisonError(msg)
    (reference,) = _pick([content.get("reference", next(iter(models)))], models, f"{where}: reference")
    cells: dict[tuple[str, str, str, int], Cell] = {}
    for number, block in enumerate(content.get("cells") or [{}]):
        here = f"{where}: cells[{number}]"
        _check(block, _BLOCK_KEYS, here)
        chosen = _pick(block.get("models"), models, f"{here}.models"), _pick(block.get("data"), data, f"{here}.data")
        for model, dataset in product(*chosen):
            named = _categories(data[dataset], f"{where}: data.{dataset}.categories")
            categories = _pick(block.get("categories"), named, f"{here}.categories")
            chosen_seeds = _seeds(block["seeds"], here) if "seeds" in block else seeds
            for category, seed in product(categories, chosen_seeds):
                cell = Cell(
                    model,
                    dataset,
                    category,
                    seed,
                    _settings(models[model], data[dataset].get("model_args"), block.get("model_args")),
                    _data_settings(data[dataset], named[category], block.get("data_args")),
                    {
                        **(content.get("trainer") or {}),
                        **(models[model].get("trainer") or {}),
                        **block.get("trainer", {}),
                    },
                    device,
                )
                cells[model, dataset, category, seed] = cell
    return Comparison(
        file.stem,
        str(content.get("title", file.stem)),
        reference,
        [name for name in models if any(cell.model == name for cell in cells.values())],
        [name for name in data if any(cell.data == name for cell in cells.values())],
        {name: entry["paper"] for name, entry in data.items() if "paper" in entry},
        [name for name, entry in data.items() if entry.get("by_novel_class")],
        list(cells.values()),
        str(file),
    )


def _named(entries: Any, keys: set[str], where: str) -> dict[str, Settings]:
    """Entries by name; YAML reads a name such as 224 or 1e-3 as a number."""
    _check(entries, None, where)
    named = {str(name): entry for name, entry in entries.items()}
    if len(named) < len(entries):
        msg = f"{where}: two entries have the same name; the names are {_listed(entries)}."
        raise ComparisonError(msg)
    for name, entry in named.items():
        _check(entry, keys, f"{where}.{name}", required=("class_path",))
    return named


def _settings(entry: Settings, *overrides: Settings | None) -> Settings:
    init_args = dict(entry.get("init_args") or {})
    for override in overrides:
        init_args.update(override or {})
    return {"class_path": entry["class_path"], "init_args": _absolute(init_args)}


def _data_settings(entry: Settings, category: Any, override: Settings | None) -> Settings:
    return _settings(entry, {} if category is None else {"category": category}, override)


def _absolute(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: str(Path(item).expanduser().absolute()) if key in _PATHS and isinstance(item, str) else _absolute(item)
            for key, item in value.items()
        }
    return value


def _categories(entry: Settings, where: str) -> dict[str, Any]:
    """Names of the rows, and what the datamodule's argument gets."""
    categories = entry.get("categories")
    if categories is None:
        return {"all": None}
    if isinstance(categories, Mapping | Sequence) and not categories:
        msg = f"{where} is empty: leave it out for data without categories."
        raise ComparisonError(msg)
    if isinstance(categories, Mapping):
        return {str(name): value for name, value in categories.items()}
    if not isinstance(categories, Sequence) or isinstance(categories, str):
        msg = f"{where} must be a list, or a mapping from the row's name to the category, got {categories!r}."
        raise ComparisonError(msg)
    return {"+".join(map(str, value)) if isinstance(value, list) else str(value): value for value in categories}


def _seeds(seeds: Any, where: str) -> list[int]:
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        msg = f"{where}: seeds must be a list of whole numbers, got {seeds!r}."
        raise ComparisonError(msg)
    return seeds


def _pick(chosen: Any, known: Mapping[str, Any], where: str) -> list[str]:
    if chosen is None:
        return list(known)
    chosen = [chosen] if isinstance(chosen, str | int | float) else chosen
    unknown = [name for name in chosen if str(name) not in known]
    if unknown:
        msg = f"{where}: unknown {_listed(unknown)}; there is {_listed(known)}.{_nearest(unknown, known)}"
        raise ComparisonError(msg)
    return [str(name) for name in chosen]


def _check(entry: Any, keys: set[str] | None, where: str, required: Sequence[str] = ()) -> None:
    if not isinstance(entry, Mapping):
        msg = f"{where} must be a mapping, got {entry!r}."
        raise ComparisonError(msg)
    unknown = [] if keys is None else [key for key in entry if key not in keys]
    if unknown:
        known = sorted(keys or ())
        msg = f"{where}: unknown key {_listed(unknown)}; possible are {_listed(known)}.{_nearest(unknown, known)}"
        raise ComparisonError(msg)
    for key in required:
        if key not in entry:
            msg = f"{where}: {key} is missing."
            raise ComparisonError(msg)
        if entry[key] in (None, "", {}):
            msg = f"{where}: {key} is empty."
            raise ComparisonError(msg)


def _nearest(unknown: Iterable[Any], known: Iterable[str]) -> str:
    names = list(known)
    return "".join(did_you_mean(str(name), names) for name in unknown)


def _listed(names: Any) -> str:
    return ", ".join(map(str, names)) or "none"
