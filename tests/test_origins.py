"""Which pages may call: the table of origins, and the tricks that must not work."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beluga_voice.errors import OptionError
from beluga_voice.server.options import ServerOptions
from beluga_voice.server.origins import allowed, is_loopback, parsed

HOST = "voice.example"


class TestSameHost:
    @pytest.mark.parametrize(
        ("origin", "host"),
        [
            (None, HOST),
            ("https://voice.example", HOST),
            ("http://voice.example", HOST),
            ("https://voice.example:443", HOST),
            ("https://voice.example", "voice.example:443"),
            ("http://voice.example", "voice.example:80"),
            ("HTTPS://Voice.Example", "VOICE.example"),
            ("http://localhost:8080", "localhost:8080"),
            ("http://127.0.0.1:8080", "127.0.0.1:8080"),
            ("http://[::1]:8080", "[::1]:8080"),
        ],
    )
    def test_may_call(self, origin, host):
        """A program without an origin, and the server's own page however its address is written."""
        assert allowed(origin, host)

    @pytest.mark.parametrize(
        "origin",
        [
            "null",
            "",
            "https://evil.example",
            "https://voice.example.evil.example",
            "https://evilvoice.example",
            "https://evil.example/voice.example",
            "https://voice.example@evil.example",
            "https://voice.example:8443",
            "https://voice.example.",
            "https://sub.voice.example",
            "https://voice.example:443:443",
            "https://voice.example:0",
            "https://voice.example:99999",
            "https://voice.example/",
            "https://voice.example#",
            "https://voice.example evil.example",
            "https://voice.example\n",
            "https:/voice.example",
            "voice.example",
            "//voice.example",
            "file://",
            "file://voice.example",
            "data:text/html,x",
            "javascript:alert(1)",
            "chrome-extension://voice.example",
            "https://voıce.example",
            "https://voice%2eexample",
            "https://[::1",
            "https://[voice.example]",
        ],
    )
    def test_another_may_not(self, origin):
        """Other hosts, ports and schemes, sub-domains, and what only looks like the server."""
        assert not allowed(origin, HOST)

    @pytest.mark.parametrize("host", ["", "voice.example/", "evil.example@voice.example", "voice.example:x", ","])
    def test_a_host_that_is_none_matches_nothing(self, host):
        """The Host header is the caller's too."""
        assert not allowed("https://voice.example", host)

    def test_an_unencrypted_page_may_not_use_an_encrypted_server(self):
        """Whoever sits on the network between could have written that page."""
        assert allowed("https://voice.example", HOST, secure=True)
        assert not allowed("http://voice.example", HOST, secure=True)

    @given(st.text())
    def test_garbage_is_refused(self, origin):
        """Whatever is sent, it is judged, and only the host's own two are let in."""
        assert allowed(origin, HOST) == (parsed(origin) in {("http", HOST, None), ("https", HOST, None)})


class TestList:
    LIST = ("https://app.example", "http://dev.example:3000", "chrome-extension://abcdef")

    @pytest.mark.parametrize("origin", [*LIST, "https://APP.example:443", "https://voice.example"])
    def test_may_call(self, origin):
        """Those listed, beside the server's own."""
        assert allowed(origin, HOST, self.LIST)

    @pytest.mark.parametrize(
        "origin", ["null", "http://app.example", "https://app.example:444", "http://dev.example", "https://x.app.example"]
    )
    def test_nobody_else(self, origin):
        """Scheme and port count; what is listed says nothing of sub-domains."""
        assert not allowed(origin, HOST, self.LIST)

    def test_any(self):
        """A star is any page, but not one that hides where it is from."""
        assert allowed("https://anywhere.example", HOST, ["*"])
        assert not allowed("null", HOST, ["*"])

    @pytest.mark.parametrize("origin", ["app.example", "https://app.example/", "https://*.app.example", "null", ""])
    def test_an_entry_that_could_never_match_is_refused(self, origin):
        """A mistake in the list shows when the server starts."""
        with pytest.raises(OptionError, match="expected"):
            ServerOptions(origins=[origin])


class TestLocal:
    def test_another_name_for_this_machine_is_refused(self):
        """A name on the internet that leads to 127.0.0.1 makes a stranger's page the same host."""
        assert not allowed("http://evil.example:8080", "evil.example:8080", local_only=True)
        assert not allowed(None, "evil.example:8080", local_only=True)
        assert allowed("http://localhost:8080", "localhost:8080", local_only=True)
        assert allowed("http://127.0.0.1:8080", "127.0.0.1:8080", local_only=True)

    def test_but_one_that_is_listed(self):
        """A proxy in front keeps its own name."""
        assert allowed("https://voice.example", HOST, ["https://voice.example"], local_only=True)

    @pytest.mark.parametrize(
        ("host", "wanted"),
        [
            *[(host, True) for host in ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost")],
            *[(host, False) for host in ("0.0.0.0", "::", "10.0.0.1", "", "localhost.evil.example", "127.0.0.1.evil.example")],
        ],
    )
    def test_loopback(self, host, wanted):
        """What stays on this machine."""
        assert is_loopback(host) is wanted
