"""The registry: lazy, isolated, and with a remedy in every refusal."""

import types

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beluga_voice import _registry
from beluga_voice._registry import Plugin, Registry
from beluga_voice.errors import (
    BrokenPluginError,
    DuplicateProviderError,
    OptionError,
    PluginError,
    UnknownProviderError,
)
from beluga_voice.hookspecs import hookimpl
from beluga_voice.options import option


@attrs.frozen
class Made:
    """What a test's factory makes: it knows whose it is and what it was given."""

    distribution: str
    name: str
    given: tuple = ()


def module_of(distribution, provides, api=1, extra=()):
    """A plugin module that registers `provides`, a list of (kind, name)."""
    module = types.ModuleType(f"plugin_of_{distribution}")
    if api is not None:
        module.BELUGA_VOICE_API = api

    def factory(name):
        return lambda **given: Made(distribution, name, tuple(sorted(given.items())))

    def hook(kind):
        def implement(register):
            for name in [name for kind_of, name in provides if kind_of == kind]:
                register(name, factory(name), summary=f"{name} of {distribution}")

        return hookimpl(implement)

    for kind in {kind for kind, _ in provides}:
        setattr(module, f"register_{kind}", hook(kind))
    for name, function in extra:
        setattr(module, name, function)
    return module


def plugin(name, distribution, provides=(), *, loaded=None, fails=None, **told):
    def load():
        if loaded is not None:
            loaded.append(name)
        if fails is not None:
            raise fails
        return module_of(distribution, provides, **told)

    return Plugin(name, distribution, "1.2", load)


def registry_of(*plugins):
    return Registry(plugins=lambda: list(plugins))


class TestLaziness:
    def test_new_loads_only_the_plugin_of_that_name(self):
        """Making one provider imports one plugin, however many are installed."""
        loaded = []
        made = registry_of(*(plugin(name, f"d-{name}", [("stt", name)], loaded=loaded) for name in "abc"))
        assert made.new("stt", "b", {}) == Made("d-b", "b")
        assert loaded == ["b"]

    def test_a_name_of_another_plugin_is_found(self):
        """A name that is no entry point's own is found by loading the others, each once."""
        loaded = []
        made = registry_of(plugin("a", "d-a", [("stt", "whisper")], loaded=loaded), plugin("b", "d-b", loaded=loaded))
        assert made.new("stt", "whisper", {}) == made.new("stt", "whisper", {}) == Made("d-a", "whisper")
        assert loaded == ["a", "b"]

    def test_nothing_is_looked_for_before_the_first_question(self):
        """A registry that nobody asks looks at no installed distribution."""

        def find():
            raise AssertionError("looked")

        registry = Registry(plugins=find)
        registry.add("stt", "own", Made)
        assert registry.hook is not None

    def test_the_kinds_are_apart(self):
        """One name may be a recogniser and a voice."""
        registry = registry_of(plugin("a", "d-a", [("stt", "acme"), ("tts", "acme")]))
        assert registry.names("stt") == registry.names("tts") == ["acme"]
        assert registry.names("vad") == []


BREAKAGES = {
    "does not import": {"fails": ImportError("no module named cuda")},
    "raises on import": {"fails": ZeroDivisionError("oops")},
    "another API": {"api": 2},
    "no API": {"api": None},
    "misspelt hook": {"extra": [("register_sst", hookimpl(lambda register: None))]},
    "hook raises": {"extra": [("register_vad", hookimpl(lambda register: 1 / 0))]},
    "wrong name": {"provides": [("stt", "a:b")]},
}


