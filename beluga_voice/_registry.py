"""Finds providers: entry points -> plugin modules -> factories by name.

Discovery is lazy and isolated: a name loads the entry point of that name first and the others only if needed; a plugin that
fails to load is kept aside with its error and never harms another.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import attrs
import pluggy

from . import hookspecs
from .errors import BrokenPluginError, DuplicateProviderError, OptionError, PluginError, UnknownProviderError
from .options import OptionInfo, build, describe, nearest

__all__ = ["KINDS", "Kind", "Plugin", "Provider", "Registry", "registry"]

KINDS = ("stt", "tts", "vad", "turn", "agent", "s2s", "transport", "store", "processor")
BUILTIN = "beluga-voice"
HERE = "(this program)"
ONLY = "BELUGA_VOICE_PLUGINS"


@attrs.frozen
class Provider:
    """One registered provider, as `describe` tells it."""

    kind: str
    name: str
    distribution: str
    version: str
    summary: str
    options: tuple[OptionInfo, ...]
    capabilities: Any
    factory: Callable[..., Any] = attrs.field(repr=False)
    options_class: type | None = attrs.field(repr=False, default=None)


@attrs.define
class Plugin:
    """One entry point: not looked at yet, loaded, or broken with `error`."""

    name: str
    distribution: str
    version: str
    load: Callable[[], ModuleType] = attrs.field(repr=False)
    loaded: bool = False
    error: BaseException | None = None


class Registry:
    """All providers of all kinds. `registry` is the process's own; tests make others."""

    def __init__(self, plugins: Callable[[], list[Plugin]] | None = None) -> None:
        self._find = plugins or _installed_plugins
        self._plugins: dict[str, Plugin] | None = None
        self._providers: dict[str, dict[str, list[Provider]]] = {kind: {} for kind in KINDS}
        self._manager = pluggy.PluginManager(hookspecs.GROUP)
        self._manager.add_hookspecs(hookspecs)

    @property
    def hook(self) -> pluggy.HookRelay:
        """The lifecycle hooks of the plugins loaded so far."""
        return self._manager.hook

    def plugins(self) -> list[Plugin]:
        """Every plugin that may be loaded, after loading all: `error` tells the broken ones."""
        for plugin in self._known().values():
            self._load(plugin)
        return list(self._known().values())

    def add(
        self,
        kind: str,
        name: str,
        factory: Callable[..., Any],
        *,
        summary: str = "",
        options: type | None = None,
        capabilities: Any = None,
        distribution: str = HERE,
        version: str = "",
    ) -> None:
        """Register a provider.

        Raises:
            DuplicateProviderError: the same distribution has registered the name already.
        """
        if not isinstance(name, str) or not name or ":" in name:
            raise PluginError(f"a {kind} cannot be called {name!r}; expected a name without ':', like \"deepgram\"")
        if not callable(factory):
            raise PluginError(f"{kind} {name!r}: the factory is {factory!r}; expected something to call with the options")
        held = self._providers[kind].setdefault(name, [])
        if any(provider.distribution == distribution for provider in held):
            raise DuplicateProviderError(f"{kind} {name!r} is registered twice by {distribution}; give one another name")
        if options is None:
            options = getattr(factory, "Options", None)
        held.append(
            Provider(
                kind=kind,
                name=name,
                distribution=distribution,
                version=version,
                summary=summary,
                options=describe(options),
                capabilities=capabilities if capabilities is not None else getattr(factory, "capabilities", None),
                factory=factory,
                options_class=options,
            )
        )

    def find(self, kind: str, name: str) -> Provider:
        """The provider of that kind and name; "distribution:name" picks one of several.

        Raises:
            UnknownProviderError: nothing installed has that name.
            DuplicateProviderError: two distributions have it.
            BrokenPluginError: the plugin of that name does not load.
        """
        if not isinstance(name, str):
            raise UnknownProviderError(f"a {kind} is asked for as {name!r}; expected its name as text")
        distribution, _, bare = name.rpartition(":")
        self._load_for(kind, bare, distribution)
        held = self._providers[kind].get(bare, [])
        if distribution:
            held = [provider for provider in held if provider.distribution == distribution]
        if len(held) == 1:
            return held[0]
        if len(held) > 1:
            choices = " or ".join(f'"{provider.distribution}:{bare}"' for provider in held)
            raise DuplicateProviderError(
                f"{kind} {bare!r} is claimed by {' and '.join(p.distribution for p in held)}; write {choices}"
            )
        raise self._unknown(kind, name)

    def names(self, kind: str) -> list[str]:
        """The names of that kind, sorted, after loading every plugin."""
        self.plugins()
        return sorted(self._providers[kind])

    def providers(self, kind: str) -> list[Provider]:
        """Every provider of that kind, after loading every plugin; a name claimed twice is there twice."""
        return [provider for name in self.names(kind) for provider in self._providers[kind][name]]

    def new(self, kind: str, name: str, given: Mapping[str, Any]) -> Any:
        """Make the provider of that kind and name with the options `given`."""
        provider = self.find(kind, name)
        owner = f"{kind} {provider.name!r}"
        if provider.options_class is not None:
            built: Any = build(provider.options_class, given, owner)
            given = {key: getattr(built, key) for key in given}
        try:
            made = provider.factory(**given)
        except ImportError as error:
            raise BrokenPluginError(
                f"{owner} cannot be made: {provider.distribution} needs something that is not installed ({error}). "
                f"Reinstall it: pip install --force-reinstall {provider.distribution}",
                distribution=provider.distribution,
            ) from error
        except TypeError as error:
            if provider.options_class is None and given and "unexpected keyword" in str(error):
                raise OptionError(f"{owner} does not take these options: {error}") from error
            raise
        if hasattr(made, "provider"):
            made.provider = provider.name
        return made

    # --- loading -----------------------------------------------------------------------------------------------------

    def _known(self) -> dict[str, Plugin]:
        if self._plugins is None:
            self._plugins = {}
            for plugin in self._find():
                key = plugin.name if plugin.name not in self._plugins else f"{plugin.distribution}:{plugin.name}"
                self._plugins[key] = plugin
        return self._plugins

    def _load_for(self, kind: str, name: str, distribution: str) -> None:
        known = self._known()
        if "builtin" in known:
            self._load(known["builtin"])
        for plugin in list(known.values()):
            if plugin.name == name or plugin.distribution == distribution:
                self._load(plugin)
        if not self._providers[kind].get(name):
            self.plugins()

    def _load(self, plugin: Plugin) -> None:
        if plugin.loaded or plugin.error:
            return
        plugin.loaded = True
        before = {kind: {name: list(held) for name, held in self._providers[kind].items()} for kind in KINDS}
        try:
            module = plugin.load()
            stated = getattr(module, "BELUGA_VOICE_API", None)
            if stated != hookspecs.API:
                raise PluginError(
                    f"{plugin.distribution} is written for plugin API {stated}, this is API {hookspecs.API}; "
                    f"upgrade it: pip install -U {plugin.distribution}"
                )
            title = f"{plugin.distribution}:{plugin.name}"
            others = set(self._manager.get_plugins())
            self._manager.register(module, title)
            self._check_hooks(module)
            for kind in KINDS:
                caller = self._manager.subset_hook_caller(f"register_{kind}", others)
                caller(register=self._register_for(kind, plugin))
        except (Exception, SystemExit) as error:
            plugin.error = error
            self._providers = before
            if module_known := self._manager.get_plugin(f"{plugin.distribution}:{plugin.name}"):
                self._manager.unregister(module_known)

    def _check_hooks(self, module: ModuleType) -> None:
        try:
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            hooks = sorted(name for name in vars(hookspecs) if hasattr(getattr(hookspecs, name), f"{hookspecs.GROUP}_spec"))
            bad = next((n for n, f in vars(module).items() if hasattr(f, f"{hookspecs.GROUP}_impl") and n not in hooks), "?")
            close = nearest(bad, hooks)
            hint = f"did you mean {close!r}?" if close else f"the hooks are {', '.join(hooks)}"
            raise PluginError(f"{module.__name__} implements a hook {bad!r} that does not exist; {hint}") from error

    def _register_for(self, kind: str, plugin: Plugin) -> Callable[..., None]:
        def register(name: str, factory: Callable[..., Any], **told: Any) -> None:
            self.add(kind, name, factory, distribution=plugin.distribution, version=plugin.version, **told)

        return register

    def _unknown(self, kind: str, name: str) -> PluginError:
        bare = name.rpartition(":")[2]
        for plugin in self._known().values():
            if plugin.name == bare and plugin.error is not None:
                broken = BrokenPluginError(
                    f"{kind} {bare!r}: the plugin {plugin.distribution} {plugin.version} does not load "
                    f"({type(plugin.error).__name__}: {plugin.error}). Repair it, or see: beluga-voice providers",
                    distribution=plugin.distribution,
                )
                broken.__cause__ = plugin.error
                return broken
        installed = self.names(kind)
        parts = [f"no {kind} is called {name!r}; installed: {', '.join(installed) or 'none'}."]
        close = nearest(bare, installed)
        listed = _known_distributions().get(kind, {})
        left_out = _left_out()
        if bare in left_out:
            parts.append(f"{ONLY} leaves out the plugin {bare!r}: add it there, or unset that environment variable.")
        elif close:
            parts.append(f"Did you mean {close!r}?")
        elif bare in listed:
            parts.append(f"Install it: pip install {listed[bare]}")
        elif (like := nearest(bare, listed)) is not None:
            parts.append(f"Did you mean {like!r}? Install it: pip install {listed[like]}")
        broken_ones = [plugin.distribution for plugin in self._known().values() if plugin.error]
        if broken_ones:
            parts.append(f"Broken and left out: {', '.join(broken_ones)} (see: beluga-voice providers)")
        if left_out and bare not in left_out:
            parts.append(f"{ONLY} leaves out: {', '.join(left_out)}")
        return UnknownProviderError(" ".join(parts))


