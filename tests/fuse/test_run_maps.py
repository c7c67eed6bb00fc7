# SPDX-License-Identifier: MIT
"""`barfs run`: what the mappings of programs are, by the calls of C.

Each program imports `tests.support.mapped`. The demo device's bar0 has 0x10000 bytes, with windows
at 0x1000..0x2000 and 0x3000..0x4000.
"""

import array
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import BARFS, Mounted, mounted, require
from tests.support.namespace import AS_NOBODY, in_namespace, opened_to_others
from tests.support.programs import ROOT, compiled, run_mapped

PROGRAMS = Path(__file__).parent / "programs"
IDENTITY = int.from_bytes(b"barf", "little")
SECOND = int.from_bytes(b"The ", "little")
PRELUDE = "import os, sys; from tests.support.mapped import *; bar0 = sys.argv[1]\n"
BASE = "fd = os.open(bar0, os.O_RDWR); base = map_file(fd, 0x10000)\n"


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    with mounted(tmp_path_factory.mktemp("map"), "demo", options="map") as mount:
        yield mount


@pytest.fixture
def bar0(mount: Mounted) -> Path:
    return mount.device() / "bar0"


def shown(code: str, *arguments: str | Path) -> str:
    """What a program prints that succeeds and says nothing on standard error."""
    result = run_mapped(sys.executable, "-c", PRELUDE + code, *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.strip()


def told(code: str, *arguments: str | Path) -> str:
    """As `shown`, for a program that gets a hint."""
    result = run_mapped(sys.executable, "-c", PRELUDE + code, *arguments)
    assert result.returncode == 0, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("barfs run: ")
    return f"{result.stdout.strip()} | {line.removeprefix('barfs run: ')}"


def peek(bar0: Path, offset: int) -> int:
    """A register, as the mount has it."""
    with bar0.open("rb", buffering=0) as file:
        return int.from_bytes(os.pread(file.fileno(), 4, offset), "little")


def test_a_mapping_has_the_shape_of_the_region(bar0: Path) -> None:
    code = BASE + "print(shape(base, 0x10000)); print(load(base + 0x1000), load(base + 0x3000))"
    parts, values = shown(code, bar0).splitlines()
    assert parts == str(
        [
            (0, 0x1000, "---s"),
            (0x1000, 0x2000, "rw-s"),
            (0x2000, 0x3000, "---s"),
            (0x3000, 0x4000, "rw-s"),
            (0x4000, 0x10000, "---s"),
        ]
    )
    assert values == f"{IDENTITY} {SECOND}"


@pytest.mark.parametrize(
    ("length", "offset", "parts"),
    [
        (0x1000, 0x1000, [(0, 0x1000, "rw-s")]),
        (1, 0x3000, [(0, 0x1000, "rw-s")]),
        (0x1001, 0, [(0, 0x1000, "---s"), (0x1000, 0x2000, "rw-s")]),
        (
            0x20000,
            0x3000,
            [(0, 0x1000, "rw-s"), (0x1000, 0x20000, "---s")],  # ends behind the region
        ),
    ],
)
def test_any_part_of_a_region_can_be_mapped(
    bar0: Path, length: int, offset: int, parts: list[tuple[int, int, str]]
) -> None:
    assert shown(f"print(shape(map_file(bar0, {length}, {offset}), {length}))", bar0) == str(parts)


def test_a_whole_region_can_be_a_window(bar0: Path) -> None:
    code = "base = map_file(bar0, 1 << 20); print(shape(base, 1 << 20), hex(load(base)))"
    assert shown(code, bar0.with_name("bar2")) == "[(0, 1048576, 'rw-s')] 0x20656e4f"


def test_stores_of_the_program_and_of_others_are_seen_by_each(bar0: Path) -> None:
    code = BASE + (
        "store(base + 0x1200, 0x1234); print(os.pread(fd, 4, 0x1200).hex())\n"
        "os.pwrite(fd, b'wxyz', 0x1204); print(hex(load(base + 0x1204)))"
    )
    assert shown(code, bar0).splitlines() == ["34120000", "0x7a797877"]
    assert peek(bar0, 0x1200) == 0x1234


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        ("map_file(bar0, 0x1000, 0x2000)", "ENODEV"),
        ("map_file(bar0, 0x1000, 0x10000)", "ENODEV"),
        ("map_file(bar0, 0x1000, 1 << 40)", "ENODEV"),
        ("map_file(bar0.replace('bar0', 'bar4'), 0x1000)", "ENODEV"),
        ("map_file(bar0.replace('bar0', 'rom'), 0x1000)", "EACCES"),
        ("map_file(bar0.replace('bar0', 'config'), 0x1000)", "ENODEV"),
        ("map_file(bar0, 0x1000, 0x1001)", "EINVAL"),
        ("map_file(bar0, 0, 0x1000)", "EINVAL"),
        ("map_file(bar0, 0x1000, 0x1000, EXEC)", "EPERM"),
        ("map_file(os.open(bar0, os.O_RDONLY), 0x1000, 0x1000, WRITE)", "EACCES"),
        ("map_file(os.open(bar0, os.O_WRONLY), 0x1000, 0x1000, WRITE)", "EACCES"),
        ("map_file(os.open(bar0, os.O_PATH), 0x1000, 0x1000)", "EBADF"),
        ("map_file(os.open(os.path.dirname(bar0), 0), 0x1000, 0, READ)", "ENODEV"),
        ("map_file(bar0, 0x1000, 0x1000, flags=0)", "EINVAL"),
        ("map_file(bar0, 0x1000, 0x1000, flags=SHARED | FIXED, address=1)", "EINVAL"),
        ("map_file(-1, 0x1000)", "EBADF"),
        ("map_file('/dev/null', 0x1000)", "ENODEV"),
    ],
)
def test_what_cannot_be_mapped_fails_as_it_does_without_the_library(
    bar0: Path, call: str, answer: str
) -> None:
    code = f"{PRELUDE}print(error_of(lambda: {call}))"
    command = [sys.executable, "-c", code, str(bar0)]
    without = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert without.stdout.strip() == answer
    result = run_mapped(*command)
    assert (result.returncode, result.stdout.strip()) == (0, answer)


