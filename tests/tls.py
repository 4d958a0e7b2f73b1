"""Servers that speak TLS, and an authority of their own that vouches for them."""

from __future__ import annotations

import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any

import trustme

from wire import PATIENCE, Connection, UntilClose, Wire


class Authority:
    """Vouches for certificates of servers and of clients.

    Attributes:
        pem: the file that a client trusts.
    """

    def __init__(self, folder: Path) -> None:
        self._ca = trustme.CA()
        self._folder = folder
        self.pem = str(folder / "ca.pem")
        self._ca.cert_pem.write_to_path(self.pem)

    def server(self, *names: str, **how: Any) -> ssl.SSLContext:
        """What a server speaks TLS by; its certificate is for 127.0.0.1 unless other names are given."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._ca.issue_cert(*(names or ("127.0.0.1", "localhost")), **how).configure_cert(context)
        return context

    def demanding(self) -> ssl.SSLContext:
        """The same, of a server that wants to see a certificate of its clients."""
        context = self.server()
        context.verify_mode = ssl.CERT_REQUIRED
        self._ca.configure_trust(context)
        return context

    def client(self, name: str = "client") -> tuple[str, str, str]:
        """The files of a client's certificate, of its key, and of both together."""
        issued = self._ca.issue_cert("client@example.org")
        paths = [str(self._folder / f"{name}.{kind}.pem") for kind in ("cert", "key", "both")]
        issued.cert_chain_pems[0].write_to_path(paths[0])
        issued.private_key_pem.write_to_path(paths[1])
        issued.private_key_and_cert_chain_pem.write_to_path(paths[2])
        return paths[0], paths[1], paths[2]


class Secure(Wire):
    """A socket server behind TLS.

    Attributes:
        shaken: what each handshake has ended in: its version, or its error.
    """

    def __init__(self, context: ssl.SSLContext, routes: Any = ()) -> None:
        self._context = context
        self.shaken: list[str] = []
        super().__init__(routes)

    @property
    def url(self) -> str:
        return super().url.replace("http:", "https:")

    def _serve(self, connection: Connection) -> None:
        connection.sock.settimeout(PATIENCE)
        try:
            secure = self._context.wrap_socket(connection.sock, server_side=True)
        except OSError as error:
            self.shaken.append(str(error))
            connection.close()
            return
        self.shaken.append(str(secure.version()))
        connection.sock = secure
        super()._serve(connection)


def say_goodbye(connection: Connection) -> None:
    """Ends TLS as it is meant to be, by its close_notify, and then the connection."""
    assert isinstance(connection.sock, ssl.SSLSocket)
    with suppress(OSError):
        connection.sock.settimeout(1)
        connection.sock.unwrap()
    connection.close()


class UntilGoodbye(UntilClose):
    """A body that ends with the connection, as TLS ends one."""

    def end(self) -> None:
        say_goodbye(self.connection)
