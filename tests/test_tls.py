"""TLS as it is: wrong certificates, private authorities, certificates of clients, servers that break off or hang."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import requests
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from urllib3.util.wait import wait_for_read

from berlin_chat import (
    APIConnectionError,
    ChatError,
    InvalidRequest,
    Provider,
    StreamInterrupted,
    Ylokh,
)
from berlin_chat.http.connections import Interruptible
from tls import Authority, Secure, UntilGoodbye
from wire import (
    ACYTOO,
    BERLIN,
    PATIENCE,
    YLOKH,
    Chunked,
    Connection,
    ContentLength,
    Framing,
    Recorded,
    Speech,
    UntilClose,
    Wire,
    ends_in_time,
    speak,
)

Make = Callable[..., Provider]
UNVERIFIED = pytest.mark.filterwarnings("ignore:Unverified HTTPS request")


def failing(provider: Provider, **options: Any) -> ChatError:
    with pytest.raises(ChatError) as caught:
        provider.ask("Hi", **options)
    return caught.value


# Certificates of servers


LONG_AGO = datetime.now(timezone.utc) - timedelta(days=30)


@UNVERIFIED
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"not_before": LONG_AGO, "not_after": LONG_AGO + timedelta(days=1)}, "expired"),
        ({"names": ["chat.example"]}, "not valid for '127.0.0.1'"),
    ],
    ids=["expired", "another host's"],
)
def test_a_certificate_that_is_wrong_is_refused_and_nothing_is_sent(
    how: dict[str, Any], said: str, speech: Speech, authority: Authority
) -> None:
    context = authority.server(*how.get("names", ()), **{key: how[key] for key in how if key != "names"})
    with Secure(context) as server:
        known = {"verify": authority.pem, **speech.config}
        with provider(speech, server.url, **known) as asked:  # with retries
            error = failing(asked)
        assert isinstance(error, APIConnectionError)
        assert said in str(error)
        assert "verify=" in str(error)
        assert error.attempts == 1, "it is not tried again"
        assert server.requests == []
        with provider(speech, server.url, **{**known, "verify": False}) as asked:
            failing(asked)
        assert server.requests, "unless the caller wants no check"


def provider(speech: Speech, url: str, **config: Any) -> Provider:
    from berlin_chat import get_provider

    return get_provider(speech.name, base_url=url, **{**speech.config, **config})


def test_a_new_connection_that_has_something_to_read_is_a_good_one(
    speech: Speech, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Servers send tickets for later sessions right behind the handshake; on a kept connection it would be poison."""
    request = Interruptible.request

    def later(self: Any, *args: Any, **kwargs: Any) -> Any:
        assert self._kept or wait_for_read(self.sock, PATIENCE), "there is no ticket"
        return request(self, *args, **kwargs)

    monkeypatch.setattr(Interruptible, "request", later)
    context = authority.server()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    with (
        Secure(context, [*speech.before, (*speech.route, speak(speech, ["a", "b"]))]) as server,
        provider(speech, server.url, verify=authority.pem, retries=0) as asked,
    ):
        assert asked.ask("Hi", deadline=PATIENCE) == "ab"
        used = {request.connection for request in server.requests}
        assert len(server.connections) == len(used), "a connection was thrown away"


def test_an_authority_that_nobody_knows_is_refused(speech: Speech, make_secure: Make) -> None:
    error = failing(make_secure(speech, speak(speech, ["x"]), verify=True))
    assert isinstance(error, APIConnectionError)
    assert "certificate verify failed" in str(error)


@pytest.mark.parametrize("kind", ["a file", "a folder", "a path"])
def test_a_private_authority_is_trusted_by_who_names_it(
    kind: str, speech: Speech, authority: Authority, make_secure: Make, tmp_path: Path
) -> None:
    trusted: Any = {"a file": authority.pem, "a folder": str(tmp_path), "a path": Path(authority.pem)}[kind]
    if kind == "a folder":
        name = subprocess.run(
            ["openssl", "x509", "-subject_hash", "-noout", "-in", authority.pem], capture_output=True, check=True
        )
        (tmp_path / f"{name.stdout.decode().strip()}.0").write_text(Path(authority.pem).read_text())
    assert make_secure(speech, speak(speech, ["a", "b"]), verify=trusted).ask("Hi") == "ab"


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_each_version_of_tls_is_spoken(version: str, speech: Speech, authority: Authority) -> None:
    context = authority.server()
    context.minimum_version = context.maximum_version = getattr(ssl.TLSVersion, version.replace(".", "_"))
    with (
        Secure(context, [*speech.before, (*speech.route, speak(speech, ["a", "b"]))]) as server,
        provider(speech, server.url, verify=authority.pem) as asked,
    ):
        assert asked.ask("Hi") == "ab"
        assert set(server.shaken) == {version}


