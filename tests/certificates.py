"""Servers with certificates, and who trusts them."""

import ssl

import trustme

__all__ = ["trusted", "untrusted"]

AUTHORITY = trustme.CA()


def trusted(server, monkeypatch, folder):
    """Make a loopback server speak TLS, with a certificate of an authority that this process trusts from now on."""
    AUTHORITY.cert_pem.write_to_path(folder / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "authority.pem"))
    return untrusted(server)


def untrusted(server):
    """Make a loopback server speak TLS, with a certificate of an authority nobody knows."""
    server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert("127.0.0.1").configure_cert(server.tls)
    return server
