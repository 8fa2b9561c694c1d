#!/usr/bin/env bash
# Make the Python environment and report what was found. Quick if nothing changed; run it as often as you like.
#
#   bash scripts/setup.sh                     .venv beside the code, with the versions of scripts/constraints.txt
#   D3Q_PYTHON=python3 bash scripts/setup.sh  that interpreter; only packages that it lacks are installed
#   D3Q_CONSTRAINTS= bash scripts/setup.sh    any versions that pyproject.toml allows
set -euo pipefail

absolute() { echo "$(cd -- "$(dirname -- "$1")" > /dev/null && pwd)/$(basename -- "$1")"; }
fail() { echo "setup: $*" >&2; exit 1; }

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." > /dev/null && pwd)
constraints=${D3Q_CONSTRAINTS-$root/scripts/constraints.txt}
if [[ -n $constraints ]]; then
    [[ -f $constraints ]] || fail "D3Q_CONSTRAINTS: no such file: $constraints"
    constraints=$(absolute "$constraints")
fi
python=$root/.venv/bin/python
if [[ -n ${D3Q_PYTHON-} ]]; then
    python=$(command -v -- "$D3Q_PYTHON") || fail "D3Q_PYTHON: no such interpreter: $D3Q_PYTHON"
    python=$(absolute "$python")
fi
cd -- "$root"

work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT
pip=("$python" -m pip --disable-pip-version-check install --root-user-action=ignore)
[[ -t 1 ]] || pip+=(--quiet)

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; }

make_venv() {
    local base
    for base in python3 python3.13 python3.12 python3.11; do
        if is_new_enough "$base"; then
            echo "setup: making .venv with $base"
            "$base" -m venv --clear .venv || fail "$base cannot make .venv (on Debian: apt-get install python3-venv)"
            return
        fi
    done
    fail "Python 3.11 or newer is needed; name one in D3Q_PYTHON"
}

# Changes with the interpreter, its packages, and the requirements.
fingerprint() {
    "$python" - pyproject.toml scripts/setup.sh ${constraints:+"$constraints"} << 'PY'
import hashlib, importlib.metadata, pathlib, sys

installed = sorted(f"{each.metadata['Name']} {each.version}" for each in importlib.metadata.distributions())
digest = hashlib.sha256("\n".join([sys.prefix, sys.version, *installed, *sys.argv[1:]]).encode())
for path in sys.argv[1:]:
    digest.update(pathlib.Path(path).read_bytes())
print(digest.hexdigest())
PY
}

install_into_venv() {
    local pinned=()
    if [[ -n $constraints ]]; then
        # torch first, with its exact version: for a range, an index may offer another build first.
        mapfile -t pinned < <(grep -E '^torch(vision)?==' "$constraints" || true)
        echo "setup: installing ${pinned[*]} and the rest (several GB where torch comes with CUDA)"
        [[ ${#pinned[@]} -eq 0 ]] || "${pip[@]}" -c "$constraints" "${pinned[@]}"
    fi
    "${pip[@]}" ${constraints:+-c "$constraints"} -e '.[dev]'
}

# Install missing requirements of pyproject.toml. Constraints apply to new packages; installed ones are not changed.
install_missing() {
    "$python" - "$work" ${constraints:+"$constraints"} << 'PY'
import importlib.metadata, pathlib, re, sys, tomllib

def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()

work, *constraints = map(pathlib.Path, sys.argv[1:])
project = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]
wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
(work / "requirements.txt").write_text("\n".join(wanted) + "\n")
installed = {plain(each.metadata["Name"] or "") for each in importlib.metadata.distributions()}
lines = [line for path in constraints for line in path.read_text().splitlines()]
kept = [line for line in lines if plain(re.split(r"[^\w.-]", line, maxsplit=1)[0]) not in installed]
(work / "constraints.txt").write_text("\n".join(kept) + "\n")
PY
    echo "setup: installing what $python lacks"
    "${pip[@]}" -c "$work/constraints.txt" -r "$work/requirements.txt"
}

report() {
    "$python" - << 'PY'
import importlib.metadata, importlib.util, pathlib, runpy, sys

torch = pathlib.Path(importlib.util.find_spec("torch").origin).with_name("version.py")
build = runpy.run_path(str(torch))
print("python   ", sys.version.split()[0], sys.executable)
print("torch    ", build["__version__"], f"built for CUDA {build['cuda']}" if build["cuda"] else "built without CUDA")
PY
    local gpu compiler nvcc
    gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader 2> /dev/null | paste -sd, -) || gpu=
    compiler=$(command -v c++ g++ clang++ | head -n 1) || true
    nvcc=$(command -v nvcc) || true
    echo "gpu       ${gpu:-none found}"
    echo "compiler  ${compiler:-none found}${nvcc:+, $nvcc}"
}

if [[ -z ${D3Q_PYTHON-} ]]; then
    if ! { is_new_enough "$python" && "$python" -c 'import pip'; } 2> /dev/null; then
        make_venv
    fi
else
    is_new_enough "$python" || fail "D3Q_PYTHON: Python 3.11 or newer is needed: $python"
fi
if [[ $(cat .setup-stamp 2> /dev/null) != "$(fingerprint)" ]]; then
    if [[ -z ${D3Q_PYTHON-} ]]; then
        install_into_venv
    else
        install_missing
    fi
    fingerprint > .setup-stamp
fi
report
"$python" -m ops.build || echo "setup: continuing without the C++ kernels; see the compiler's message above" >&2
