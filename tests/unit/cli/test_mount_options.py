# SPDX-License-Identifier: MIT
import os
import pwd
from pathlib import Path

import pytest

from barfs.cli.mount_options import parse_options
from barfs.device import Options
from barfs.errors import UsageError
from barfs.fuse.fusermount import MountOptions
from barfs.registers.find import Choice, Named


def test_defaults() -> None:
    assert parse_options([]) == (Options(registers=Choice()), MountOptions())
    assert Options() == Options("separate", 4, "map", False, 5.0, "auto")


def test_everything_at_once() -> None:
    name = pwd.getpwuid(os.getuid()).pw_name
    texts = [
        "ro,width=8,mapping=contiguous",
        f"msix=carve,timeout=0.5,uid={name}",
        "gid=7,umask=027,vfio=cdev",
    ]
    device, mount = parse_options([*texts, "allow_other"])
    assert device == Options("contiguous", 8, "carve", True, 0.5, "cdev", registers=Choice())
    assert mount == MountOptions(True, True, os.getuid(), 7, 0o027)
    assert mount.fuse_options() == ["allow_other", "ro"]


def test_what_a_mapping_cannot_keep(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("rule = []")
    assert parse_options(["map"])[1] == MountOptions(map=True)
    assert parse_options(["map,mapping=contiguous,msix=carve,width=8,allow_other"])[1].map
    for word in ("ro", "ro=recursive", "guard", f"policy={policy}", "trace=x", "mapping=off"):
        with pytest.raises(UsageError, match=r"map and \S+ contradict each other: .*; leave one"):
            parse_options([f"{word},map"])


def test_descriptions_of_registers_are_repeated() -> None:
    device, _mount = parse_options(["registers=card.rdl,ro", "registers=bar2+0x100=/etc/dma.svd"])
    assert device.registers == Choice(
        (Named(Path.cwd() / "card.rdl"), Named(Path("/etc/dma.svd"), "bar2", 0x100))
    )
    assert parse_options(["registers=off"])[0].registers == Choice(off=True)
    with pytest.raises(UsageError, match="must be the only"):
        parse_options(["registers=off,registers=card.rdl"])
    with pytest.raises(UsageError, match="registers="):
        parse_options(["registers="])


def test_words_of_mount_and_fstab_mean_nothing() -> None:
    words = "rw,dev,suid,noauto,nofail,_netdev,x-systemd.automount,x-systemd.idle-timeout=10"
    assert parse_options([words]) == parse_options([])
    # What mount(8) calls independent of the file system.
    words = "async,noatime,nodiratime,sync,dirsync,lazytime,strictatime,mand,silent,loud"
    assert parse_options([words]) == parse_options([])
    words = "nosymfollow,symfollow,nousers,noowner,nogroup,user=me,comment=x,X-mount.mkdir,helper=x"
    assert parse_options([words]) == parse_options([])
    words = "rw=vfs,nosuid=recursive,noatime=fs"
    assert parse_options([words]) == parse_options([])
    assert parse_options(["ro=recursive"]) == parse_options(["ro"])


def test_contexts_go_through_to_the_mount() -> None:
    text = 'ro,context="system_u:object_r:usr_t:s0:c1,c2",fscontext=a_u:object_r:b_t'
    _device, mount = parse_options([f"{text},rootcontext=c:d:e:s0-s15:c0.c1023"])
    assert mount.fuse_options() == ["ro"]
    assert mount.contexts() == {
        "context": "system_u:object_r:usr_t:s0:c1,c2",
        "fscontext": "a_u:object_r:b_t",
        "rootcontext": "c:d:e:s0-s15:c0.c1023",
    }
    assert parse_options(["defcontext=a:b:c"])[1].contexts() == {"defcontext": "a:b:c"}


def test_a_value_in_quotes_may_have_commas() -> None:
    device, _mount = parse_options(['trace="/tmp/a,b",x-mine="c,d",registers=bar0="e,f",width=8'])
    assert device.trace == "/tmp/a,b"
    assert device.registers == Choice((Named(Path.cwd() / "e,f"),))
    assert device.width == 8
    # Elsewhere a quote is a character like any other.
    assert parse_options(['trace=/tmp/a"b,ro'])[0].trace == '/tmp/a"b'
    assert parse_options(['trace="/tmp/a'])[0].trace == f'{Path.cwd()}/"/tmp/a'


def test_words_that_the_kernel_shows_of_a_mount_mean_nothing() -> None:
    words = "user_id=0,group_id=0,fd=5,rootmode=40000,default_permissions,max_read=4096,blksize=512"
    assert parse_options([words]) == parse_options([])


@pytest.mark.parametrize(
    "words",
    [
        "remount",
        "rw,nosuid,user_id=0,group_id=0,default_permissions,remount",
        "colour=red,remount",
        "ro,rw,remount",
        "remount,width=3",
    ],
)
def test_a_remount_is_refused_for_what_it_is(words: str) -> None:
    with pytest.raises(UsageError, match=r"cannot be remounted.*unmount it, and mount it with"):
        parse_options([words])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("width=3", "1, 2, 4 or 8"),
        ("width=wide", "1, 2, 4 or 8"),
        ("width", "unknown option"),
        ("mapping=on", "separate, contiguous or off"),
        ("msix=off", "map or carve"),
        ("vfio=iommufd", "auto, cdev, group or noiommu"),
        ("trace-limit=4095", "trace-limit must be a size of 4k or more, like 100M, not '4095'"),
        ("trace-limit=-1M", "a size of 4k or more"),
        ("trace-limit=1T", "a size of 4k or more"),
        ("trace-limit=9999999999G", "a size of 4k or more"),
        ("timeout=0", "positive"),
        ("timeout=-1", "positive"),
        ("timeout=nan", "positive"),
        ("timeout=inf", "positive"),
        ("timeout=soon", "a positive number of seconds"),
        ("timeout=1e10", "at most 1000000000, not '1e10'"),
        ("timeout=1e300", "at most 1000000000, not '1e300'"),
        ("uid=no-such-user", "a user's name or number"),
        ("gid=no-such-group", "a group's name or number"),
        ("uid=4294967295", "uid must be .* 0 to 4294967294, not '4294967295'"),
        ("gid=4294967295", "gid must be .* 0 to 4294967294, not '4294967295'"),
        ("uid=4294967296", "uid must be .* 0 to 4294967294"),
        ("gid=" + "9" * 5000, "gid must be .* 0 to 4294967294"),
        ("umask=9", "an octal number"),
        ("umask=-1", "an octal number"),
        ("umask=7777", "an octal number"),
        ("colour=red", "unknown option 'colour=red'; the options are ro, width=, mapping=, msix="),
        ("ro=1", "unknown option"),
        ("nosymfollow=1", "unknown option 'nosymfollow=1'"),
        ("user_id", "unknown option 'user_id'"),
        ("width=recursive", "1, 2, 4 or 8"),
        ("context=x", "context must be an SELinux context like system_u:.*, not 'x'"),
        ("context", "unknown option 'context'"),
        ('fscontext="a:b:c', "fscontext must be an SELinux context"),
        ("rootcontext=a:b:c\\,d", "rootcontext must be an SELinux context"),
        ("context=a:b:c:s0:c1,c2", "unknown option 'c2'"),
        ("context=a:b:c,context=a:b:d", "given twice"),
        ("context=a:b:c,defcontext=a:b:c", "context and defcontext contradict each other"),
        ("ro,rw", "contradict"),
        ("width=4,width=8", "given twice"),
        ("mapping=off,msix=carve", "no meaning"),
    ],
)
def test_bad_options(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_options([text])
    assert "\n" not in str(caught.value)


def test_the_largest_ids() -> None:
    _, mount = parse_options(["uid=4294967294,gid=4294967294"])
    assert (mount.uid, mount.gid) == (4294967294, 4294967294)
