# SPDX-License-Identifier: MIT
"""The environment that packages and virtual environments are built in, the same for every user.

    python -I environment.py COMMAND...     runs a command in it; that Python needs pip

Rule 1: it is made from what is named here, not by removing what is known to do harm. A variable or
        a file below the user's home may change what a compiler, dpkg, setuptools or pip makes. A
        wheel in pip's cache may come from another Python of the same version, RUNPATH included:
        the cache does not tell these apart.
Rule 2: what leads to the package index stays: proxies, certificates, the index itself and its
        credentials, from variables and from pip's configuration files alike. Folders of wheels
        (find-links) are an index only if pip is set to use no other (no-index).
Rule 3: standard library only, and nothing of barfs: it runs before anything is installed.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

NETWORK = (
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
)

# Options of pip (https://pip.pypa.io/en/stable/topics/configuration) that say where packages come
# from, and how to get there.
INDEX = (
    *("index-url", "pypi-url", "extra-index-url", "no-index", "trusted-host"),
    *("cert", "client-cert", "proxy", "keyring-provider"),
    *("timeout", "default-timeout", "retries"),
)

# What pip finds its configuration files by.
CONFIGURATION = ("HOME", "XDG_CONFIG_HOME", "XDG_CONFIG_DIRS", "PIP_CONFIG_FILE")


def clean(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment to build in, for a user with this one. Raises CalledProcessError for a
    configuration that pip cannot read."""
    made = {name: environment[name] for name in (*NETWORK, "TMPDIR") if name in environment}
    netrc = Path(environment.get("NETRC") or Path(environment.get("HOME", "/"), ".netrc"))
    if netrc.is_file():
        made["NETRC"] = str(netrc)
    return {
        **made,
        **_index(environment),
        "PATH": PATH,
        "HOME": "/nonexistent",  # for .pydistutils.cfg, .config/dpkg, .local/lib and the like
        "LC_ALL": "C.UTF-8",
        "PYTHONNOUSERSITE": "1",
        "PIP_CONFIG_FILE": os.devnull,  # pip then reads none of its files
        "PIP_NO_CACHE_DIR": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
    }


def _index(environment: Mapping[str, str]) -> dict[str, str]:
    """The settings that lead to the index, as variables; those of the user go before files."""
    settings = _configured(environment)
    for option in (*INDEX, "find-links"):
        if value := environment.get(_variable(option)):
            settings[option] = value
    kept = (*INDEX, "find-links") if _is_on(settings.get("no-index", "")) else INDEX
    return {_variable(option): settings[option] for option in kept if settings.get(option)}


def _variable(option: str) -> str:
    return "PIP_" + option.upper().replace("-", "_")


def _configured(environment: Mapping[str, str]) -> dict[str, str]:
    """The settings of `pip install` in the configuration files of pip."""
    found = {name: environment[name] for name in CONFIGURATION if name in environment}
    listed = subprocess.run(
        [sys.executable, "-I", "-m", "pip", "config", "list"],
        # A file may ask for quiet; pip would then list nothing.
        env={**found, "PATH": PATH, "PIP_QUIET": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    sections: dict[str, dict[str, str]] = {"global": {}, "install": {}}
    for line in listed.splitlines():
        name, equals, value = line.partition("=")
        section, _, option = name.rpartition(".")
        if equals and section in sections:
            sections[section][option] = str(ast.literal_eval(value))
    return sections["global"] | sections["install"]


def _is_on(value: str) -> bool:
    return value.lower() in ("1", "y", "yes", "t", "true", "on")


if __name__ == "__main__":
    os.execve(sys.argv[1], sys.argv[1:], clean())
