# Sets up an environment for the scripts beside this file, which source it. It sets ROOT, the folder of the repository;
# the environment is the folder VENV in it.

ROOT=$(dirname "$(dirname "$(readlink -f "$0")")")
VENV=.venv

say() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
}

fail() {
    say "$@"
    exit 1
}

# setup_venv EXTRA: makes the environment if there is none that fits, and installs the package with that extra if it is
# not yet installed as setup.cfg has it now. Stamps inside it say what is done; one is written when its step has
# succeeded, never before. Nothing here reads standard input, which may hold the user's prompt.
setup_venv() {
    PYTHON=${PYTHON:-python3}
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
    # The scripts in an environment hold its path, so that it is of no use in a copy of the folder.
    base="Python $found for $ROOT"
    wanted="$base, $(cd "$ROOT" && cat setup.cfg setup.py scripts/lowest berlin_chat/version.py | cksum)"
}

_is_installed() {
    # dev includes the other extras.
    for stamp in "installed-$1" installed-dev; do
        [ "$(cat "$ROOT/$VENV/$stamp" 2>/dev/null)" = "$wanted" ] && return
    done
    return 1
}

_install() (
    say "setting up $VENV with Python ${found%% *} (only the first time, it takes a while) …"
    if [ "$(cat "$ROOT/$VENV/made" 2>/dev/null)" != "$base" ]; then
        [ ! -L "$ROOT/$VENV" ] || fail "$VENV is a link to what may be another's: remove it"
        "$PYTHON" -I -c 'import ensurepip, venv' 2>/dev/null </dev/null ||
            fail "$PYTHON has no venv module. On Debian and Ubuntu: apt-get install python3-venv"
        "$PYTHON" -I -m venv --clear "$ROOT/$VENV" >&2 </dev/null ||
            fail "no virtual environment could be made in $ROOT/$VENV"
        printf '%s\n' "$base" >"$ROOT/$VENV/made"
    fi
    cd "$ROOT" || exit
    rm -f "$VENV"/installed-*
    # lowest is no extra, but all of them in their lowest versions.
    if [ "$1" = lowest ]; then
        "$VENV/bin/python" scripts/lowest requirements >"$VENV/requirements.txt" </dev/null || exit
        set -- "$1" -r "$VENV/requirements.txt"
    else
        set -- "$1" -e ".[$1]"
    fi
    # With any version of pip the same way of building: isolated, with a setuptools that is new enough.
    "$VENV/bin/python" -m pip install --use-pep517 --no-input --disable-pip-version-check "$2" "$3" \
        >"$VENV/pip.log" 2>&1 </dev/null || {
        tail -n 20 "$VENV/pip.log" >&2
        fail "pip could not install what is needed. Its last lines stand above; all of them are in $ROOT/$VENV/pip.log"
    }
    # pip compiles what it copies, but not what it only links to.
    "$VENV/bin/python" -m compileall -q berlin_chat </dev/null >&2 || true
    printf '%s\n' "$wanted" >"$VENV/installed-$1"
)
