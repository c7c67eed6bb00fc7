# SPDX-License-Identifier: MIT
"""Ownership across fork: resources belong to the process that made them.

Rule 1: a child uses, ends and removes nothing that its parent owns. Code that would checks its
        `Owner` first, and before it takes a lock: the thread that held the lock when the process
        forked does not exist in the child.
Rule 2: a child keeps nothing of its parent's open, or a device that the parent closes would stay
        open. The windows are not mapped in the child (`barfs.engine.mapping`), and each descriptor
        of a `Holder` becomes an empty file, so that closing it later closes no other file.

`forks.h` tells how a fork is noticed. A program that is executed inherits nothing: every descriptor
is close-on-exec.
"""

import contextlib
import os
import weakref
from collections.abc import Iterable
from typing import Protocol

from barfs.engine.extension import lib


class Owner:
    """The process that made this object."""

    __slots__ = ("_forks",)

    def __init__(self) -> None:
        self._forks = lib.barfs_forks

    @property
    def is_here(self) -> bool:
        """Whether this process is the owner, and not a child that was forked from it."""
        return self._forks == lib.barfs_forks


class Holder(Protocol):
    """An object with descriptors that a child must not keep open."""

    def descriptors(self) -> Iterable[int]:
        """The descriptors that are open now, without one that is about to be closed."""


_holders: "weakref.WeakSet[Holder]" = weakref.WeakSet()


def keep_from_children(holder: Holder) -> None:
    """Keep the descriptors of `holder` out of children, for as long as it lives."""
    _holders.add(holder)


def _let_go() -> None:
    """In the child: replace them all by an empty file in memory."""
    fds = {fd for holder in _holders for fd in holder.descriptors() if fd >= 0}
    _holders.clear()
    if not fds:
        return
    # Close one first: the process may have no descriptor to spare.
    with contextlib.suppress(OSError):
        os.close(min(fds))
    empty = os.memfd_create("of-the-parent", os.MFD_CLOEXEC)
    for fd in fds - {empty}:
        os.dup2(empty, fd, inheritable=False)
    if empty not in fds:
        os.close(empty)


os.register_at_fork(after_in_child=_let_go)
