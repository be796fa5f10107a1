"""What a model was given, while what a checkpoint has brought is in its place."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anomalib.models.components import AnomalibModule

COMPONENTS = ("pre_processor", "post_processor", "evaluator", "visualizer")
NOT_OF_THE_NETWORKS = {"seed", "target_fpr"}


class OwnArguments:
    """A model's own arguments and settings of its components, which its next training begins with.

    Args:
        model: Before they are changed.
    """

    def __init__(self, model: AnomalibModule) -> None:
        self._arguments = dict(model.hparams)
        self._components = {name: getattr(model, name) for name in COMPONENTS}
        self._settings: dict[str, dict[str, Any]] = {
            name: part.checkpoint_config()
            for name, part in self._components.items()
            if hasattr(part, "checkpoint_config")
        }

    def overridden(self, brought: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
        """Name the arguments that were given, and are others in a checkpoint, with both values.

        Args:
            brought: Those that the checkpoint changes.
            defaults: Of the model: whoever gave one of them cannot be told from who gave none.
        """
        return ", ".join(
            f"{name}={value!r} (the checkpoint's is {brought[name]!r})"
            for name, value in self._arguments.items()
            if name in brought
            and name in defaults  # else no argument of a user's
            and name != "target_fpr"  # the post-processor's, which moves the threshold and says so
            and _plain(value) not in (_plain(brought[name]), _plain(defaults[name]))
        )

    def restore(self, model: AnomalibModule) -> bool:
        """Give them back.

        Returns:
            Whether the networks may have been built from others.
        """
        names = self._arguments.keys() | model.hparams.keys()
        other = {name for name in names if self._arguments.get(name) != model.hparams.get(name)}
        model.hparams.clear()
        model.hparams.update(self._arguments)
        for name, part in self._components.items():
            setattr(model, name, part)
            settings = self._settings.get(name, {})
            if any(value is not None for value in settings.values()):  # anomalib cannot write down every transform
                part.load_checkpoint_config(settings)
        return bool(other - NOT_OF_THE_NETWORKS)


def _plain(value: Any) -> Any:
    """As a checkpoint or a command line may have it."""
    return str(value) if isinstance(value, Path) else tuple(value) if isinstance(value, list) else value
