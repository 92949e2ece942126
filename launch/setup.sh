# Sourced by the launch scripts: one virtual environment beside the code, made once and again when setup.cfg changes.

# setup_venv WHAT: installs WHAT ('.' or '.[dev]') in editable form into .venv; nothing to do takes milliseconds.
setup_venv() {
  local what=$1 python=${PYTHON:-python3} stamp
  stamp=".venv/installed-$(printf '%s' "$what" | tr -c 'a-z\n' '_')"
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: $("$python" --version) is too old; r1jax needs Python 3.11 or newer (set PYTHON=/path/to/python3)" >&2
    return 1
  }
  if [ -f "$stamp" ] && cmp -s "$stamp" setup.cfg; then return 0; fi
  echo "installing r1jax $what into .venv …"
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --upgrade pip
  .venv/bin/python -m pip install --quiet -e "$what"
  cp setup.cfg "$stamp"
}
