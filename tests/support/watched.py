# SPDX-License-Identifier: MIT
"""Mounts of a device that writes down each access it gets by message."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from barfs.layout import Layout
from tests.support import Mounted, Served, mounted, served
from tests.support.engine_bench import Place, split


@dataclass(frozen=True)
class Watched:
    """A mount of a device that writes down what reaches it by message."""

    mount: Mounted
    server: Served
    width: int

    def region(self, name: str = "bar0") -> Path:
        return self.mount.device() / name

    def places(self, name: str = "bar0") -> list[Place]:
        text = self.region(f"{name}.layout").read_text()
        return [Place(s.start, s.end, s.width, s.allowed) for s in Layout.from_text(text).segments]

    def accesses(self) -> list[tuple[str, str, int, int]]:
        """The accesses since the last call, as (r or w, region, offset, width)."""
        lines = [line.split() for line in self.server.accesses()]
        return [(line[0], line[1], int(line[2], 16), int(line[3])) for line in lines]

    def expected(
        self, direction: str, offset: int, count: int, name: str = "bar0"
    ) -> list[tuple[str, str, int, int]]:
        accesses = split(self.places(name), self.width, offset, count)
        return [(direction, name, access.offset, access.width) for access in accesses]


@contextlib.contextmanager
def watched(folder: Path, options: str, description: Path | None = None) -> Iterator[Watched]:
    width = next((int(o[6:]) for o in options.split(",") if o.startswith("width=")), 4)
    with (
        served(folder, *([description] if description else [])) as server,
        mounted(folder, server.name, options=options) as mount,
    ):
        server.accesses()
        yield Watched(mount, server, width)


@contextlib.contextmanager
def opened(path: Path, flags: int = os.O_RDWR) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)