def test_a_version_that_is_too_old_is_refused(authority: Authority) -> None:
    context = authority.server()
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with Secure(context) as server, Ylokh(server.url, verify=authority.pem, retries=0) as asked:
        error = failing(asked)
    assert isinstance(error, APIConnectionError)
    assert "TLS failed" in str(error)


@UNVERIFIED
@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"])
@pytest.mark.parametrize("verify", [True, False], ids=["checked", "verify=False"])
def test_the_environment_names_authorities_as_in_requests(
    variable: str, verify: bool, authority: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with Secure(authority.server(), [(*YLOKH.route, speak(YLOKH, ["x"]))]) as server:
        for value in (authority.pem, str(tmp_path / "other.pem")):
            if value != authority.pem:
                Authority(tmp_path)._ca.cert_pem.write_to_path(value)
            monkeypatch.setenv(variable, value)
            try:
                requests.post(f"{server.url}/v1/chat/completions", data=b"{}", verify=verify, timeout=PATIENCE)
                expected = "x"
            except requests.exceptions.SSLError:
                expected = "certificate verify failed"
            with Ylokh(server.url, verify=verify, retries=0) as asked:
                try:
                    found = str(asked.ask("Hi"))
                except APIConnectionError as error:
                    found = str(error)
            assert expected in found


def test_certificates_that_the_environment_names_and_nobody_finds_are_told(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/bundle.pem")
    with Secure(authority.server()) as server, Ylokh(server.url) as asked:
        error = failing(asked)
    assert isinstance(error, InvalidRequest)
    assert "/no/such/bundle.pem" in str(error)
    assert server.shaken == []


@UNVERIFIED
@pytest.mark.parametrize("own", [False, True], ids=["", "a session of the caller's"])
def test_who_checks_certificates_shares_no_connection_with_who_does_not(own: bool, authority: Authority) -> None:
    """requests' pitfall: what the first request of a session has said held for later ones."""
    with Secure(authority.server(), [(*YLOKH.route, speak(YLOKH, ["x"]))]) as server, requests.Session() as session:
        shared = session if own else None
        trusting = Ylokh(server.url, verify=False, retries=0, session=shared)
        strict = Ylokh(server.url, retries=0, session=shared)
        for _ in range(2):
            assert trusting.ask("Hi") == "x"
            error = failing(strict)
            assert "certificate verify failed" in str(error)
        assert trusting.ask("Hi") == "x"
        trusting.close()
        strict.close()
    assert len(server.requests) == 3


# Certificates of one's own


def test_a_server_sees_the_certificate_of_the_client(speech: Speech, authority: Authority, make_secure: Make) -> None:
    certificate, key, both = authority.client()
    for cert in ((certificate, key), [Path(certificate), Path(key)], both, Path(both)):
        asked = make_secure(speech, speak(speech, ["x"]), authority.demanding(), cert=cert)
        assert asked.ask("Hi") == "x"
        with pickle.loads(pickle.dumps(asked)) as copy:
            assert copy.ask("Hi") == "x"


def test_a_session_of_the_callers_shows_the_certificate_too(authority: Authority, make_secure: Make) -> None:
    both = authority.client()[2]
    with requests.Session() as session:
        assert make_secure(YLOKH, speak(YLOKH, ["x"]), authority.demanding(), cert=both, session=session).ask("Hi")
    with requests.Session() as session:
        session.cert = both
        assert make_secure(YLOKH, speak(YLOKH, ["x"]), authority.demanding(), session=session).ask("Hi") == "x"


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_a_server_that_wants_a_certificate_and_gets_none_is_a_clear_error(
    version: str, speech: Speech, authority: Authority, make_secure: Make
) -> None:
    context = authority.demanding()
    context.minimum_version = context.maximum_version = getattr(ssl.TLSVersion, version.replace(".", "_"))
    error = failing(make_secure(speech, speak(speech, ["x"]), context))
    assert isinstance(error, APIConnectionError)
    assert "cert=" in str(error)


def locked(key: str, path: Path, how: PrivateFormat) -> str:
    loaded = load_pem_private_key(Path(key).read_bytes(), None)
    path.write_bytes(loaded.private_bytes(Encoding.PEM, how, BestAvailableEncryption(b"sesame")))
    return str(path)


@pytest.mark.parametrize("how", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL], ids=["PKCS 8", "traditional"])
@pytest.mark.parametrize("together", [False, True], ids=["two files", "one file"])
def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked_for_it(
    how: PrivateFormat, together: bool, authority: Authority, tmp_path: Path
) -> None:
    """In a process of its own that has a terminal, where OpenSSL would ask."""
    certificate, key, _ = authority.client()
    encrypted = locked(key, tmp_path / "key.pem", how)
    both = tmp_path / "both.pem"
    both.write_text(Path(encrypted).read_text() + Path(certificate).read_text())
    cert: Any = str(both) if together else (certificate, encrypted)
    code = f"import berlin_chat\ntry:\n    berlin_chat.Ylokh(cert={cert!r})\nexcept Exception as e:\n    print(repr(e))"
    import pty

    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=theirs) as process:
        assert process.wait(PATIENCE * 3) == 0
    os.close(theirs)
    said = os.read(ours, 10_000).decode()
    os.close(ours)
    assert "InvalidRequest('cert has a key with a passphrase" in said
    assert "Enter" not in said


