# SPDX-License-Identifier: MIT
"""What leads to the package index, for a chroot that sees files of this machine below /host.

Prints `bind PATH` for each file or folder that must be there, then NAME=VALUE for each variable.
"""

import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from package_lib import environment

# The chroot has its own.
OWN = {"PATH", "HOME", "TMPDIR", "LC_ALL", "PYTHONNOUSERSITE", "PIP_CONFIG_FILE"}
PLACE = re.compile(r"(?<!\S)(file://)?(/\S+)")

places: set[str] = set()


def moved(match: re.Match[str]) -> str:
    scheme, place = match[1] or "", match[2]
    # The files of an index are often in a folder beside it, which it names relatively.
    places.add(os.path.dirname(place.rstrip("/")) if scheme else place)
    return f"{scheme}/host{place}"


found = {name: text for name, text in environment.clean().items() if name not in OWN}
lines = [f"{name}={PLACE.sub(moved, ' '.join(text.split()))}" for name, text in found.items()]
for line in [f"bind {place}" for place in sorted(places)] + lines:
    print(line)