def test_a_range_without_a_window_is_told_once(bar0: Path) -> None:
    code = "for _ in range(3): print(error_of(map_file, bar0, 0x1000, 0x2000))"
    result = run_mapped(sys.executable, "-c", PRELUDE + code, bar0)
    assert result.stdout.split() == ["ENODEV"] * 3
    assert result.stderr == (
        "barfs run: bar0 has no window there, and cannot be mapped; read it with: "
        f"barfs md {bar0} 0x2000\n"
    )


@pytest.mark.parametrize("name", ["bar4", "config"])
def test_a_region_without_windows_is_told(bar0: Path, name: str) -> None:
    region = bar0.with_name(name)
    assert told("print(error_of(map_file, bar0, 0x1000))", region) == (
        f"ENODEV | {name} has no window there, and cannot be mapped; read it with: "
        f"barfs md {region} 0x0"
    )


def test_files_that_are_no_regions_are_not_told_of(bar0: Path) -> None:
    """A register's file has direct I/O, too."""
    register = bar0.with_name("registers") / "bar0/ID"
    assert (
        shown("print(error_of(map_file, os.open(bar0, 0), 0x1000, 0, READ))", register) == "ENODEV"
    )


def test_a_hint_into_a_broken_pipe_ends_no_program(bar0: Path) -> None:
    code = (
        "import signal; signal.signal(signal.SIGPIPE, signal.SIG_DFL)\n"
        "ours, theirs = os.pipe(); os.dup2(theirs, 2); os.close(ours)\n"
        "print(error_of(map_file, bar0, 0x1000, 0x2000), signal.sigpending())"
    )
    assert shown(code, bar0) == "ENODEV set()"


def test_other_mappings_are_those_of_the_kernel(bar0: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"file" * 1024)
    code = (
        "base = map_file(sys.argv[2], 0x1000); store(base, 5); sync(base, 0x1000)\n"
        "print(shape(base, 0x1000), open(sys.argv[2], 'rb').read(4))\n"
        "text = map_file(os.open(bar0.replace('bar0', 'vendor'), 0), 0x1000, 0, READ)\n"
        "print(load(text).to_bytes(4, 'little'))\n"
        "base = remap(base, 0x1000, 0x2000); print(shape(base, 0x2000))\n"
        "private = map_file(bar0, 0x1000, 0x1000, READ, PRIVATE); print(shape(private, 0x1000))"
    )
    assert shown(code, bar0, tmp_path / "file").splitlines() == [
        "[(0, 4096, 'rw-s')] b'\\x05\\x00\\x00\\x00'",
        "b'0x12'",
        "[(0, 8192, 'rw-s')]",
        "[(0, 4096, 'r--p')]",
    ]


