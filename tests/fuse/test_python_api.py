# SPDX-License-Identifier: MIT
"""`barfs.open` and `barfs.attach`: the same accesses, without a mount and beside one."""

import contextlib
import ctypes
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import barfs
from barfs.device import Device, in_flight_of
from barfs.errors import AccessError, PeerError
from barfs.layout import Layout
from tests.support import mounted, served, wait_until
from tests.support.peer import Answer, Peer, connect, data, raw, refuse, reply

RAM = 0x4000  # a gap of bar0 that keeps what is written
WINDOW = 0x3000
DELAY = 0x2C


@pytest.fixture(params=["opened", "attached", "attached-through-files"])
def device(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[barfs.Device]:
    if request.param == "opened":
        with barfs.open("demo") as found:
            yield found
        return
    options = "map" if request.param == "attached" else ""
    with (
        mounted(tmp_path, "demo", options=options) as mount,
        barfs.attach(mount.device()) as found,
    ):
        yield found


@pytest.fixture
def bar0(device: barfs.Device) -> barfs.Region:
    return device["bar0"]


def test_a_device_is_a_mapping_of_its_regions(device: barfs.Device) -> None:
    assert list(device) == ["bar0", "bar2", "bar4", "bar5", "rom", "config"]
    assert [device[name].size for name in device] == [
        0x10000,
        0x100000,
        64,
        0x4000,
        0x1000,
        4096,
    ]
    assert (str(device.bdf), device.source) == ("ffff:00:00.0", "demo")
    with pytest.raises(
        barfs.UsageError, match="has no bar1; it has bar0, bar2, bar4, bar5, rom, config"
    ):
        device["bar1"]


@pytest.mark.parametrize("offset", [RAM, WINDOW])
def test_registers_of_each_width(bar0: barfs.Region, offset: int) -> None:
    bar0.write64(offset, 0x8877665544332211)
    assert bar0.read64(offset) == 0x8877665544332211
    assert [bar0.read32(offset), bar0.read32(offset + 4)] == [0x44332211, 0x88776655]
    assert [bar0.read16(offset + at) for at in (0, 2, 6)] == [0x2211, 0x4433, 0x8877]
    assert [bar0.read8(offset + at) for at in (0, 7)] == [0x11, 0x88]
    bar0.write32(offset, 0xDDCCBBAA)
    bar0.write16(offset + 4, 0xFFEE)
    bar0.write8(offset + 6, 0x99)
    assert bar0.read(offset, 8) == bytes.fromhex("aabbccddeeff9988")


def test_bytes(bar0: barfs.Region) -> None:
    data = bytes(range(256)) * 48
    assert bar0.write(WINDOW, data) == len(data)
    assert bar0.read(WINDOW, len(data)) == data
    assert bar0.write(RAM + 1, memoryview(b"odd")) == 3
    assert bar0.read(RAM + 1, 3) == b"odd"
    assert bar0.read(bar0.size - 4, 64) == bytes(4)
    assert bar0.read(bar0.size, 4) == b""
    with pytest.raises(barfs.BeyondEnd):
        bar0.write(bar0.size, b"x")


def test_all_ones_is_data(bar0: barfs.Region) -> None:
    assert bar0.read32(0x14) == 0xFFFFFFFF
    bar0.write64(RAM, 2**64 - 1)
    assert bar0.read64(RAM) == 2**64 - 1


def test_a_value_that_does_not_fit(bar0: barfs.Region) -> None:
    for value in (1 << 32, -1):
        with pytest.raises(ValueError, match="does not fit in 4 bytes"):
            bar0.write32(RAM, value)


def test_the_layout(bar0: barfs.Region) -> None:
    windows = [(s.start, s.end) for s in bar0.layout.segments if s.reason in ("-", "mapping-off")]
    assert windows == [(0x1000, 0x2000), (0x3000, 0x4000)]
    assert {s.width for s in bar0.layout.segments} == {8}
    assert Layout.from_text(bar0.layout.to_text()) == bar0.layout


def test_the_address_of_a_contiguous_mapping() -> None:
    with barfs.open("demo", mapping="contiguous") as device:
        for name, offset in (("bar0", WINDOW), ("bar5", 0x1000), ("bar2", 0xFFFFC)):
            region = device[name]
            place = ctypes.c_uint32.from_address(region.address + offset)
            region.write32(offset, 0x12345678)
            assert place.value == 0x12345678
            place.value = 0xCAFEBABE
            assert region.read32(offset) == 0xCAFEBABE
        assert _protections(device["bar0"].address, device["bar0"].size) == [
            (0x0, 0x1000, "---p"),
            (0x1000, 0x2000, "rw-s"),
            (0x2000, 0x3000, "---p"),
            (0x3000, 0x4000, "rw-s"),
            (0x4000, 0x10000, "---p"),
        ]
        assert _protections(device["bar5"].address, device["bar5"].size) == [
            (0x0, 0x1000, "---p"),
            (0x1000, 0x2000, "rw-s"),
            (0x2000, 0x4000, "---p"),
        ]
        with pytest.raises(barfs.UsageError, match="bar4 has no address"):
            _ = device["bar4"].address


def _protections(address: int, size: int) -> list[tuple[int, int, str]]:
    """What is mapped in a range of this process, by offset."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        places, protection, *_ = line.split()
        start, end = (int(place, 16) for place in places.split("-"))
        if start < address + size and address < end:
            edges = max(start, address) - address, min(end, address + size) - address
            found.append((*edges, protection))
    return found


def test_no_address_without_contiguous(bar0: barfs.Region) -> None:
    why = "open with mapping='contiguous'" if bar0.layout.windows else "it has no window"
    with pytest.raises(barfs.UsageError, match=why):
        _ = bar0.address


Attempt = Callable[[barfs.Device], object]


@pytest.mark.parametrize(
    ("attempt", "kind", "place"),
    [
        (lambda d: d["bar0"].read32(2), barfs.InvalidAccess, ("bar0", 2, 4)),
        (lambda d: d["bar0"].write16(RAM + 1, 0), barfs.InvalidAccess, ("bar0", RAM + 1, 2)),
        (lambda d: d["bar0"].read64(0x10000 - 4), barfs.InvalidAccess, ("bar0", 0xFFFC, 8)),
        (lambda d: d["bar0"].read8(0x10000), barfs.BeyondEnd, ("bar0", 0x10000, 1)),
        (lambda d: d["bar0"].read32(0x10000), barfs.BeyondEnd, ("bar0", 0x10000, 4)),
        (lambda d: d["bar0"].read64(0x10002), barfs.BeyondEnd, ("bar0", 0x10002, 8)),
        (lambda d: d["bar0"].write16(0x10000, 1), barfs.BeyondEnd, ("bar0", 0x10000, 2)),
        (lambda d: d["bar0"].read16(1 << 64), barfs.BeyondEnd, ("bar0", 1 << 64, 2)),
        (lambda d: d["bar0"].read32(1 << 64), barfs.BeyondEnd, ("bar0", 1 << 64, 4)),
        (lambda d: d["bar0"].read64(1 << 64), barfs.BeyondEnd, ("bar0", 1 << 64, 8)),
        (lambda d: d["bar0"].write32(1 << 70, 1), barfs.BeyondEnd, ("bar0", 1 << 70, 4)),
        (lambda d: d["bar0"].write(1 << 64, b"1"), barfs.BeyondEnd, ("bar0", 1 << 64, 1)),
        (lambda d: d["bar4"].read64(4), barfs.InvalidAccess, ("bar4", 4, 8)),
        (lambda d: d["rom"].read64(0), barfs.InvalidAccess, ("rom", 0, 8)),
        (lambda d: d["rom"].write32(0, 0), barfs.AccessDenied, ("rom", 0, 4)),
        (lambda d: d["bar0"].write(0x10000, b"1"), barfs.BeyondEnd, ("bar0", 0x10000, 1)),
    ],
)
def test_errors_say_where(
    device: barfs.Device,
    attempt: Attempt,
    kind: type[AccessError],
    place: tuple[str, int, int],
) -> None:
    with pytest.raises(kind) as caught:
        attempt(device)
    error = caught.value
    assert (error.region, error.offset, error.width) == place
    assert str(error).startswith(f"{place[0]}+{place[1]:#x} ({place[2]} bytes): ")
    assert "\n" not in str(error)


@pytest.mark.parametrize("offset", [-1, -4, -(1 << 63), -(1 << 70)])
def test_a_negative_offset(bar0: barfs.Region, offset: int) -> None:
    for attempt in (
        bar0.read8,
        bar0.read16,
        bar0.read32,
        bar0.read64,
        lambda place: bar0.read(place, 4),
        lambda place: bar0.write(place, b"1234"),
        lambda place: bar0.write8(place, 0),
        lambda place: bar0.write64(place, 0),
    ):
        with pytest.raises(
            barfs.UsageError, match=f"^bar0: offset must be 0 or more, not {offset}"
        ):
            attempt(offset)


@pytest.mark.parametrize("offset", [0x10000, 1 << 63, 1 << 64, 1 << 70])
def test_a_read_past_the_end_is_empty(bar0: barfs.Region, offset: int) -> None:
    assert bar0.read(offset, 4) == b""


def test_a_register_that_refuses(bar0: barfs.Region) -> None:
    bar0.write32(0x28, 1)
    with pytest.raises(barfs.BusFault) as caught:
        bar0.read32(0x28)
    assert (caught.value.region, caught.value.offset, caught.value.width) == ("bar0", 0x28, 4)
    assert len(bar0.read(0x20, 16)) == 8, "what came before it"


def test_read_only() -> None:
    with barfs.open("demo", read_only=True) as device:
        assert device["bar0"].read32(0) == 0x66726162
        for offset in (RAM, WINDOW):
            with pytest.raises(barfs.AccessDenied):
                device["bar0"].write32(offset, 0)


def test_no_answer_in_time() -> None:
    with barfs.open("demo", timeout=0.2) as device:
        device["bar0"].write32(DELAY, 60_000)
        with pytest.raises(barfs.AccessTimeout) as caught:
            device["bar0"].read32(DELAY)
        assert (caught.value.region, caught.value.offset) == ("bar0", DELAY)
        assert device["bar0"].read(WINDOW, 4) == b"The ", "windows need no answer"


def test_a_slow_device_answers_in_time() -> None:
    """Though all together takes longer than the timeout."""
    with barfs.open("demo", timeout=0.5) as device:
        device["bar0"].write32(DELAY, 300)
        start = time.monotonic()
        with ThreadPoolExecutor(4) as threads:
            reads = [threads.submit(device["bar0"].read, 0, 0x100) for _ in range(4)]
            assert [len(read.result()) for read in reads] == [0x100] * 4
        assert time.monotonic() - start > 1


def test_a_closed_device(device: barfs.Device) -> None:
    bar0 = device["bar0"]
    assert not device.gone
    assert device.close()
    assert device.gone
    attempts: list[Callable[[], object]] = [
        lambda: bar0.read32(WINDOW),
        lambda: bar0.read32(0),
        lambda: bar0.write8(WINDOW, 0),
        lambda: bar0.read(0, 64),
        lambda: bar0.write(WINDOW, b"1"),
    ]
    for attempt in attempts:
        with pytest.raises(barfs.DeviceGone):
            attempt()
    assert device.close(), "again"


def test_with_closes_whatever_happens() -> None:
    with pytest.raises(KeyError), barfs.open("demo") as device:
        raise KeyError
    with pytest.raises(barfs.DeviceGone):
        device["bar0"].read32(0)


def test_no_thread_or_descriptor_stays() -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    threads, files = threading.active_count(), descriptors()
    for _round in range(3):
        with barfs.open("demo", mapping="contiguous") as device:
            device["bar0"].read32(0)
    # Fewer, where the server of the test before has only now come to its end.
    wait_until(lambda: threading.active_count() <= threads, "the server's thread to end")
    wait_until(lambda: descriptors() <= files, "the descriptors to be closed")


def test_four_threads(bar0: barfs.Region) -> None:
    """Each with its own registers in window and gap; none sees another's bytes."""
    wrong: list[tuple[int, int]] = []

    def work(number: int) -> None:
        for place in (WINDOW, RAM):
            offset = place + 8 * number
            for turn in range(300):
                value = number << 24 | turn
                bar0.write32(offset, value)
                if (found := bar0.read32(offset)) != value:
                    wrong.append((value, found))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_close_waits_for_who_is_inside(device: barfs.Device) -> None:
    device["bar0"].write32(DELAY, 300)
    found: list[int] = []
    reader = threading.Thread(target=lambda: found.append(device["bar0"].read32(DELAY)))
    reader.start()
    wait_until(lambda: in_flight_of(device).inside == 1, "the access")
    assert device.close()
    reader.join()
    assert found == [300]


def test_close_does_not_wait_for_ever(
    device: barfs.Device, caplog: pytest.LogCaptureFixture
) -> None:
    device["bar0"].write32(DELAY, 500)
    found: list[int] = []
    reader = threading.Thread(target=lambda: found.append(device["bar0"].read32(DELAY)))
    reader.start()
    wait_until(lambda: in_flight_of(device).inside == 1, "the access")
    assert not device.close(grace=0)
    assert "has not come back" in caplog.text
    with pytest.raises(barfs.DeviceGone):
        device["bar0"].read32(WINDOW)
    reader.join()
    assert found == [500]
    assert device.close()


def test_a_server_that_leaves(tmp_path: Path) -> None:
    with served(tmp_path) as server, barfs.open(server.name) as device:
        assert device["bar0"].read32(WINDOW)
        server.process.terminate()
        server.process.wait(10)
        with pytest.raises(barfs.DeviceGone):
            device["bar0"].read32(0)
        assert device.gone
        with pytest.raises(barfs.DeviceGone):
            device["bar0"].read32(WINDOW)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"mapping": "all"}, r"mapping must be .*, not .all."),
        ({"width": 3}, r"width must be .*, not 3"),
        ({"msix": "drop"}, r"msix must be .*, not .drop."),
        ({"timeout": 0}, r"timeout must be .*, not 0"),
        ({"timeout": -1.5}, r"timeout must be .*, not -1.5"),
        ({"timeout": float("nan")}, r"timeout must be .*, not nan"),
        ({"timeout": float("inf")}, r"timeout must be .*, not inf"),
        ({"timeout": 1e10}, r"timeout must be a positive number of seconds, at most 1000000000"),
        ({"timeout": 10**400}, r"timeout must be .* at most 1000000000"),
        ({"timeout": "5"}, r"timeout must be .*, not .5."),
        ({"timeout": None}, r"timeout must be .*, not None"),
        ({"msix": "carve", "mapping": "off"}, "no meaning"),
    ],
)
def test_choices_that_make_no_sense(choice: dict[str, object], message: str) -> None:
    with pytest.raises(barfs.UsageError, match=message):
        barfs.open("demo", **choice)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "nonsense", "vfio-user:", "demo,bdf=01:00.0"])
