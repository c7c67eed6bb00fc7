# SPDX-License-Identifier: MIT
"""The FUSE file system: serves names, attributes and texts from a `Tree` through pyfuse3.

Rule 1: this and `register_files` are the only Python that turns errors into errnos, except those
        of accesses: the engine reports an errno itself (`barfs.errors`).
Rule 2: handlers raise nothing but FUSEError: any other exception makes pyfuse3 end the daemon. A
        bug fails one request with EIO and logs one traceback.
Rule 3: the kernel checks permissions (`default_permissions`) but exempts root, so the handlers
        refuse what root must not do either.

The gate (`barfs/fuse/gate.h`) answers opening, reading, writing and closing of region files; these
requests never reach this class.
"""

import errno
import functools
import itertools
import logging
import mmap
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NoReturn, ParamSpec, TypeVar

import pyfuse3
from pyfuse3 import FUSEError

from barfs.fuse.host_files import HostFiles
from barfs.fuse.register_files import OpenRegister, RegisterFiles
from barfs.fuse.tree import (
    Directory,
    HostNode,
    Link,
    Node,
    RegionFile,
    RegisterDirectory,
    RegisterFile,
    RegisterNode,
    Text,
    Tree,
)
from barfs.registers.places import Place

ATTRIBUTE_TIMEOUT = 300.0
"""Seconds that the kernel may cache names and attributes; every change invalidates them."""

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


def _guarded(
    handler: Callable[P, Coroutine[Any, Any, T]],
) -> Callable[P, Coroutine[Any, Any, T]]:
    """Apply rule 2 to a handler."""

    @functools.wraps(handler)
    async def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await handler(*args, **kwargs)
        except FUSEError:
            raise
        except Exception as error:
            log.exception("%s failed", handler.__name__)
            raise FUSEError(errno.EIO) from error

    return guarded