def test_errno_stays_and_no_descriptor_is_left(bar0: Path) -> None:
    code = (
        "before = sorted(os.listdir('/proc/self/fd'))\n"
        "for offset in (0x1000, 0x2000, 0x1000):\n"
        "    fd = os.open(bar0, os.O_RDWR); ctypes.set_errno(77)\n"
        "    base = libc.mmap(0, 0x1000, 3, SHARED, fd, offset)\n"
        "    print(base != _FAILED, ctypes.get_errno()); os.close(fd)\n"
        "print(sorted(os.listdir('/proc/self/fd')) == before)"
    )
    code = "from tests.support.mapped import _FAILED\n" + code
    assert told(code, bar0).partition(" | ")[0].splitlines() == [
        "True 77",
        "False 19",
        "True 77",
        "True",
    ]


def test_a_fixed_address_is_kept(bar0: Path) -> None:
    code = (
        "base = reserve(0x4000)\n"
        "print(map_file(bar0, 0x2000, 0x1000, flags=SHARED | FIXED, address=base) == base)\n"
        "print(shape(base, 0x2000), hex(load(base)), hex(load(base + 0x2000)))\n"
        "print(error_of(map_file, bar0, 0x1000, 0x1000, flags=SHARED | NOREPLACE, address=base))"
    )
    assert shown(code, bar0).splitlines() == [
        "True",
        f"[(0, 4096, 'rw-s'), (4096, 8192, '---s')] {IDENTITY:#x} 0x1010101",
        "EEXIST",
    ]


def test_a_refused_fixed_mapping_leaves_what_is_there(bar0: Path) -> None:
    code = (
        "base = reserve(0x1000)\n"
        "print(error_of(map_file, bar0, 0x1000, 0x2000, flags=SHARED | FIXED, address=base))\n"
        "print(error_of(map_file, os.open(bar0, 0), 0x1000, 0x1000, WRITE, SHARED | FIXED, base))\n"
        "print(hex(load(base)))"
    )
    assert told(code, bar0).partition(" | ")[0].split() == ["ENODEV", "EACCES", "0x1010101"]


def test_mappings_can_be_cut_and_replaced(bar0: Path) -> None:
    code = BASE + (
        "unmap(base + 0x1000, 0x1000); print(load(base + 0x3000))\n"
        "print(error_of(unmap, base + 1, 0x1000))\n"
        "print(map_file(fd, 0x1000, 0x3000, flags=SHARED | FIXED, address=base) == base)\n"
        "print(load(base)); unmap(base, 0x10000); print(shape(base, 0x10000))\n"
        "bases = [map_file(fd, 0x10000) for _ in range(300)]\n"
        "for each in bases: unmap(each, 0x10000)\n"
        "print(load(map_file(fd, 0x1000, 0x1000)))"
    )
    assert shown(code, bar0).split() == [
        str(SECOND),
        "EINVAL",
        "True",
        str(SECOND),
        "[]",
        str(IDENTITY),
    ]


def test_a_mapping_shrinks_but_does_not_grow(bar0: Path) -> None:
    """What follows a window in the memory of its device is not of the window."""
    code = BASE + (
        "window = map_file(fd, 0x1000, 0x1000)\n"
        "print(error_of(remap, window, 0x1000, 0x2000), error_of(remap, window, 0, 0x2000))\n"
        "print(remap(base, 0x10000, 0x2000) == base, shape(base, 0x10000), load(base + 0x1000))\n"
        "import mmap; m = mmap.mmap(fd, 0x2000, offset=0x1000); m.resize(0x1000); print(m[:4])"
    )
    assert shown(code, bar0).splitlines() == [
        "EFAULT EFAULT",
        f"True [(0, 4096, '---s'), (4096, 8192, 'rw-s')] {IDENTITY}",
        "b'barf'",
    ]


def test_protection_can_be_changed_within_what_the_file_was_opened_for(bar0: Path) -> None:
    code = (
        "base = map_file(os.open(bar0, os.O_RDONLY), 0x1000, 0x1000, READ)\n"
        "print(error_of(protect, base, 0x1000, READ | WRITE), load(base))\n"
        "base = map_file(os.open(bar0, os.O_RDWR), 0x1000, 0x1000, READ)\n"
        "print(error_of(protect, base, 0x1000, READ | WRITE), error_of(protect, base, 1, EXEC))\n"
        "store(base + 0x300, 7); sync(base, 0x1000); print(load(base + 0x300))"
    )
    assert shown(code, bar0).splitlines() == [f"EACCES {IDENTITY}", "ok EACCES", "7"]


def test_without_the_option_the_hint_names_it(tmp_path: Path) -> None:
    with mounted(tmp_path, "demo") as mount:
        code = "for _ in range(2): print(error_of(map_file, bar0, 0x1000, 0x1000))"
        bar0 = mount.device() / "bar0"
        assert told(code, bar0) == (
            f"ENODEV\nENODEV | {bar0} cannot be mapped: its mount was made without -o map"
        )


