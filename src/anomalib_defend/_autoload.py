"""Makes the plugin's bare names known to anomalib: ``--model Defend``, ``--data SemanticVOC``, ``get_model("defend")``.

anomalib has no entry points for plugins, so two things happen instead:

- ``anomalib_defend.models`` and ``anomalib_defend.data`` end with a call of :func:`register_models` and
  :func:`register_data`: whoever imports them has them registered.
- ``anomalib_defend_autoload.pth`` calls :func:`install` when the interpreter starts. It leaves a finder on
  ``sys.meta_path`` that imports those two modules as soon as anomalib's own have been imported.

This module runs at every start of the interpreter: it imports nothing that is not loaded anyway.
"""

import os
import sys
from _thread import get_ident

OPT_OUT = "ANOMALIB_DEFEND_AUTOLOAD"

TYPE_CHECKING = False  # typing's own constant costs an import of typing
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType


def register_models() -> None:
    """Add the plugin's models to ``anomalib.models``, also for ``get_model({"class_path": ...})``."""
    _register("models")
    sys.modules["anomalib.models"].ALLOWED_MODULES.update(("anomalib_defend", "anomalib_defend.models"))
    if is_console():
        from importlib import import_module  # noqa: PLC0415 - not needed at most starts

        import_module("anomalib_defend.console").install()


def register_data() -> None:
    """Add the plugin's datamodules to ``anomalib.data``."""
    _register("data")


def is_console() -> bool:
    """Whether this is a process of the console script ``anomalib`` or ``anomalib-defend``, and no user's program."""
    path = sys.argv[0] if getattr(sys, "argv", None) else ""
    folder, script = os.path.split(path.removesuffix(".exe"))
    module = script == "__main__.py" and folder.endswith("anomalib_defend")  # python -m anomalib_defend
    return module or script in {"anomalib", "anomalib-defend"}


def _register(part: str) -> None:
    plugin, host = sys.modules[f"anomalib_defend.{part}"], sys.modules[f"anomalib.{part}"]
    for name in plugin.__all__:
        setattr(host, name, getattr(plugin, name))
        if name not in host.__all__:
            host.__all__.append(name)


def install() -> None:
    """Import the plugin whenever anomalib is imported, unless ``ANOMALIB_DEFEND_AUTOLOAD=0``."""
    if os.environ.get(OPT_OUT) != "0" and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Imports the plugin after the outermost import of an anomalib module has run.

    The outermost one, because the plugin needs complete modules: ``anomalib.models`` may be imported by a half-executed
    ``anomalib.engine``, or by a half-executed module of this package. Only that module's loader is touched.
    """

    def __init__(self) -> None:
        self._pending = {"models", "data"}
        self._busy: set[int] = set()  # the threads that are executing an anomalib module or the plugin

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """Let the finders behind this one find the module, and have its execution followed by the plugin's."""
        ours = name.partition(".")[0] in {"anomalib", "anomalib_defend"}
        if not ours or get_ident() in self._busy or self not in sys.meta_path:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    self._follow(spec.loader)
                return spec
        return None

    def _follow(self, loader: object) -> None:
        execute: Callable[[ModuleType], None] = loader.exec_module  # type: ignore[attr-defined]

        def exec_module(module: "ModuleType") -> None:
            self._busy.add(get_ident())
            try:
                execute(module)
                self._import_plugin()
            finally:
                self._busy.discard(get_ident())

        loader.exec_module = exec_module  # type: ignore[attr-defined]

    def _import_plugin(self) -> None:
        from importlib import import_module  # noqa: PLC0415 - not needed at most starts

        for part in ("models", "data"):
            if part not in self._pending or f"anomalib.{part}" not in sys.modules:
                continue
            self._pending.discard(part)
            try:
                import_module(f"anomalib_defend.{part}")
            except Exception as error:  # whatever is wrong with the plugin, anomalib has to work
                if len(self._busy) > 1:  # another thread is half-way through a module that this needs: it tries again
                    self._pending.add(part)
                    return
                self._pending.clear()
                _warn(error)
        if not self._pending and self in sys.meta_path:
            sys.meta_path.remove(self)


def _warn(error: Exception) -> None:
    import warnings  # noqa: PLC0415 - not needed at most starts

    message = (
        f"anomalib-defend could not be loaded, anomalib goes on without it: {type(error).__name__}: {error}. "
        f"Set {OPT_OUT}=0 to stop anomalib from loading it."
    )
    try:
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    except RuntimeWarning:  # python -W error
        print(message, file=sys.stderr)