def test_names_of_no_device(name: str) -> None:
    with pytest.raises(barfs.UsageError):
        barfs.open(name)


def test_devices_that_are_not_there(tmp_path: Path) -> None:
    for name in ("fffe:1f:1f.7", f"vfio-user:{tmp_path}/none"):
        with pytest.raises(barfs.DeviceError):
            barfs.open(name)


GET_INFO = reply(struct.pack("=IIII", 16, 2, 9, 5))


def region_info(index: int, size: int = 0x1000) -> Answer:
    return reply(struct.pack("=IIIIQQ", 32, 3 if size else 0, index, 0, size, 0))


@pytest.mark.parametrize(
    ("script", "kind", "message"),
    [
        ([], barfs.DeviceError, "closed the connection"),
        ([GET_INFO, region_info(0)], barfs.DeviceError, "closed the connection"),
        (
            [GET_INFO, region_info(0), raw(lambda message: b"\0" * 16)],
            PeerError,
            "broke the protocol",
        ),
        ([reply(struct.pack("=IIII", 16, 2, 1 << 31, 5))], barfs.DeviceError, "2147483648 regions"),
    ],
)
def test_a_device_that_fails_while_it_is_opened(
    script: list[Answer], kind: type[barfs.DeviceError], message: str
) -> None:
    """It is not opened with the regions that were described before."""
    with Peer(*script) as peer, pytest.raises(kind, match=message):
        Device(connect(peer))


