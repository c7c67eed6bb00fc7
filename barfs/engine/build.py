# SPDX-License-Identifier: MIT
"""Builds `barfs.engine._engine` from the C of barfs with cffi's API mode, the library that
`barfs run` preloads, and the sdist.

Rule 1: setuptools loads this file by its path before the package is importable: it imports nothing
        of barfs.
Rule 2: Python may use only the declarations below; the compiler checks them against the headers.
"""

import os
import shlex
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from cffi import FFI
from setuptools import Extension
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

HERE = Path(__file__).parent

# No -Wconversion: the C of barfs is clean under it, but the code that cffi generates is not.
COMPILE_FLAGS = ["-std=gnu11", "-O2", "-falign-loops=64", "-Wall", "-Wextra", "-fvisibility=hidden"]

DECLARATIONS = """
enum barfs_direction { BARFS_READ = 0, BARFS_WRITE = 1 };
enum barfs_permission { BARFS_MAY_READ = 1, BARFS_MAY_WRITE = 2 };
enum barfs_kind { BARFS_REFUSED, BARFS_MEMORY, BARFS_FD, BARFS_CALL };
enum barfs_table_flags {
    BARFS_PORT = 1, BARFS_GUARD_READS = 2, BARFS_GUARD_WRITES = 4, BARFS_WIDTHS = 8,
};

typedef int barfs_call_fn(void *context, uint64_t offset, uint32_t width,
                          enum barfs_direction direction, void *data);
struct barfs_table_entry {
    uint64_t start, end;
    enum barfs_kind kind;
    uint32_t permission, widths;
    int fd;
    uint64_t fd_offset;
    volatile uint8_t *base;
    barfs_call_fn *call;
    void *context;
    struct barfs_turns *turns;
};
struct barfs_turns { ...; };
struct barfs_inflight { unsigned forks; ...; };
#define BARFS_MOST_TRACE_NAME ...
struct barfs_trace_file {
    int fd, told;
    uint64_t limit;
    const char *path, *older, *header;
    ...;
};
struct barfs_trace { struct barfs_trace_file *file; char name[...]; };
int barfs_trace_error(struct barfs_trace_file *);
bool barfs_trace_unmoved(struct barfs_trace_file *);
uint64_t barfs_trace_missed(struct barfs_trace_file *);
struct barfs_range { uint64_t start, end; };
struct barfs_ranges { uint64_t count; const struct barfs_range *ranges; };
struct barfs_table {
    struct barfs_inflight *inflight;
    uint64_t size;
    uint32_t width, flags;
    int64_t timeout_ns;
    uint64_t entry_count;
    const struct barfs_table_entry *entries;
    struct barfs_ranges denied[2];
    struct barfs_trace *trace;
};
struct barfs_control { int64_t timeout_ns; ...; };

int64_t barfs_transfer(const struct barfs_table *, uint64_t offset, void *buffer, uint64_t count,
                       enum barfs_direction direction, struct barfs_control *);
int64_t barfs_load(const struct barfs_table *, uint64_t offset, uint32_t width, uint64_t *value);
int64_t barfs_load_narrow(const struct barfs_table *, uint64_t offset, uint32_t width);
int64_t barfs_store(const struct barfs_table *, uint64_t offset, uint32_t width, uint64_t value);
uint32_t barfs_inflight_inside(struct barfs_inflight *);
void barfs_inflight_close(struct barfs_inflight *);
bool barfs_inflight_drain(struct barfs_inflight *, int64_t timeout_ns);
void barfs_control_stop(struct barfs_control *);
int64_t barfs_now_ns(void);
int barfs_sigbus_install(void);
extern unsigned barfs_forks;

enum barfs_operation { BARFS_LOG_READ, BARFS_LOG_WRITE, BARFS_LOG_OPEN };
struct barfs_logged_error {
    const struct barfs_table *table;
    enum barfs_operation operation;
    int error;
    uint64_t offset, count, more;
};
struct barfs_gate;
struct barfs_lane;
struct barfs_lanes;
struct barfs_gate *barfs_gate_new(int fuse_fd, int forward_fd);
void barfs_gate_free(struct barfs_gate *);
struct barfs_lanes *barfs_gate_add_device(struct barfs_gate *);
int barfs_gate_add_region(struct barfs_gate *, uint64_t node_id, const struct barfs_table *,
                          uint32_t permission, struct barfs_lanes *);
void barfs_gate_remove_region(struct barfs_gate *, uint64_t node_id);
int barfs_gate_read_loop(struct barfs_gate *);
int barfs_gate_reply_loop(struct barfs_gate *);
void barfs_gate_notify_loop(struct barfs_gate *);
void barfs_gate_watch_loop(struct barfs_gate *);
struct barfs_lane *barfs_gate_next_lane(struct barfs_gate *);
bool barfs_gate_next_error(struct barfs_gate *, struct barfs_logged_error *);
void barfs_lanes_stop(struct barfs_lanes *);
void barfs_lane_run(struct barfs_lane *);
void barfs_lane_fail(struct barfs_lane *);
bool barfs_gate_stop(struct barfs_gate *, int64_t timeout_ns);
void barfs_gate_abandon(struct barfs_gate *);

extern "Python" int barfs_call(void *context, uint64_t offset, uint32_t width,
                               enum barfs_direction direction, void *data);

#define PROT_NONE ...
#define PROT_READ ...
#define PROT_WRITE ...
#define MAP_SHARED ...
#define MAP_PRIVATE ...
#define MAP_ANONYMOUS ...
#define MAP_NORESERVE ...
#define MAP_FIXED ...
#define MADV_DONTFORK ...
void *mmap(void *address, size_t size, int protection, int flags, int fd, int64_t offset);
int munmap(void *address, size_t size);
int madvise(void *address, size_t size, int advice);
"""