class TestBrokenPlugins:
    @pytest.mark.parametrize("breakage", BREAKAGES)
    def test_harm_no_other(self, breakage):
        """Whatever is wrong with one plugin, the others work and it is shown with its error, none of it registered."""
        told = {"provides": [("stt", "bad"), ("tts", "bad")], **BREAKAGES[breakage]}
        registry = registry_of(plugin("bad", "d-bad", **told), plugin("good", "d-good", [("stt", "good")]))
        assert registry.names("stt") == ["good"]
        assert registry.names("tts") == []
        assert registry.new("stt", "good", {}) == Made("d-good", "good")
        assert {one.name: one.error is None for one in registry.plugins()} == {"bad": False, "good": True}

    @pytest.mark.parametrize("breakage", BREAKAGES)
    def test_are_named_when_asked_for(self, breakage):
        """Asking for the broken plugin's own provider raises its error, with its distribution."""
        registry = registry_of(plugin("bad", "d-bad", **{"provides": [("stt", "bad")], **BREAKAGES[breakage]}))
        with pytest.raises(BrokenPluginError, match=r"the plugin d-bad 1.2 does not load") as caught:
            registry.new("stt", "bad", {})
        assert caught.value.distribution == "d-bad"
        assert caught.value.__cause__ is registry.plugins()[0].error

    def test_are_told_of_when_nothing_fits(self):
        """An unknown name mentions the plugins that were left out: it may be one of theirs."""
        registry = registry_of(plugin("bad", "d-bad", fails=OSError("x")))
        with pytest.raises(UnknownProviderError, match="Broken and left out: d-bad"):
            registry.new("stt", "else", {})

    @pytest.mark.parametrize(
        ("breakage", "says"),
        [
            ("another API", "d-bad is written for plugin API 2, this is API 1; upgrade it: pip install -U d-bad"),
            ("misspelt hook", "implements a hook 'register_sst' that does not exist; did you mean 'register_stt'?"),
        ],
    )
    def test_say_what_is_wrong(self, breakage, says):
        """The plugin's author is told what to change."""
        [bad] = registry_of(plugin("bad", "d-bad", **BREAKAGES[breakage])).plugins()
        assert says in str(bad.error)

    def test_a_factory_that_cannot_import_is_a_broken_plugin(self):
        """A heavy import that fails in the factory is reported with a remedy."""
        registry = registry_of()

        def factory():
            raise ModuleNotFoundError("No module named 'torch'")

        registry.add("vad", "heavy", factory, distribution="d-heavy")
        with pytest.raises(BrokenPluginError, match=r"d-heavy needs something .*torch.*--force-reinstall d-heavy"):
            registry.new("vad", "heavy", {})


class TestDuplicates:
    def claimed_twice(self):
        return registry_of(plugin("x", "d-one", [("stt", "x"), ("stt", "y")]), plugin("x", "d-two", [("stt", "x")]))

    def test_are_refused_when_made_not_when_found(self):
        """Two claims to one name are an error only for who asks for it, and it names both and the way out."""
        registry = self.claimed_twice()
        assert registry.names("stt") == ["x", "y"]
        assert registry.new("stt", "y", {}) == Made("d-one", "y")
        with pytest.raises(DuplicateProviderError) as caught:
            registry.new("stt", "x", {})
        assert "claimed by d-one and d-two" in str(caught.value)
        assert '"d-one:x" or "d-two:x"' in str(caught.value)

    @pytest.mark.parametrize("distribution", ["d-one", "d-two"])
    def test_the_distribution_decides(self, distribution):
        """`distribution:name` always resolves."""
        assert self.claimed_twice().new("stt", f"{distribution}:x", {}) == Made(distribution, "x")

    def test_the_distribution_decides_though_its_plugin_has_another_name(self):
        """`distribution:name` finds a claim that stands in an entry point of another name, in a fresh registry too."""
        registry = registry_of(plugin("x", "d-one", [("stt", "x")]), plugin("other", "d-two", [("stt", "x")]))
        assert registry.new("stt", "d-two:x", {}) == Made("d-two", "x")

    def test_a_wrong_distribution_is_unknown(self):
        """A distribution that does not have the name is no match."""
        with pytest.raises(UnknownProviderError, match="no stt is called 'd-none:x'"):
            self.claimed_twice().new("stt", "d-none:x", {})

    def test_one_distribution_may_not_claim_a_name_twice(self):
        """A program that registers a name of its own twice is told at once."""
        registry = registry_of()
        registry.add("stt", "own", Made)
        with pytest.raises(DuplicateProviderError, match="registered twice by"):
            registry.add("stt", "own", Made)


