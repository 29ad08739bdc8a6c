# Runs on a rented node: installs the head's Python and this project's requirements in the folder VENV, unless the image has them.
# usage: install.sh VENV PYTHON TORCH PACKAGE…   PYTHON: 3.11.7; TORCH: cu129 (https://download.pytorch.org/whl/cu129), or ""
#
# It may be killed at any time and run again: a VENV without the mark of a complete installation is removed, and uv's cache keeps
# the downloads. After a complete installation it does nothing.
set -euo pipefail
venv=$1 python=$2 torch=$3
shift 3
mark=$venv/installed-$(printf '%s\n' "$python" "$torch" "$@" | sha256sum | cut -c 1-16)

image_has_it() {
    python3 - "$python" "$torch" "$@" << 'END'
import importlib.metadata as metadata, re, sys
python, torch, *packages = sys.argv[1:]
if tuple(map(int, python.split(".")[:2])) != sys.version_info[:2]:
    sys.exit(1)
for package in packages:
    name, _, version = re.match(r"([\w.-]+)(?:\[.*?\])?(==)?([\w.]*)", package).groups()
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        sys.exit(1)
    if name == "ray" and found != version or name == "torch" and torch and not found.endswith("+" + torch):
        sys.exit(1)
END
}

mkdir -p "$(dirname "$venv")"
exec 9> "$venv.lock"
flock 9 # an earlier set-up whose connection broke may still run
[ ! -e "$mark" ] || exit 0
if command -v ray > /dev/null && image_has_it "$@"; then exit 0; fi

uv=$(command -v uv || echo "$venv.uv/bin/uv")
if ! "$uv" --version > /dev/null 2>&1; then
    if python3 -m pip --version > /dev/null 2>&1; then
        python3 -m pip install -q --upgrade --target "$venv.uv" uv
    else
        command -v curl > /dev/null || { apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -qy install curl ca-certificates; }
        curl -LsSf https://astral.sh/uv/install.sh | env UV_INSTALL_DIR="$venv.uv/bin" UV_NO_MODIFY_PATH=1 sh
    fi
fi
export UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-180} # hosts may be slow
rm -rf "$venv"                                # `uv venv` refuses an existing folder, or prompts
if ! "$uv" venv -q --no-project --python "$python" "$venv"; then
    echo "There is no Python $python for this box: another ${python%.*} will do." >&2
    rm -rf "$venv"
    "$uv" venv -q --no-project --python "${python%.*}" "$venv"
fi
"$uv" pip install -q -p "$venv" ${torch:+--torch-backend "$torch"} "$@"
path="export PATH=$venv/bin:\$PATH"
grep -qxF "$path" ~/.bashrc || echo "$path" >> ~/.bashrc
touch "$mark"
