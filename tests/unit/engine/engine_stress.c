/* SPDX-License-Identifier: MIT
 *
 * The engine without Python, from C threads: random requests over all kinds of entries while the
 * file under them shrinks and grows.  Built with the sanitizers by test_c.py.
 */
#define _GNU_SOURCE
#include "../../support/require.h"
#include "engine/common.h"
#include "engine/sigbus.h"
#include "engine/transfer.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { THREADS = 8, PAGE = 4096, WINDOW = 16 * PAGE, GAP = PAGE, RAM = 64 };
enum { REGION = WINDOW + GAP + RAM };

static pthread_mutex_t ram_lock = PTHREAD_MUTEX_INITIALIZER;
static uint8_t ram[RAM];
static struct barfs_inflight inflight;
static struct barfs_table table;

static int access_ram(void *context, uint64_t offset, uint32_t width,
                      enum barfs_direction direction, void *data)
{
    uint8_t *place = (uint8_t *)context + (offset - (WINDOW + GAP));

    REQUIRE(place >= ram && place + width <= ram + RAM);
    pthread_mutex_lock(&ram_lock);
    memcpy(direction == BARFS_READ ? data : place, direction == BARFS_READ ? place : data, width);
    pthread_mutex_unlock(&ram_lock);
    return 0;
}

static void *request_until_gone(void *result)
{
    unsigned seed = (unsigned)(uintptr_t)result;
    uint64_t *faults = result;

    for (;;) {
        uint64_t offset = (uint64_t)rand_r(&seed) % (REGION + 16);
        uint64_t count = (uint64_t)rand_r(&seed) % (rand_r(&seed) % 2 ? 16 : REGION);
        enum barfs_direction direction = rand_r(&seed) % 2 ? BARFS_WRITE : BARFS_READ;
        uint8_t *buffer = calloc(1, count + 1); /* so exact that the sanitizer sees an overrun */
        int64_t done = barfs_transfer(&table, offset, buffer, count, direction, NULL);

        free(buffer);
        if (done == -ENODEV)
            return NULL;
        if (done == -EFBIG)
            REQUIRE(direction == BARFS_WRITE && offset >= REGION);
        else if (done == -EIO)
            ++*faults;
        else
            REQUIRE(done >= 0 && (uint64_t)done <= count);
    }
}

int main(void)
{
    int fd = memfd_create("window", 0);
    uint8_t *base;
    struct barfs_table_entry entries[3];
    pthread_t threads[THREADS];
    uint64_t faults[THREADS] = {0}, all = 0;

    REQUIRE(fd >= 0 && ftruncate(fd, WINDOW + GAP) == 0);
    base = mmap(NULL, WINDOW, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    REQUIRE(base != MAP_FAILED);
    REQUIRE(barfs_sigbus_install() == 0);
    entries[0] = (struct barfs_table_entry){.start = 0,
                                            .end = WINDOW,
                                            .kind = BARFS_MEMORY,
                                            .permission = 3,
                                            .widths = 15,
                                            .base = base};
    entries[1] = (struct barfs_table_entry){.start = WINDOW,
                                            .end = WINDOW + GAP,
                                            .kind = BARFS_FD,
                                            .permission = 3,
                                            .widths = 7,
                                            .fd = fd,
                                            .fd_offset = WINDOW};
    entries[2] = (struct barfs_table_entry){.start = WINDOW + GAP,
                                            .end = REGION,
                                            .kind = BARFS_CALL,
                                            .permission = 3,
                                            .widths = 3,
                                            .call = access_ram,
                                            .context = ram};
    table = (struct barfs_table){.inflight = &inflight,
                                 .size = REGION,
                                 .width = 4,
                                 .timeout_ns = 10000000000,
                                 .entry_count = 3,
                                 .entries = entries};
    for (int i = 0; i < THREADS; i++)
        REQUIRE(pthread_create(&threads[i], NULL, request_until_gone, &faults[i]) == 0);
    for (int64_t end = barfs_now_ns() + 1000000000, n = 0; barfs_now_ns() < end; n++) {
        REQUIRE(ftruncate(fd, n % 2 ? WINDOW + GAP : (n % 11) * PAGE) == 0);
        usleep(20);
    }
    REQUIRE(barfs_inflight_drain(&inflight, 10000000000));
    munmap(base, WINDOW); /* a thread still inside would die */
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        all += faults[i];
    }
    REQUIRE(all > 0);
    return 0;
}