class TestUnknownNames:
    def refusal(self, registry, kind, name):
        with pytest.raises(UnknownProviderError) as caught:
            registry.new(kind, name, {})
        return str(caught.value)

    def test_lists_what_is_installed(self):
        """The message shows every name of that kind."""
        registry = registry_of(plugin("a", "d-a", [("stt", "alpha"), ("stt", "beta"), ("tts", "gamma")]))
        assert "no stt is called 'zzz'; installed: alpha, beta." in self.refusal(registry, "stt", "zzz")
        assert "installed: none." in self.refusal(registry, "vad", "zzz")

    def test_guesses_the_nearest_spelling(self):
        """A near miss of an installed name is answered with it, and with nothing to install."""
        said = self.refusal(registry_of(plugin("a", "d-a", [("vad", "silero")])), "vad", "silerro")
        assert "Did you mean 'silero'?" in said
        assert "pip install" not in said

    @pytest.mark.parametrize("name", ["moonshine", "moonshin"])
    def test_says_what_to_install(self, name):
        """A known provider that is not installed comes with its pip line, a misspelt one too."""
        assert "Install it: pip install beluga-voice-moonshine" in self.refusal(registry_of(), "stt", name)

    def test_a_name_that_is_no_text_is_refused(self):
        """A number instead of a name is told as such."""
        assert "asked for as 3; expected its name" in self.refusal(registry_of(), "stt", 3)

    def test_invents_no_distribution(self):
        """A name on nobody's list gets no pip line."""
        assert "pip" not in self.refusal(registry_of(), "stt", "quux-zzz")

    def test_is_a_lookup_error(self):
        """Code that knows nothing of plugins may catch LookupError."""
        with pytest.raises(LookupError):
            registry_of().new("stt", "none", {})


class TestOptions:
    @attrs.frozen
    class Options:
        threshold: float = option(0.5, "how sure", at_least=0, at_most=1)
        key: str = option("", "the key")

    def registry(self):
        registry = registry_of()
        registry.add("vad", "own", lambda **given: Made("own", "own", tuple(given.items())), options=self.Options)
        return registry

    def test_are_checked_before_anything_is_made(self):
        """A wrong option is refused with the provider's name."""
        with pytest.raises(OptionError, match=r"vad 'own' has no option 'treshold'; did you mean 'threshold'\?"):
            self.registry().new("vad", "own", {"treshold": 1})

    def test_only_those_given_reach_the_factory(self):
        """The factory gets what was given, converted, and keeps its own defaults."""
        made = self.registry().new("vad", "own", {"threshold": 1})
        assert made.given == (("threshold", 1.0),)
        assert isinstance(made.given[0][1], float)

    def test_are_described_without_making_anything(self):
        """`find` tells the options of a provider whose factory would fail."""
        registry = registry_of()
        registry.add("vad", "own", lambda: 1 / 0, options=self.Options, summary="ours")
        described = registry.find("vad", "own")
        assert [one.name for one in described.options] == ["threshold", "key"]
        assert described.summary == "ours"

    def test_a_factory_without_options_refuses_them_itself(self):
        """Where no options class tells, the factory's own refusal becomes an OptionError."""
        registry = registry_of()
        registry.add("vad", "own", Made)
        with pytest.raises(OptionError, match="does not take these options"):
            registry.new("vad", "own", {"colour": 1})

    @pytest.mark.parametrize(("name", "factory"), [("", Made), ("a:b", Made), (3, Made), ("own", "not callable")])
    def test_a_registration_that_cannot_work_is_refused(self, name, factory):
        """Names are non-empty words without a colon; factories can be called."""
        with pytest.raises(PluginError, match="expected"):
            registry_of().add("vad", name, factory)