class Kind:
    """The four doors of one kind: `new`, `names`, `describe`, `register`."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def new(self, name: str, **options: Any) -> Any:
        """Make the provider of that name."""
        return registry.new(self.kind, name, options)

    def names(self) -> list[str]:
        """The installed names, sorted."""
        return registry.names(self.kind)

    def describe(self, name: str) -> Provider:
        """What is known of a provider without importing anything heavy: options, distribution, capabilities."""
        return registry.find(self.kind, name)

    def register(self, name: str, factory: Callable[..., Any], **told: Any) -> None:
        """Register a provider of this program's own; `summary`, `options` and `capabilities` may be told."""
        registry.add(self.kind, name, factory, **told)


def _installed_plugins() -> list[Plugin]:
    return [plugin for plugin in _all_plugins() if _is_wanted(plugin)]


def _left_out() -> list[str]:
    """The installed plugins that the environment keeps from being loaded."""
    return sorted({plugin.name for plugin in _all_plugins() if not _is_wanted(plugin)}) if ONLY in os.environ else []


def _is_wanted(plugin: Plugin) -> bool:
    wanted = os.environ.get(ONLY)
    return wanted is None or plugin.distribution == BUILTIN or plugin.name in map(str.strip, wanted.split(","))


def _all_plugins() -> list[Plugin]:
    from importlib import metadata  # here, so that importing the package stays quick

    plugins = []
    for entry in sorted(metadata.entry_points(group=hookspecs.GROUP), key=lambda entry: entry.name):
        distribution = entry.dist.name if entry.dist else entry.value
        plugins.append(Plugin(entry.name, distribution, entry.dist.version if entry.dist else "", entry.load))
    return plugins


def _known_distributions() -> dict[str, dict[str, str]]:
    import json
    from importlib import resources

    text = resources.files(__package__).joinpath("known_plugins.json").read_text("utf-8")
    listed: dict[str, dict[str, str]] = json.loads(text)
    return listed


registry = Registry()