LOAD = "print(load(map_file(bar0, 0x1000, 0x1000)))"


def test_other_users_get_no_mapping(tmp_path: Path) -> None:
    """But a hint, where they may open the file."""
    require("root", os.geteuid() == 0, "other users take root")
    with mounted(tmp_path, "demo", options="map,allow_other,umask=0") as mount:
        bar0 = Path("/mnt") / mount.device().relative_to(mount.path) / "bar0"
        shown_to_all = f"mount --bind {mount.path} /mnt"
        script = f'{opened_to_others(tmp_path / "view")}\n{shown_to_all}\nexec "$@"'
        code = PRELUDE + "print(error_of(map_file, os.open(bar0, 0), 0x1000, 0x1000, READ))"
        words = [*AS_NOBODY, "env", f"PYTHONPATH={ROOT}", *BARFS, "run", sys.executable]
        result = in_namespace(script, *words, "-c", code, bar0)
        assert result.stdout == "ENODEV\n", result.stderr
        assert result.stderr == (
            f"barfs run: {bar0} cannot be mapped: its mount lets only its owner and root do that\n"
        )


@pytest.mark.parametrize(
    "name", ["with blanks", "größe-日本", "a" * 200, "quote'\"\\", "new\nline"]
)
def test_the_path_of_a_mount_may_be_any(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    with mounted(folder, "demo", options="map") as mount:
        bar0 = mount.device() / "bar0"
        assert shown(LOAD, bar0) == str(IDENTITY)
        said = told("error_of(map_file, bar0, 0x1000, 0x2000)", bar0)
        # The line is a command for a shell.
        command = said.rpartition("read it with: barfs ")[2]
        script = f'exec "$0" -m barfs {command}'
        result = subprocess.run(["bash", "-c", script, sys.executable], capture_output=True)
        assert (result.returncode, result.stderr) == (0, b"")
        assert result.stdout.startswith(b"00002000: ")


DEEP = """
for _ in range(20):
    os.mkdir("d" * 250)
    os.chdir("d" * 250)
os.mkdir("mnt")
assert libc.mount(os.fsencode(sys.argv[2]), b"mnt", None, 4096, None) == 0  # MS_BIND
assert libc.umount2(os.fsencode(sys.argv[2]), 2) == 0  # MNT_DETACH
print(load(map_file("mnt/flat/ffff-00-00.0/bar0", 0x1000, 0x1000)))
"""


def test_a_mount_point_may_be_deeper_than_path_max(mount: Mounted, tmp_path: Path) -> None:
    result = in_namespace(
        'mount -t tmpfs tmpfs "$1"; cd "$1"; shift; exec env PYTHONPATH="$1" "$2" -m barfs run '
        '"$2" -c "$3" - "$4"',
        *(tmp_path, ROOT, sys.executable, PRELUDE + DEEP, mount.path),
    )
    assert (result.stdout, result.stderr) == (f"{IDENTITY}\n", "")


BOUND = """
touch "$1/file"; mkdir "$1/device" "$1/root"
mount --bind "$2/bus/ffff:00:00.0/bar0" "$1/file"
mount --bind "$2/bus/ffff:00:00.0" "$1/device"
mount --bind "$2" "$1/root"
export PYTHONPATH="$3"
"$4" -m barfs run "$4" -c "$5" "$1/file" "$1/device/bar0" "$1/root/flat/ffff-00-00.0/bar0"
umount -l "$2"
"$4" -m barfs run "$4" -c "$5" "$1/file"
umount -l "$1/root"
"$4" -m barfs run "$4" -c "$5" "$1/file"
"""


def test_bind_mounts_are_of_the_same_mount(mount: Mounted, tmp_path: Path) -> None:
    code = PRELUDE + (
        "def show(file): print(load(map_file(file, 0x1000, 0x1000)))\n"
        "for file in sys.argv[1:]: print(error_of(show, file))"
    )
    result = in_namespace(BOUND, tmp_path, mount.path, ROOT, sys.executable, code)
    assert result.stdout.split() == [*[str(IDENTITY), "ok"] * 4, "ENODEV"]
    assert result.stderr == (
        f"barfs run: {tmp_path}/file cannot be mapped: the root of its mount cannot be reached "
        "from here\n"
    )


def test_relative_names_and_links_lead_to_the_same_file(bar0: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(bar0)
    code = (
        "os.chdir(os.path.dirname(bar0)); print(load(map_file('./bar0', 0x1000, 0x1000)))\n"
        "print(load(map_file('../../flat/ffff-00-00.0/bar0', 0x1000, 0x1000)))\n"
        "print(load(map_file(sys.argv[2], 0x1000, 0x1000)))\n"
        "path = os.open(bar0, os.O_PATH)\n"
        "print(load(map_file(f'/proc/self/fd/{path}', 0x1000, 0x1000)))"
    )
    assert shown(code, bar0, tmp_path / "link").split() == [str(IDENTITY)] * 4


def test_descriptors_from_elsewhere(bar0: Path) -> None:
    """One that was inherited, and one that came over a socket."""
    ours, theirs = socket.socketpair()
    fd = os.open(bar0, os.O_RDWR)
    code = (
        "import socket; inherited = int(sys.argv[2])\n"
        "_, fds, _, _ = socket.recv_fds(socket.socket(fileno=int(sys.argv[3])), 1, 1)\n"
        "print(*(load(map_file(fd, 0x1000, 0x1000)) for fd in (inherited, *fds)))"
    )
    with ours, theirs:
        rights = array.array("i", [fd])
        ours.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        inherited = (fd, theirs.fileno())
        result = subprocess.run(
            [*BARFS, "run", sys.executable, "-c", PRELUDE + code, bar0, *map(str, inherited)],
            cwd=ROOT,
            pass_fds=inherited,
            capture_output=True,
            text=True,
        )
    os.close(fd)
    assert (result.stdout, result.stderr) == (f"{IDENTITY} {IDENTITY}\n", "")


def test_threads_children_and_what_they_execute_map_too(bar0: Path) -> None:
    code = (
        "import subprocess, threading\n"
        "def show(): os.write(1, b'%d\\n' % load(map_file(bar0, 0x1000, 0x1000)))\n"
        "threads = [threading.Thread(target=show) for _ in range(4)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
        "base = map_file(bar0, 0x1000, 0x1000)\n"
        "if os.fork() == 0: show(); store(base + 0x400, 9); os._exit(0)\n"
        "os.wait(); print(load(base + 0x400), flush=True)\n"
        "code = open('/proc/self/cmdline').read().split('\\0')[2]\n"
        "again = [sys.executable, '-c', code, bar0, '']\n"
        "if len(sys.argv) > 2: sys.exit()\n"
        "subprocess.run(again, check=True)\n"  # vfork
        "os.waitpid(os.posix_spawn(sys.executable, again, os.environ), 0)\n"
        "os.execv(sys.executable, again)"
    )
    lines = [*[str(IDENTITY)] * 5, "9"]
    assert shown(code, bar0).split() == lines * 4


def test_threads_children_and_signal_handlers_at_once(bar0: Path, tmp_path: Path) -> None:
    program = compiled(PROGRAMS / "hammer.c", tmp_path, "-pthread")
    result = run_mapped(program, bar0)
    assert (result.returncode, result.stderr) == (0, "")


def test_libraries_that_a_program_loads_map_too(bar0: Path, tmp_path: Path) -> None:
    library = compiled(PROGRAMS / "loaded.c", tmp_path, "-shared", "-fPIC", name="loaded.so")
    code = "print(ctypes.CDLL(sys.argv[2]).first_word(os.open(bar0, 0), 0x1000))"
    assert shown(code, bar0, library) == str(IDENTITY)


def test_a_library_that_was_preloaded_stays_and_sees_the_calls(bar0: Path, tmp_path: Path) -> None:
    other = compiled(PROGRAMS / "other.c", tmp_path, "-shared", "-fPIC", name="other.so")
    code = PRELUDE + LOAD
    result = run_mapped(sys.executable, "-c", code, bar0, LD_PRELOAD=str(other))
    assert result.stdout == f"{IDENTITY}\n"
    assert result.stderr.splitlines()[-1] == "other: 1"


def test_the_lowest_limit_of_descriptors_is_an_error_of_its_own(bar0: Path) -> None:
    code = (
        "import resource; fd = os.open(bar0, os.O_RDWR); free = os.dup(fd); os.close(free)\n"
        "for more in (0, 1, 2, 3, 8):\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (free + more, 4096))\n"
        "    print(error_of(map_file, fd, 0x1000, 0x1000), os.dup2(fd, fd) == fd)"
    )
    answers = shown(code, bar0).split()
    assert answers[2:4] == ["EMFILE", "True"]
    assert answers[-2:] == ["ok", "True"]
    # With none, the kernel's own answer stays: nothing can be found out.
    assert answers[0] == "ENODEV"