class TestInstalled:
    @pytest.fixture
    def installed(self, tmp_path, monkeypatch):
        """Two distributions on the path, as pip would leave them."""
        for name in ("acme", "zeta"):
            (tmp_path / f"bv_test_{name}.py").write_text(
                "from beluga_voice import hookimpl\n"
                "BELUGA_VOICE_API = 1\n"
                "@hookimpl\n"
                "def register_processor(register):\n"
                f"    register('{name}', lambda **given: '{name} made', summary='a test')\n"
            )
            info = tmp_path / f"bv_test_{name}-3.1.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: bv-test-{name}\nVersion: 3.1\n")
            (info / "entry_points.txt").write_text(f"[beluga_voice]\n{name} = bv_test_{name}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delenv("BELUGA_VOICE_PLUGINS", raising=False)

    def found(self):
        return {one.name for one in _registry._installed_plugins()} & {"acme", "zeta"}

    @pytest.mark.usefixtures("installed")
    def test_distributions_are_found_by_their_entry_points(self):
        """A distribution on the path is found, with its version, and its provider is made."""
        registry = Registry()
        assert registry.new("processor", "acme", {}) == "acme made"
        described = registry.find("processor", "acme")
        assert (described.distribution, described.version) == ("bv-test-acme", "3.1")

    @pytest.mark.usefixtures("installed")
    @pytest.mark.parametrize(
        ("wanted", "found"),
        [
            (None, {"acme", "zeta"}),
            ("acme", {"acme"}),
            (" zeta , acme", {"acme", "zeta"}),
            ("", set()),
            ("none", set()),
        ],
    )
    def test_the_environment_restricts_what_is_loaded(self, monkeypatch, wanted, found):
        """`BELUGA_VOICE_PLUGINS` names what may be loaded; empty leaves only what ships inside."""
        if wanted is not None:
            monkeypatch.setenv("BELUGA_VOICE_PLUGINS", wanted)
        assert self.found() == found

    @pytest.mark.usefixtures("installed")
    def test_what_the_environment_leaves_out_is_named(self, monkeypatch):
        """Who asks for an installed plugin that the environment leaves out is told so, not to install it."""
        monkeypatch.setenv("BELUGA_VOICE_PLUGINS", "zeta")
        with pytest.raises(UnknownProviderError, match="BELUGA_VOICE_PLUGINS leaves out the plugin 'acme': add it"):
            Registry().new("processor", "acme", {})
        with pytest.raises(UnknownProviderError, match=r"BELUGA_VOICE_PLUGINS leaves out: acme"):
            Registry().new("processor", "neither", {})


names = st.sampled_from(["n1", "n2", "n3", "n4"])
descriptions = st.tuples(
    st.sampled_from(["n1", "n2", "n3", "other"]),  # the entry point
    st.lists(st.tuples(st.sampled_from(["stt", "tts"]), names), max_size=4, unique=True),
    st.sampled_from(["fine", "fine", *BREAKAGES]),
)


class TestAnyPlugins:
    @given(st.lists(descriptions, max_size=6), st.sampled_from(["stt", "tts"]), names)
    def test_a_name_is_found_exactly_when_one_sound_plugin_has_it(self, described, kind, name):
        """Of any set of plugins, sound and broken, a name resolves by who claims it; nothing else is ever raised."""
        sound, plugins = {}, []
        for number, (entry, provides, state) in enumerate(described):
            told = {"provides": provides, **BREAKAGES.get(state, {})}
            plugins.append(plugin(entry, f"d{number}", **told))
            if state == "fine":
                sound[f"d{number}"] = provides
        registry = registry_of(*plugins)
        claims = [distribution for distribution, provides in sound.items() if (kind, name) in provides]
        for distribution in claims:
            assert registry.new(kind, f"{distribution}:{name}", {}) == Made(distribution, name)
        assert registry.names(kind) == sorted({n for provides in sound.values() for k, n in provides if k == kind})
        if len(claims) == 1:
            assert registry.new(kind, name, {}) == Made(claims[0], name)
            return
        with pytest.raises(PluginError) as caught:
            registry.new(kind, name, {})
        if claims:
            assert isinstance(caught.value, DuplicateProviderError)
            assert all(distribution in str(caught.value) for distribution in claims)
        else:
            assert isinstance(caught.value, (UnknownProviderError, BrokenPluginError))
        assert len(registry.plugins()) == len(plugins)