class Filesystem(pyfuse3.Operations):
    """Serves `tree`; `uid` and `gid` own every file."""

    def __init__(self, tree: Tree, *, uid: int, gid: int) -> None:
        super().__init__()
        self.tree = tree
        self._uid = uid
        self._gid = gid
        self._time_ns = time.time_ns()
        self._registers = RegisterFiles()
        self._host_files = HostFiles()
        # Far from inode numbers, which are the handles of everything else.
        self._handles = itertools.count(1 << 62)
        self._open_registers: dict[int, OpenRegister] = {}
        self._listings: dict[int, tuple[RegisterDirectory, Place, list[str]]] = {}

    def _node(self, inode: int) -> Node:
        try:
            return self.tree.nodes[inode]
        except KeyError:
            raise FUSEError(errno.ENXIO) from None

    def _directory(self, inode: int) -> Directory:
        node = self._node(inode)
        if not isinstance(node, Directory):
            raise FUSEError(errno.ENOTDIR)
        return node

    def _attributes(self, node: Node) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = node.inode
        entry.st_mode = node.mode
        entry.st_nlink = 1
        entry.st_uid = self._uid
        entry.st_gid = self._gid
        entry.st_size = node.size
        entry.st_blksize = node.blksize
        entry.st_blocks = node.blocks
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = self._time_ns
        entry.entry_timeout = entry.attr_timeout = ATTRIBUTE_TIMEOUT
        return entry

    @_guarded
    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        directory = self._directory(parent_inode)
        node = self.tree.lookup(directory, name)
        if node is None and isinstance(directory, RegisterDirectory):
            place = await self._registers.load(directory)
            node = self.tree.register_node(directory, place, name)
        if isinstance(node, RegisterNode):
            node.lookups += 1
        if node is None:
            raise FUSEError(errno.ENOENT)
        return self._attributes(node)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """No reply is sent, so not even a FUSEError may leave it."""
        try:
            for inode, count in inode_list:
                self.tree.forget(inode, count)
        except Exception:
            log.exception("forget failed")

    @_guarded
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._attributes(self._node(inode))

    @_guarded
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Accept times, and sizes of writable files, but change nothing, as sysfs does; refuse
        modes and owners."""
        if fields.update_mode or fields.update_uid or fields.update_gid:
            raise FUSEError(errno.EPERM)
        node = self._node(inode)
        writable = (isinstance(node, RegionFile) and node.region.writable) or (
            isinstance(node, RegisterFile) and node.writable
        )
        if fields.update_size and not writable:
            raise FUSEError(errno.EACCES)
        return self._attributes(node)

    @_guarded
    async def _refuse(self, *_arguments: object) -> NoReturn:
        """Only devices add and remove files: users cannot create, move or remove any."""
        raise FUSEError(errno.EPERM)

    create = mknod = mkdir = symlink = link = unlink = rmdir = rename = _refuse  # type: ignore[assignment]

    @_guarded
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        node = self._node(inode)
        if not isinstance(node, Link):
            raise FUSEError(errno.EINVAL)
        return node.target

    @_guarded
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        directory = self._directory(inode)
        if not isinstance(directory, RegisterDirectory):
            return directory.inode
        place = await self._registers.load(directory)
        handle = next(self._handles)
        names = await self._registers.names(directory, place)
        self._listings[handle] = directory, place, names
        return handle

    @_guarded
    async def releasedir(self, fh: int) -> None:
        self._listings.pop(fh, None)

    def _list_registers(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        directory, place, names = self._listings[fh]
        for number in range(start_id, len(names)):
            name = names[number].encode()
            node = self.tree.register_node(directory, place, name)
            if node is None:  # the device has left
                return
            if not pyfuse3.readdir_reply(token, name, self._attributes(node), number + 1):
                return
            node.lookups += 1

    @_guarded
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        if fh in self._listings:
            self._list_registers(fh, start_id, token)
            return
        directory = self._directory(fh)
        for name, node in sorted(self.tree.listing(directory), key=lambda item: item[1].inode):
            if node.inode <= start_id:
                continue
            if not pyfuse3.readdir_reply(token, name, self._attributes(node), node.inode):
                return
            if isinstance(node, RegisterNode):
                node.lookups += 1

    @_guarded
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        node = self._node(inode)
        if isinstance(node, Directory):
            raise FUSEError(errno.EISDIR)
        if isinstance(node, RegisterFile):
            mode = flags & os.O_ACCMODE
            if not (node.readable or mode == os.O_WRONLY) or not (
                node.writable or mode == os.O_RDONLY
            ):
                raise FUSEError(errno.EACCES)
            handle = next(self._handles)
            self._open_registers[handle] = OpenRegister(node)
            return pyfuse3.FileInfo(fh=handle, direct_io=True)
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise FUSEError(errno.EACCES)
        if isinstance(node, HostNode):
            handle = next(self._handles)
            self._host_files.open(node, handle)
            return pyfuse3.FileInfo(fh=handle, direct_io=True)
        return pyfuse3.FileInfo(fh=inode)

    @_guarded
    async def release(self, fh: int) -> None:
        self._open_registers.pop(fh, None)
        self._host_files.close(fh)

    @_guarded
    async def read(self, fh: int, off: int, size: int) -> bytes:
        if fh in self._open_registers:
            return await self._registers.read(self._open_registers[fh], off, size)
        if fh in self._host_files:
            return await self._host_files.read(fh, off, size)
        node = self._node(fh)
        assert isinstance(node, Text), "the gate reads regions"
        return node.content[off : off + size]

    @_guarded
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """One value, wherever in the file: the gate writes regions, and nothing else is written."""
        await self._registers.write(self._open_registers[fh], bytes(buf))
        return len(buf)

    @_guarded
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """No blocks and no inodes, as in sysfs (fs/libfs.c: simple_statfs): it cannot fill up."""
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = mmap.PAGESIZE
        data.f_blocks = data.f_bfree = data.f_bavail = 0
        data.f_files = data.f_ffree = data.f_favail = 0
        data.f_namemax = 255
        return data
