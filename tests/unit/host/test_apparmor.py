# SPDX-License-Identifier: MIT
"""What barfs knows of AppArmor's profile of fusermount3, from files of a simulated machine."""

from pathlib import Path

import pytest

from barfs.host import apparmor
from barfs.host.doctor import Doctor
from tests.unit.fake_machine import FakeMachine

# As AppArmor 5 has it, in short.
PROFILE = """\
abi <abi/5.0>,
include <tunables/global>
@{fuse_types} = {fuse,fuse.*,fuseblk,fusectl}
profile fusermount3 /usr/bin/fusermount3 {
  include <abstractions/base>
  mount fstype=@{fuse_types} options=(nosuid,nodev) options in (ro,rw,noexec) -> @{HOME}/**/,
  mount fstype=@{fuse_types} options=(nosuid,nodev) options in (ro,rw,noexec) -> /mnt/{,**/},
  # mount fstype=fuse -> /srv/**/,
  umount @{HOME}/**/,
  include if exists <local/fusermount3>
}
"""
DENIED = (
    "5,812,90210,-;audit: type=1400 audit(1.2:3): "
    'apparmor="{verdict}" operation="{operation}" class="mount" info="failed mntpnt match" '
    'error=-13 profile="fusermount3" name={name} pid=77 comm="fusermount3" fstype="fuse.barfs" '
    'srcname="demo" flags="rw, nosuid, nodev, noexec"\n'
)


@pytest.fixture
def confined(fake: FakeMachine) -> FakeMachine:
    """A machine with AppArmor and that profile."""
    parameter = fake.machine.sysfs / "module/apparmor/parameters/enabled"
    parameter.parent.mkdir(parents=True)
    parameter.write_text("Y\n")
    (fake.machine.etc / "apparmor.d/local").mkdir(parents=True)
    (fake.machine.etc / "apparmor.d/fusermount3").write_text(PROFILE)
    (fake.machine.etc / "apparmor.d/other").write_text("profile other /usr/bin/other {\n}\n")
    return fake


def notes(fake: FakeMachine) -> list[str]:
    lines = list(map(str, Doctor(fake.machine, 0, {}).examine()))
    assert not any("\n" in line for line in lines)
    return [line for line in lines if "AppArmor" in line]


def test_why_a_mount_was_refused(confined: FakeMachine) -> None:
    folder = confined.machine.etc / "apparmor.d"
    assert apparmor.why_refused(confined.machine, "fusermount3", Path("/srv/bar")) == (
        "the AppArmor profile fusermount3 allows no mount there: "
        "add 'mount fstype=fuse.barfs -> /srv/bar/,' and 'umount /srv/bar/,' to "
        f"{folder}/local/fusermount3, then run as root: apparmor_parser -r {folder}/fusermount3"
    )
    assert apparmor.why_refused(confined.machine, "docker-default", Path("/srv/bar")) == (
        "the AppArmor profile docker-default allows no mount there; run barfs under another one "
        "(a container: --security-opt apparmor=PROFILE)"
    )


def test_a_directory_is_written_as_apparmor_reads_it(confined: FakeMachine) -> None:
    said = apparmor.why_refused(confined.machine, "fusermount3", Path('/srv/a b[1]*"'))
    assert r'-> "/srv/a b\[1\]\*\"/",' in said


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("fusermount3 (enforce)\n", "fusermount3"),
        ("/usr/bin/fusermount3 (kill)\n", "/usr/bin/fusermount3"),
        ("fusermount3 (complain)\n", None),
        ("unconfined\n", None),
        ("system_u:system_r:init_t:s0\0", None),
        ("", None),
    ],
)
def test_the_profile_of_a_process(tmp_path: Path, text: str, name: str | None) -> None:
    (tmp_path / "7/attr/apparmor").mkdir(parents=True)
    (tmp_path / "7/attr/current").write_text(text)
    assert apparmor.confining(7, tmp_path) == name
    (tmp_path / "7/attr/apparmor/current").write_text("mine (enforce)\n")
    assert apparmor.confining(7, tmp_path) == "mine"
    assert apparmor.confining(8, tmp_path) is None


def test_doctor_says_where_one_may_mount(confined: FakeMachine) -> None:
    folder = confined.machine.etc / "apparmor.d"
    (folder / "local/fusermount3").write_text('mount fstype=fuse.barfs -> "/srv/a b/",\n')
    assert notes(confined) == [
        "note  AppArmor: the profile fusermount3 lets fusermount3 mount only on @{HOME}/**/ "
        '/mnt/{,**/} "/srv/a b/"; for another directory DIR, '
        "add 'mount fstype=fuse.barfs -> DIR/,' and 'umount DIR/,' to "
        f"{folder}/local/fusermount3, then run as root: apparmor_parser -r {folder}/fusermount3"
    ]


def test_doctor_reads_the_kernels_log(confined: FakeMachine) -> None:
    (confined.machine.dev / "kmsg").write_text(
        "6,1,1,-;Linux\n"
        + DENIED.format(verdict="DENIED", operation="mount", name='"/srv/bar/"')
        + DENIED.format(verdict="DENIED", operation="mount", name='"/srv/bar/"')
        + DENIED.format(verdict="DENIED", operation="mount", name=b"/srv/a b/".hex().upper())
        + DENIED.format(verdict="ALLOWED", operation="mount", name='"/srv/c/"')
        + DENIED.format(verdict="DENIED", operation="umount", name='"/srv/d/"')
    )
    _profile, first, second = notes(confined)
    assert first.startswith(
        "note  the kernel's log has a refused mount on /srv/bar/: the AppArmor "
    )
    assert "'mount fstype=fuse.barfs -> /srv/bar/,'" in first
    assert "'mount fstype=fuse.barfs -> \"/srv/a b/\",'" in second


def test_nothing_is_said_where_nothing_is_in_the_way(confined: FakeMachine) -> None:
    folder = confined.machine.etc / "apparmor.d"
    (folder / "disable").mkdir()
    (folder / "disable/fusermount3").symlink_to(folder / "fusermount3")
    assert notes(confined) == []
    (folder / "disable/fusermount3").unlink()
    lenient = PROFILE.replace("fusermount3 {", "fusermount3 flags=(complain) {")
    (folder / "fusermount3").write_text(lenient)
    assert notes(confined) == []
    (folder / "fusermount3").write_text(PROFILE)
    assert len(notes(confined)) == 1
    (confined.machine.sysfs / "module/apparmor/parameters/enabled").write_text("N\n")
    assert notes(confined) == []