ffibuilder = FFI()
ffibuilder.cdef(DECLARATIONS)
ffibuilder.set_source(
    "barfs.engine._engine",
    "#include <sys/mman.h>\n"
    + "".join(
        f'#include "{name}.h"\n'
        for name in (
            "engine/common",
            "engine/forks",
            "engine/inflight",
            "engine/sigbus",
            "engine/trace",
            "engine/transfer",
            "fuse/gate",
        )
    ),
)


PRELOAD = HERE.parent / "preload"
PRELOAD_NAME = "barfs.preload.barfs_map"
PRELOAD_FLAGS = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Wconversion", "-fvisibility=hidden"]


class BuildEngine(build_ext):
    """build_ext that generates the binding and compiles it together with the C of barfs; and that
    makes the preloaded library, which is no extension of Python but is built like one."""

    def build_extension(self, ext: Extension) -> None:
        preload = ext.name == PRELOAD_NAME
        ours = [
            os.path.relpath(path)
            for path in sorted(HERE.parent.glob("*/*.[ch]"))
            if (path.parent == PRELOAD) == preload
        ]
        ext.sources = [path for path in ours if path.endswith(".c")]
        ext.depends = [*(path for path in ours if path.endswith(".h")), __file__]
        ext.include_dirs = [*ext.include_dirs, str(HERE.parent)]
        if preload:
            ext.extra_compile_args = [*ext.extra_compile_args, *PRELOAD_FLAGS]
            # A signal handler resolves no symbols.
            ext.extra_link_args = [*ext.extra_link_args, "-Wl,-z,now"]
        else:
            binding = Path(self.build_temp) / "_engine.c"
            binding.parent.mkdir(parents=True, exist_ok=True)
            ffibuilder.emit_c_code(str(binding))
            ext.sources.append(str(binding))
            ext.extra_compile_args = [*ext.extra_compile_args, *COMPILE_FLAGS]
        # A Python with a shared library (pyenv's) links extensions with a RUNPATH to it. Neither
        # needs that library, and the wheel must run with other Pythons.
        link = shlex.split(sysconfig.get_config_var("LDSHARED") or "")
        own = {word for word in link if word.startswith(("-Wl,-rpath", "-Wl,-R"))}
        linker = self.compiler.linker_so
        self.compiler.set_executable("linker_so", [word for word in linker if word not in own])
        super().build_extension(ext)

    def get_ext_filename(self, fullname: str) -> str:
        """Not with Python's suffix for the library: other programs load it."""
        if fullname in (PRELOAD_NAME, PRELOAD_NAME.rpartition(".")[2]):
            return f"{fullname.replace('.', os.sep)}.so"
        return str(super().get_ext_filename(fullname))  # type: ignore[no-untyped-call]


class CompleteSource(sdist):
    """sdist with the C, the tests and the scripts, which setuptools leaves out by default."""

    def make_distribution(self) -> None:
        for folder in (".ci", "barfs", "scripts", "tests"):
            self.filelist.graft(folder)
        self.filelist.extend(["CHANGELOG.md", ".clang-format", ".gitignore"])
        for made in ("*.py[co]", "*.so", "*.o"):
            self.filelist.global_exclude(made)
        self.owner = self.group = "root"
        super().make_distribution()

    def make_release_tree(self, base_dir: str, files: Sequence[str]) -> None:
        """Copy the files with the modes that git records, independent of the checkout's umask."""
        super().make_release_tree(base_dir, files)
        for path in (Path(base_dir), *Path(base_dir).rglob("*")):
            path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
