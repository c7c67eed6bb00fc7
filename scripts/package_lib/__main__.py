# SPDX-License-Identifier: MIT
"""scripts/package: one command for each kind of package."""

import argparse
import subprocess
import sys
from pathlib import Path

from package_lib import build, share

ROOT = Path(__file__).parents[2]
KINDS = {
    "sdist": (build.sdist, "the source, with what building and testing takes"),
    "wheel": (build.wheel, "for Python 3.11 and newer on machines like this one"),
    "deb": (
        build.deb,
        "for this release of Debian; on Debian 12 with copies of the Python packages",
    ),
    "share": (share.write, "manuals and shell completion, as below /usr/share"),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/package", description="Make a package.")
    kinds = parser.add_subparsers(metavar="KIND", required=True)
    for name, (make, text) in KINDS.items():
        kind = kinds.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        kind.add_argument(
            "folder", metavar="FOLDER", type=Path, nargs="?", help="where it goes (default: dist)"
        )
        kind.set_defaults(make=make)
    choice = parser.parse_args()
    folder: Path = (choice.folder or ROOT / "dist").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for path in choice.make(ROOT, folder):
            print(path)
    except subprocess.CalledProcessError as error:
        print(f"scripts/package: {error}", file=sys.stderr)
        return 1
    return 0


sys.exit(main())
