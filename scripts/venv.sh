# Sets up .venv for the scripts beside this file, which source it. It sets ROOT, the folder of the repository.

ROOT=$(dirname "$(dirname "$(readlink -f "$0")")")
PYTHON=${PYTHON:-python3}

say() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
}

fail() {
    say "$@"
    exit 1
}

# setup_venv EXTRA: makes .venv if there is none that fits, and installs the package with that extra if it is not
# yet installed as setup.cfg has it now. Stamps inside .venv say what is done; one is written when its step has
# succeeded, never before. Nothing here reads standard input, which may hold the user's prompt.
setup_venv() {
    _look_at_python
    _is_installed "$1" && return
    # One at a time: the lock is on this file description, and ends with it, however this process ends.
    exec 9<"$ROOT/setup.cfg"
    "$PYTHON" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)' 2>/dev/null </dev/null || true  # the rest works without
    _is_installed "$1" || _install "$1"
    exec 9<&-
}

_look_at_python() {
    command -v "$PYTHON" >/dev/null ||
        fail "there is no $PYTHON here. Install Python 3.10 or newer, or name one: PYTHON=/path/to/python $0"
    # A virtual environment has the prefix of the Python that it was made with.
    found=$("$PYTHON" -c '
import sys
print("%d.%d.%d" % sys.version_info[:3] + " in " + getattr(sys, "base_prefix", sys.prefix))
sys.exit(sys.version_info < (3, 10))' </dev/null) || {
        found=${found:+which is Python ${found%% *}}
        fail "Python 3.10 or newer is needed, not $PYTHON, ${found:-which does not run}. \
Name one: PYTHON=/path/to/python $0"
    }
    # The scripts in .venv hold its path, so that it is of no use in a copy of the folder.
    base="Python $found for $ROOT"
    wanted="$base, $(cd "$ROOT" && cat setup.cfg setup.py berlin_chat/version.py | cksum)"
}

_is_installed() {
    # dev includes the other extras.
    for stamp in "installed-$1" installed-dev; do
        [ "$(cat "$ROOT/.venv/$stamp" 2>/dev/null)" = "$wanted" ] && return
    done
    return 1
}

_install() (
    say "setting up .venv with Python ${found%% *} (only the first time, it takes a while) …"
    if [ "$(cat "$ROOT/.venv/made" 2>/dev/null)" != "$base" ]; then
        "$PYTHON" -I -c 'import ensurepip, venv' 2>/dev/null </dev/null ||
            fail "$PYTHON has no venv module. On Debian and Ubuntu: apt-get install python3-venv"
        "$PYTHON" -I -m venv --clear "$ROOT/.venv" >&2 </dev/null ||
            fail "no virtual environment could be made in $ROOT/.venv"
        printf '%s\n' "$base" >"$ROOT/.venv/made"
    fi
    cd "$ROOT" || exit
    rm -f .venv/installed-*
    # With any version of pip the same way of building: isolated, with a setuptools that is new enough.
    .venv/bin/python -m pip install --use-pep517 --no-input --disable-pip-version-check -e ".[$1]" \
        >.venv/pip.log 2>&1 </dev/null || {
        tail -n 20 .venv/pip.log >&2
        fail "pip could not install what is needed. Its last lines stand above; all of them are in $ROOT/.venv/pip.log"
    }
    # pip compiles what it copies, but not what it only links to.
    .venv/bin/python -m compileall -q berlin_chat </dev/null >&2 || true
    printf '%s\n' "$wanted" >".venv/installed-$1"
)
