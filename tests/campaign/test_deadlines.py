# SPDX-License-Identifier: MIT
"""A peer that receives requests and answers none of them in time."""

import errno
import os
import threading
from pathlib import Path

from tests.campaign.conftest import Campaign
from tests.campaign.rig import MUTE, WINDOW, Client, Mute, is_in_request, mute_device, software
from tests.support import mounted, wait_until

TIMEOUT = 1.0
REQUESTS = 200
ANSWERS = 8
"""Requests after each silence, whose answers come behind the late ones."""


def test_no_request_outlives_its_deadline(
    tmp_path: Path, campaign: Campaign, client: Client
) -> None:
    rounds = campaign.size(1, 10)
    device, register = mute_device()
    waited: list[float] = []
    tails: list[tuple[float, float]] = []
    with (
        software(tmp_path, device) as name,
        mounted(tmp_path, name, "demo", options=f"timeout={TIMEOUT}") as mount,
    ):
        mute, other = (mount.device(f"ffff:00:0{n}.0") / "bar0" for n in (0, 1))
        for _round in range(rounds):
            register.speak()
            idle = [client.run("reader", 100, 0.5, 1, other, 0, WINDOW)]
            register.silence()
            with (
                client.working("waiters", REQUESTS, mute, MUTE) as waiting,
                client.working("reader", 100, 0.9 * TIMEOUT, 1, other, 0, WINDOW) as busy,
                client.working("reader", 1000, 0.9 * TIMEOUT, 1, mute, WINDOW) as window,
            ):
                assert (mute.with_name("bar0.layout")).read_text()
                results = client.finish(waiting)["results"]
                beside = client.finish(busy), client.finish(window)
            assert [error for error, _value, _seconds in results] == [errno.ETIMEDOUT] * REQUESTS
            assert [found["error"] for found in (*idle, *beside)] == [0, 0, 0]
            waited += (seconds for _error, _value, seconds in results)
            tails.append((idle[0]["parts"][0]["p99_us"], beside[0]["parts"][0]["p99_us"]))
            ask_behind_late_replies(mute, register)
    assert register.late >= rounds
    assert min(waited) > TIMEOUT - 0.1
    assert max(waited) < TIMEOUT + 0.5
    before, meanwhile = (sorted(part)[len(tails) // 2] for part in zip(*tails, strict=True))
    campaign.report(
        "no request outlives its deadline",
        f"{len(waited)} ETIMEDOUT after {min(waited):.2f} to {max(waited):.2f} s of {TIMEOUT} s; "
        f"{register.late} late replies dropped; p99 of another device "
        f"{meanwhile:.0f} us, idle {before:.0f} us: {meanwhile / before:.2f}x",
    )


def ask_behind_late_replies(path: Path, register: Mute) -> None:
    """The late reply comes while the next request waits, and is not taken for its answer."""
    places = [MUTE + 4 * number for number in range(1, ANSWERS + 1)]
    values: dict[int, int] = {}

    def ask(place: int) -> None:
        values[place] = int.from_bytes(os.pread(fd, 4, place), "little")

    fd = os.open(path, os.O_RDWR)
    try:
        late = register.late
        threads = [threading.Thread(target=ask, args=(place,)) for place in places]
        for thread in threads:
            thread.start()
        tasks = [Path(f"/proc/self/task/{thread.native_id}") for thread in threads]
        wait_until(lambda: all(map(is_in_request, tasks)), "the reads")
        register.speak()
        for thread in threads:
            thread.join()
        assert register.late > late
        assert values == {place: Mute.value(place) for place in places}
        assert os.pwrite(fd, b"1234", MUTE) == 4
        assert register.written[-1] == (MUTE, int.from_bytes(b"1234", "little"))
    finally:
        os.close(fd)
