# SPDX-License-Identifier: MIT
"""mount(8), umount(8), fstab(5) and findmnt(8), the real ones, with a device.

They look for `barfs` in the system's places, and hand down no PATH. All is done in a mount
namespace, in which a directory of the test lies over /usr/local/bin.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from barfs.host.apparmor import selinux_enabled
from barfs.host.sysfs import Machine
from tests.support import is_mounted, require, served
from tests.support.namespace import AS_NOBODY, NOBODY, in_namespace, opened_to_others

# What is mounted would outlive the script: the daemon lives in its namespace.
START = """
mount --bind "$1" /usr/local/bin
mnt=$2
trap 'umount -ql "$mnt" || :' EXIT
"""
GENERATOR = Path("/usr/lib/systemd/system-generators/systemd-fstab-generator")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A mount point; nothing is mounted there in the end."""
    path = tmp_path / "mnt"
    path.mkdir()
    return path


def succeeds(script: str, *arguments: str | Path) -> list[str]:
    """The lines that the script prints; it says nothing else."""
    result = in_namespace(START + script, *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.splitlines()


def fails(script: str, *arguments: str | Path) -> tuple[int, str]:
    """The code and the only line of standard error of the script, which ends by failing."""
    result = in_namespace(START + script, *arguments)
    assert result.returncode != 0
    assert result.stderr.count("\n") == 1
    return result.returncode, result.stderr.rstrip("\n")


def line(source: str, path: Path, options: str = "defaults") -> str:
    """A line of fstab."""
    escaped = source.replace(" ", "\\040")
    return f"{escaped}  {path}  fuse.barfs  {options}  0 0\n"


@pytest.mark.parametrize("unmount", ["umount", "fusermount3 -u"])
def test_options_and_what_the_system_shows(command: Path, path: Path, unmount: str) -> None:
    entry, listed, *layout = succeeds(
        f"""
        mount -t fuse.barfs demo $mnt \\
            -o ro,width=8,noatime,sync,_netdev,nofail,noauto,users,dev,suid,x-systemd.automount
        findmnt -nr -o SOURCE,FSTYPE,OPTIONS $mnt
        mount | grep " $mnt "
        cat $mnt/bus/*/bar0.layout
        {unmount} $mnt
        ! findmnt $mnt
        """,
        command,
        path,
    )
    source, fstype, options = entry.split()
    assert (source, fstype) == ("demo", "fuse.barfs")
    assert {"ro", "nosuid", "nodev", "noexec", "default_permissions"} <= set(options.split(","))
    assert listed.startswith(f"demo on {path} type fuse.barfs (ro,")
    assert "width  8" in layout
    permissions = {words.split()[4] for words in layout if words.startswith("0x")}
    assert permissions == {"r-"}


def test_values_in_quotes_keep_their_commas(command: Path, path: Path, tmp_path: Path) -> None:
    """mount(8) itself drops contexts where there is no SELinux, its helper does not."""
    fstab, folder = tmp_path / "fstab", tmp_path / "a,b"
    folder.mkdir()
    fstab.write_text(line("demo", path, f'ro,trace="{folder}/trace",x-mine="c,d"'))
    script = """
        mount -T "$3" $mnt
        umount $mnt
        ls "$4"
    """
    assert succeeds(script, command, path, fstab, folder) == ["trace"]
    if selinux_enabled(Machine()):
        return
    context = "a_u:b_r:c_t:s0:c1,c2"
    helper = f"""/sbin/mount.fuse3 demo $mnt -t fuse.barfs -o 'rw,context="{context}"'"""
    _code, message = fails(helper, command, path)
    assert message.endswith(
        "Invalid argument; this kernel does not use SELinux: leave out context="
    )


def test_fstab_with_sources_of_all_kinds(command: Path, path: Path, tmp_path: Path) -> None:
    """A line that is mounted is known again by its source: `mount -a` may be called again."""
    fstab = tmp_path / "fstab"
    with served(tmp_path, name="a device, or two") as device:
        for source, bdf in {
            "demo": "ffff:00:00.0",
            device.name: "ffff:00:00.0",
            f"{device.name},bdf=05:00.0": "0000:05:00.0",
        }.items():
            fstab.write_text(line(source, path, "nofail,x-systemd.device-timeout=5"))
            output = succeeds(
                """
                mount -T "$3" $mnt
                umount $mnt
                mount -a -T "$3"
                mount -a -T "$3"
                findmnt -n -o SOURCE $mnt
                grep -c " $mnt " /proc/mounts
                ls $mnt/bus
                umount $mnt
                """,
                command,
                path,
                fstab,
            )
            assert output == [source, "1", bdf]


@pytest.mark.parametrize(
    ("device", "options", "code", "message"),
    [
        ("fffe:1f:1f.7", "ro", 1, "fffe:1f:1f.7: no such PCI device; barfs list shows"),
        ("vfio-user:/nobody.sock", "ro", 1, "vfio-user:/nobody.sock: "),
        ("demo", "colour=red", 2, "unknown option 'colour=red'; the options are ro, "),
        ("disk", "ro", 2, "'disk' is not a device; name a PCI address like 0000:01:00.0"),
    ],
)
def test_a_mount_that_fails(
    command: Path, path: Path, device: str, options: str, code: int, message: str
) -> None:
    status, error = fails('mount -t fuse.barfs "$3" $mnt -o "$4"', command, path, device, options)
    assert status == code
    assert error.startswith(f"barfs: {message}")


def test_a_line_of_fstab_that_fails(command: Path, path: Path, tmp_path: Path) -> None:
    fstab = tmp_path / "fstab"
    fstab.write_text(line("fffe:1f:1f.7", path, "nofail"))
    _, error = fails('mount -a -T "$3"', command, path, fstab)
    assert error.startswith("barfs: fffe:1f:1f.7: no such PCI device")


def test_a_mount_is_neither_covered_nor_changed(command: Path, path: Path) -> None:
    mounting = "mount -t fuse.barfs demo $mnt -o ro;"
    code, error = fails(f"{mounting} mount -t fuse.barfs demo $mnt", command, path)
    assert code == 1
    assert error == f"barfs: {path} is already a barfs mount; run: barfs umount {path}"
    code, error = fails(f"{mounting} mount -o remount,rw $mnt", command, path)
    assert code == 2
    told = (
        "barfs: a barfs mount cannot be remounted, since its options are fixed; unmount it, and "
        "mount it with others"
    )
    assert error == told
    # As later versions of mount(8) put it: with what mountinfo shows.
    shown = "$(findmnt -nr -o FS-OPTIONS $mnt)"
    _, error = fails(f"{mounting} barfs demo $mnt -o rw,{shown},remount", command, path)
    assert error == told


def test_the_options_of_a_mount_can_be_given_to_another(command: Path, path: Path) -> None:
    mount, options = succeeds(
        """
        mount -t fuse.barfs demo $mnt -o allow_other
        options=$(findmnt -nr -o OPTIONS $mnt)
        umount $mnt
        mount -t fuse.barfs demo $mnt -o nosymfollow,$options
        findmnt -nr -o SOURCE $mnt
        echo $options
        umount $mnt
        """,
        command,
        path,
    )
    assert mount == "demo"
    assert {"user_id=0", "group_id=0", "default_permissions"} <= set(options.split(","))


@pytest.mark.usefixtures("_other_user")
def test_a_user_mounts_a_line_that_lets_users(command: Path, public: Path) -> None:
    """mount(8) becomes the user before it calls barfs, and only root may use another fstab."""
    path, fstab = public / "mnt", public / "fstab"
    path.mkdir()
    shutil.chown(path, NOBODY, NOBODY)
    fstab.write_text(line("demo", path, "noauto,user,ro"))
    shutil.copytree(command, public / "bin")
    output = succeeds(
        f"""
        {opened_to_others(public)}
        mount --bind "$3" /etc/fstab
        mkdir -p /run/mount
        mount -t tmpfs tmpfs /run/mount
        {" ".join(AS_NOBODY)} mount $mnt
        findmnt -n -o SOURCE,OPTIONS $mnt
        {" ".join(AS_NOBODY)} umount $mnt
        ! findmnt $mnt
        """,
        public / "bin",
        path,
        fstab,
    )
    (entry,) = output
    source, options = entry.split()
    assert source == "demo"
    assert {"ro", "nosuid", "nodev", "noexec", f"user_id={NOBODY}"} <= set(options.split(","))


def test_nothing_of_a_namespace_is_seen_outside(command: Path, path: Path) -> None:
    succeeds("mount -t fuse.barfs demo $mnt; grep $mnt /proc/mounts; umount $mnt", command, path)
    assert not is_mounted(path)


def test_systemds_generator_makes_units_of_fstab(tmp_path: Path) -> None:
    """With an automount, the device is opened (and reset) at the first access."""
    require("systemd", GENERATOR.exists(), f"{GENERATOR} is missing; apt install systemd")
    socket = "vfio-user:/run/a device, or two.sock,bdf=05:00.0"
    automount = "x-systemd.automount,x-systemd.idle-timeout=60"
    fstab = tmp_path / "fstab"
    fstab.write_text(
        line("0000:01:00.0", Path("/mnt/bar"), f"ro,width=8,_netdev,nofail,{automount}")
        + line(socket, Path("/mnt/socket"), "noauto,x-systemd.automount")
        + line("01:00.0", Path("/mnt/plain"))
    )
    folders = [tmp_path / name for name in ("normal", "early", "late")]
    for folder in folders:
        folder.mkdir()
    subprocess.run(
        [GENERATOR, *folders], check=True, env={"SYSTEMD_FSTAB": str(fstab)}, capture_output=True
    )
    units = folders[0]

    def mount_of(unit: str) -> dict[str, str]:
        lines = (units / unit).read_text().partition("[Mount]\n")[2].split("\n\n")[0]
        return dict(text.split("=", 1) for text in lines.splitlines())

    bar = mount_of("mnt-bar.mount")
    assert (bar["What"], bar["Where"], bar["Type"]) == ("0000:01:00.0", "/mnt/bar", "fuse.barfs")
    assert bar["Options"] == f"ro,width=8,_netdev,nofail,{automount}"
    assert "Where=/mnt/bar\nTimeoutIdleSec=1min\n" in (units / "mnt-bar.automount").read_text()
    assert (units / "remote-fs.target.wants/mnt-bar.automount").is_symlink()
    assert mount_of("mnt-socket.mount")["What"] == socket
    assert (units / "mnt-socket.automount").exists()
    assert mount_of("mnt-plain.mount")["What"] == "01:00.0"
    assert (units / "local-fs.target.requires/mnt-plain.mount").is_symlink()
    assert not (units / "mnt-plain.automount").exists()