def test_a_region_that_the_server_will_not_describe(caplog: pytest.LogCaptureFixture) -> None:
    regions = [refuse(5) if index == 1 else region_info(index, 0) for index in range(8)]
    with Peer(GET_INFO, region_info(0), *regions[1:]) as peer:
        with contextlib.closing(Device(connect(peer))) as device:
            assert list(device) == ["bar0"]
        assert "bar1 is left out" in caplog.text


def test_a_reply_that_makes_no_sense(caplog: pytest.LogCaptureFixture) -> None:
    """The access fails, the log says what was wrong, and the next access is made."""
    regions = [region_info(index, 0x1000 if index == 0 else 0) for index in range(8)]
    with (
        Peer(GET_INFO, *regions, data(b"too long"), data(b"abcd")) as peer,
        contextlib.closing(Device(connect(peer))) as device,
    ):
        with pytest.raises(barfs.BusFault):
            device["bar0"].read32(0)
        assert "broke the protocol" in caplog.text
        assert "Traceback" not in caplog.text
        assert device["bar0"].read32(0) == int.from_bytes(b"abcd", "little")


def test_a_server_that_breaks_the_protocol(caplog: pytest.LogCaptureFixture) -> None:
    """The access fails, the log says what was wrong, and the device is not asked again."""
    regions = [region_info(index, 0x1000 if index == 0 else 0) for index in range(8)]
    elsewhere = reply(struct.pack("=QII", 8, 0, 4) + b"abcd")
    with (
        Peer(GET_INFO, *regions, elsewhere, data(b"abcd")) as peer,
        contextlib.closing(Device(connect(peer))) as device,
    ):
        with pytest.raises(barfs.BusFault):
            device["bar0"].read32(0)
        assert "broke the protocol" in caplog.text
        assert "Traceback" not in caplog.text
        assert device.gone
        with pytest.raises(barfs.DeviceGone):
            device["bar0"].read32(0)
