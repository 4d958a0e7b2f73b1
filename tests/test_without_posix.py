"""What Windows, and a Python without a system below it, do not have: the core does without.

Neither can be run here. A fresh process takes from the standard library what is there on POSIX only, before anything of
ours is imported, and then uses the core as its callers do.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from berlin_chat.server import LocalServer
from command import environment
from wire import PATIENCE

#: Takes all that away: modules cannot be imported, names are not there.
TAKEN = """
import os, select, signal, socket, sys

MODULES = "fcntl grp pty pwd readline resource syslog termios tty".split()
NAMES = {
    os: "O_CLOEXEC O_DIRECTORY O_NOCTTY O_NOFOLLOW O_NONBLOCK fchmod fchown fork forkpty getegid geteuid getgid getpgid"
    " getuid killpg mkfifo posix_spawn pread pwrite register_at_fork sched_getaffinity setsid uname",
    signal: "SIGALRM SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGTSTP SIGUSR1 SIGUSR2 SIGWINCH alarm"
    " pthread_kill pthread_sigmask set_wakeup_fd setitimer siginterrupt",
    socket: "AF_UNIX MSG_DONTWAIT SO_REUSEPORT",
    select: "epoll poll",
}
for module in MODULES:
    assert sys.modules.get(module) is None, f"{module} was imported before it was taken away"
    sys.modules[module] = None
for module, names in NAMES.items():
    for name in names.split():
        if hasattr(module, name):  # another system has fewer
            delattr(module, name)
assert not hasattr(os, "fork") and not hasattr(os, "register_at_fork") and not hasattr(signal, "SIGHUP")
"""

CORE = """
import threading, warnings

from berlin_chat import Cancelled, CancelToken, Conversation, History, OpenAICompatible, ask_many, get_provider, race

url, folder = sys.argv[1:]
account = {"account": "me", "password": "any"}
for name in ("openai", "ylokh", "berlin", "h2o", "acytoo"):
    with get_provider(name, base_url=url, **(account if name == "berlin" else {})) as provider:
        assert "Hi" in provider.ask("Hi"), name
        assert "".join(provider.stream("Hi")) == provider.ask("Hi"), name
        token = CancelToken()
        stream = provider.stream("word " * 100, cancel=token)
        pieces = [next(stream)]
        threading.Thread(target=token.cancel).start()
        try:
            pieces.extend(stream)
        except Cancelled as error:
            assert error.partial == "".join(pieces), name
        else:
            sys.exit(f"{name} was not cancelled")

provider = OpenAICompatible(base_url=url)
took = []
for _ in range(2):  # the second run reads the first one's answers
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        answers = list(ask_many(provider, ["a", "b", "c"], checkpoint=f"{folder}/answers.jsonl"))
    assert all(answer.prompt in answer.reply for answer in answers), answers
    took.append([answer.reply.seconds for answer in answers])
    (warning,) = said
    assert "cannot be locked" in str(warning.message) and "let no other batch" in str(warning.message)
assert took[0] == took[1]
assert "Hi" in "".join(race([provider, provider], "Hi"))

with History(f"{folder}/chats.db") as history:
    conversation = Conversation(provider, history=history)
    conversation.ask("My name is Ada.")
    assert "What is my name?" in conversation.ask("What is my name?")
with History(f"{folder}/chats.db") as history:
    (kept,) = history.conversations()
    assert len(history.messages(kept.id)) == 4
provider.close()
print("done")
"""

ASK = """
from berlin_chat.cli import main
main()
"""


def run(code: str, *arguments: str, says: str = "") -> str:
    """What a process without POSIX prints, which complains of nothing and says no more beside it."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", TAKEN + code, *arguments],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=2 * PATIENCE,
    )
    assert (ran.returncode, ran.stderr) == (0, says), ran.stderr
    return ran.stdout


def test_the_core_asks_cancels_keeps_and_closes(tmp_path: Path) -> None:
    with LocalServer(delay=0.01) as server:
        assert run(CORE, server.url, str(tmp_path)) == "done\n"
        assert server.conversations == []


def test_the_command_asks_a_server() -> None:
    with LocalServer() as server:
        assert "Why is the sky blue?" in run(ASK, "ask", "--base-url", server.url, "Why is the sky blue?")


def test_the_command_asks_its_own_server() -> None:
    note = "berlin-chat: no address is configured, so this process answers itself: an echo, no model. See --base-url.\n"
    assert "Why is the sky blue?" in run(ASK, "ask", "Why is the sky blue?", says=note)
