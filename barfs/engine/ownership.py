# SPDX-License-Identifier: MIT
"""Whose things are, once this process has been forked: those of the process that made them.

Rule 1: a child uses, ends and removes nothing of its parent's. What would asks its `Owner` first,
        and before it takes a lock: the thread that held it when the process was forked is not in
        the child.
Rule 2: a child holds nothing of its parent's either, or a device that the parent closes would stay
        open. Its windows are not mapped there (`barfs.engine.mapping`), and each descriptor of a
        `Holder` becomes an empty file: objects that close theirs later close no other's.

`forks.h` says how a fork is noticed. A program that is executed inherits nothing: every descriptor
is close-on-exec.
"""

import contextlib
import os
import weakref
from collections.abc import Iterable
from typing import Protocol

from barfs.engine.extension import lib


class Owner:
    """The process that makes it."""

    __slots__ = ("_forks",)

    def __init__(self) -> None:
        self._forks = lib.barfs_forks

    @property
    def is_here(self) -> bool:
        """Whether this is that process, and not one that was forked from it."""
        return self._forks == lib.barfs_forks


class Holder(Protocol):
    """What has descriptors that a child is not to hold."""

    def descriptors(self) -> Iterable[int]:
        """Those that are open now. One that is about to be closed is none of them any more."""


_holders: "weakref.WeakSet[Holder]" = weakref.WeakSet()


def keep_from_children(holder: Holder) -> None:
    """See to it that no child holds its descriptors, for as long as it lives."""
    _holders.add(holder)


def _let_go() -> None:
    """In the child: replace them all by an empty file in memory, which takes and gives nothing."""
    fds = {fd for holder in _holders for fd in holder.descriptors() if fd >= 0}
    _holders.clear()
    if not fds:
        return
    # First: the process may have no descriptor to spare.
    with contextlib.suppress(OSError):
        os.close(min(fds))
    empty = os.memfd_create("of-the-parent", os.MFD_CLOEXEC)
    for fd in fds - {empty}:
        os.dup2(empty, fd, inheritable=False)
    if empty not in fds:
        os.close(empty)


os.register_at_fork(after_in_child=_let_go)