def test_a_certificate_that_cannot_be_used_is_refused_at_once(
    speech: Speech, authority: Authority, tmp_path: Path
) -> None:
    certificate, key, both = authority.client()
    other = authority.client("other")[1]
    (tmp_path / "text.pem").write_text("no certificate")
    unreadable = tmp_path / "unreadable.pem"
    unreadable.write_text(Path(both).read_text())
    unreadable.chmod(0)
    wrong: list[Any] = [
        "",
        "/no/such/file.pem",
        str(tmp_path),
        str(tmp_path / "text.pem"),
        certificate,  # without its key
        key,
        (certificate, "/no/such/key.pem"),
        (certificate, other),
        (certificate,),
        (certificate, key, key),
        (certificate, None),
        b"cert.pem",
        True,
        *([str(unreadable)] if os.geteuid() else []),
    ]
    for cert in wrong:
        with pytest.raises(InvalidRequest, match="cert"):
            provider(speech, "https://chat.example", cert=cert)


@pytest.mark.parametrize(
    "content", ["", "no certificate", "-----BEGIN CERTIFICATE-----\nxx\n-----END CERTIFICATE-----\n"]
)
def test_a_file_to_verify_by_that_holds_no_certificate_is_refused_at_once(content: str, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text(content)
    with pytest.raises(InvalidRequest, match="verify names no certificates"):
        Ylokh("https://chat.example", verify=str(tmp_path / "ca.pem"))


def test_a_certificate_that_is_renewed_on_disk_is_taken_for_the_next_connection(
    authority: Authority, make_secure: Make, tmp_path: Path
) -> None:
    cert = tmp_path / "cert.pem"
    cert.write_text(Path(authority.client("first")[2]).read_text())
    seen: list[Any] = []

    def note(request: Recorded, connection: Connection) -> None:
        seen.append(connection.sock.getpeercert()["serialNumber"])  # type: ignore[attr-defined]
        connection.last = True
        speak(YLOKH, ["x"])(request, connection)

    asked = make_secure(YLOKH, note, authority.demanding(), cert=str(cert))
    asked.ask("Hi")
    cert.write_text(Path(authority.client("second")[2]).read_text())
    asked.ask("Hi")
    assert len(set(seen)) == 2


# The wrong protocol


def test_http_spoken_at_a_port_of_tls_is_a_clear_error(speech: Speech, authority: Authority) -> None:
    with Secure(authority.server()) as server:
        asked = provider(speech, server.url.replace("https", "http"), retries=0)
        error = failing(asked)
        asked.close()
    assert isinstance(error, APIConnectionError)
    assert error.partial == ""


def test_tls_spoken_at_a_port_of_http_is_a_clear_error(speech: Speech, wire: Wire) -> None:
    wire.on("GET", ".*", lambda request, connection: None)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(65536)
                sock.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        asked = provider(speech, f"https://127.0.0.1:{listener.getsockname()[1]}", retries=0)
        error = failing(asked)
        asked.close()
        thread.join(PATIENCE)
    assert isinstance(error, APIConnectionError)
    assert "Does the server speak TLS there?" in str(error)


# How a reply ends


@pytest.mark.parametrize("speech", [ACYTOO, BERLIN], ids=["acytoo", "berlin"], indirect=False)
@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_a_reply_that_ends_with_the_connection_needs_the_goodbye_of_tls(
    version: str, speech: Speech, authority: Authority, make_secure: Make
) -> None:
    """Anybody on the way can end a connection; only the server can say that it meant to."""
    context = authority.server()
    context.minimum_version = context.maximum_version = getattr(ssl.TLSVersion, version.replace(".", "_"))
    assert make_secure(speech, speak(speech, ["a", "b"], UntilGoodbye), context).ask("Hi") == "ab"
    cut = make_secure(speech, speak(speech, ["a", "b"], UntilClose), context)
    error = failing(cut)
    assert isinstance(error, StreamInterrupted)
    assert error.partial in ("ab", "a"), "Berlin's last line may have more to come"


@pytest.mark.parametrize("framing", [Chunked, ContentLength], ids=lambda framing: framing.name)
def test_a_reply_that_says_how_long_it_is_needs_no_goodbye(
    framing: type[Framing], speech: Speech, make_secure: Make
) -> None:
    def brief(request: Recorded, connection: Connection) -> None:
        speak(speech, ["a", "b"], framing)(request, connection)
        connection.close()

    asked = make_secure(speech, brief, retries=2)
    for _ in range(3):  # a kept connection that was closed like that is no fault either
        assert asked.ask("Hi") == "ab"


def test_a_kept_connection_that_ends_without_an_answer_is_no_fault_of_tls(make_secure: Make) -> None:
    def once(request: Recorded, connection: Connection) -> None:
        if len(connection.wire.requests) > 1:
            return connection.close()
        return speak(YLOKH, ["x"])(request, connection)

    asked = make_secure(YLOKH, once)
    assert asked.ask("Hi") == "x"
    error = failing(asked)
    assert isinstance(error, APIConnectionError)
    assert "TLS" not in str(error)


@pytest.mark.parametrize("framing", [Chunked, ContentLength], ids=lambda framing: framing.name)
def test_a_reply_that_breaks_off_behind_tls_is_interrupted(
    framing: type[Framing], speech: Speech, make_secure: Make
) -> None:
    def cut(request: Recorded, connection: Connection) -> None:
        parts = speech.parts(["one ", "two"])
        body = framing(connection, speech.kind, b"".join(parts))
        body.part(parts[0] + (b"\n" if speech is BERLIN else b""))
        connection.close()

    error = failing(make_secure(speech, cut))
    assert isinstance(error, StreamInterrupted)
    assert error.partial == "one "


def test_a_reply_in_records_of_one_byte_is_read(speech: Speech, make_secure: Make) -> None:
    def drip(request: Recorded, connection: Connection) -> None:
        class Bytewise:
            def send(self, data: bytes) -> None:
                for byte in data:
                    connection.send(bytes([byte]))

        slow: Any = Bytewise()
        slow.its_end = {}
        body = Chunked(slow, speech.kind, b"")
        for part in speech.parts(["ä", "€", "😀"]):
            body.part(part)
        body.end()

    assert make_secure(speech, drip).ask("Hi") == "ä€😀"


# Cancel and deadline behind TLS


def test_a_reply_that_falls_silent_behind_tls_is_ended(speech: Speech, make_secure: Make) -> None:
    def silent(request: Recorded, connection: Connection) -> None:
        body = Chunked(connection, speech.kind, b"")
        body.part(speech.parts(["one ", "two"])[0] + (b"\n" if speech is BERLIN else b""))
        with contextlib.suppress(OSError):
            connection.wait_until_client_closes()

    asked = make_secure(speech, silent, timeout=60)
    ends_in_time(lambda deadline, cancel: asked.ask("Hi", deadline=deadline, cancel=cancel))


def test_a_question_that_the_server_does_not_read_behind_tls_is_ended(authority: Authority) -> None:
    """Its buffers are full in the middle of a record."""
    context, over = authority.server(), threading.Event()

    def serve() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError):
                deaf.append(context.wrap_socket(plain, server_side=True))

    deaf: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        thread = threading.Thread(target=serve)
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with Ylokh(url, retries=0, timeout=60, verify=authority.pem) as asked:
            ends_in_time(lambda deadline, cancel: asked.ask("x" * 20_000_000, deadline=deadline, cancel=cancel))
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(PATIENCE)
        for sock in deaf:
            sock.close()
