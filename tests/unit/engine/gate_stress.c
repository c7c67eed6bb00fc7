/* SPDX-License-Identifier: MIT
 *
 * The gate without Python and without a kernel: concurrent requests, interrupts and a stop over a
 * socket that replaces /dev/fuse.  Every request is answered exactly once.  Built with the
 * sanitizers by test_c.py.
 */
#define _GNU_SOURCE
#include "../../support/require.h"
#include "engine/common.h"
#include "fuse/gate.h"

#include <errno.h>
#include <linux/fuse.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { NODES = 4, REGION = 8192, REQUESTS = 3000, ROUNDS = 4, LOOPS = 6, MOST_THREADS = 2 * NODES };
enum { TIMEOUT_NS = 10000000, TOO_SLOW = 4096 };

static struct barfs_gate *gate;
static int kernel, libfuse;
static atomic_uchar answers[REQUESTS + 1];
static atomic_uint answered;
static uint8_t ram[REGION];
static pthread_mutex_t ram_lock = PTHREAD_MUTEX_INITIALIZER;

static int access_ram(void *context, uint64_t offset, uint32_t width,
                      enum barfs_direction direction, void *data)
{
    pthread_mutex_lock(&ram_lock);
    memcpy(direction == BARFS_READ ? data : ram + offset,
           direction == BARFS_READ ? ram + offset : data, width);
    pthread_mutex_unlock(&ram_lock);
    if (context && offset % 512 == 0)
        usleep(offset == TOO_SLOW ? 2 * TIMEOUT_NS / 1000 : 200);
    return 0;
}

static void *read_loop(void *unused)
{
    (void)unused;
    REQUIRE(barfs_gate_read_loop(gate) == 0);
    return NULL;
}

static void *reply_loop(void *unused)
{
    (void)unused;
    REQUIRE(barfs_gate_reply_loop(gate) == 0);
    return NULL;
}

static void *notify_loop(void *unused)
{
    (void)unused;
    barfs_gate_notify_loop(gate);
    return NULL;
}

static void *watch_loop(void *unused)
{
    (void)unused;
    barfs_gate_watch_loop(gate);
    return NULL;
}

static void *lane_loop(void *lane)
{
    barfs_lane_run(lane);
    return NULL;
}

static void *spawn_loop(void *unused)
{
    pthread_t threads[MOST_THREADS];
    unsigned count = 0;
    struct barfs_lane *lane;

    (void)unused;
    for (unsigned asked = 0; (lane = barfs_gate_next_lane(gate)) != NULL; asked++) {
        if (asked % 3 == 0) { /* sometimes no thread can be made */
            barfs_lane_fail(lane);
            continue;
        }
        REQUIRE(count < MOST_THREADS);
        REQUIRE(pthread_create(&threads[count++], NULL, lane_loop, lane) == 0);
    }
    while (count)
        pthread_join(threads[--count], NULL);
    return NULL;
}

/* libfuse: answers every request with success, and sends a notification now and then. */
static void *libfuse_loop(void *unused)
{
    static unsigned char message[BARFS_MESSAGE_SIZE];

    (void)unused;
    for (unsigned n = 0; recv(libfuse, message, sizeof message, 0) > 0; n++) {
        const struct fuse_in_header *in = (const void *)message;
        struct fuse_out_header out = {.len = sizeof out, .unique = n % 8 ? in->unique : 0};

        if (send(libfuse, &out, sizeof out, MSG_NOSIGNAL) < 0)
            break;
        out.unique = in->unique;
        if (n % 8 == 0 && send(libfuse, &out, sizeof out, MSG_NOSIGNAL) < 0)
            break;
    }
    return NULL;
}

static void *collect(void *unused)
{
    static unsigned char message[BARFS_MESSAGE_SIZE];
    ssize_t size;

    (void)unused;
    while ((size = recv(kernel, message, sizeof message, 0)) > 0) {
        const struct fuse_out_header *out = (const void *)message;

        REQUIRE((size_t)size >= sizeof *out && out->len == (size_t)size);
        if (out->unique == 0)
            continue;
        REQUIRE(out->unique <= REQUESTS);
        REQUIRE(atomic_fetch_add(&answers[out->unique], 1) == 0);
        atomic_fetch_add(&answered, 1);
    }
    return NULL;
}

static void send_request(uint64_t unique, unsigned *seed)
{
    static unsigned char
        message[sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in) + REGION];
    struct fuse_in_header *header = (void *)message;
    struct fuse_read_in *read = (void *)(message + sizeof *header);
    struct fuse_interrupt_in *interrupt = (void *)(message + sizeof *header);
    unsigned kind = (unsigned)rand_r(seed) % 4;

    memset(message, 0, sizeof message);
    *header = (struct fuse_in_header){.unique = unique,
                                      .nodeid = 1 + (unsigned)rand_r(seed) % NODES,
                                      .opcode = kind == 0   ? FUSE_GETATTR
                                                : kind == 1 ? FUSE_WRITE
                                                            : FUSE_READ,
                                      .len = sizeof *header + sizeof *read};
    read->offset = (unsigned)rand_r(seed) % REGION & ~3u;
    read->size = rand_r(seed) % 3 ? 4 : (unsigned)rand_r(seed) % REGION;
    read->read_flags = FUSE_READ_LOCKOWNER;
    if (kind == 1)
        header->len += read->size;
    REQUIRE(send(kernel, message, header->len, 0) > 0);
    if (rand_r(seed) % 2)
        return;
    *header = (struct fuse_in_header){.opcode = FUSE_INTERRUPT,
                                      .len = sizeof *header + sizeof *interrupt,
                                      .unique = unique | 1ull << 63};
    interrupt->unique = unique - (unsigned)rand_r(seed) % 4;
    REQUIRE(send(kernel, message, header->len, 0) > 0);
}

static void *error_loop(void *unused)
{
    struct barfs_logged_error logged;

    while (barfs_gate_next_error(gate, &logged))
        REQUIRE(logged.table ? logged.error > 0 : logged.more > 0);
    return unused;
}

static void run(unsigned round)
{
    void *(*const loops[LOOPS])(void *) = {read_loop,  reply_loop, notify_loop,
                                           watch_loop, spawn_loop, error_loop};
    pthread_t threads[LOOPS], peer, collector;
    struct barfs_inflight inflights[NODES] = {0};
    struct barfs_table tables[NODES];
    struct barfs_table_entry entries[NODES];
    struct barfs_lanes *lanes[NODES];
    unsigned seed = round;
    int fuse[2], forward[2];

    REQUIRE(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fuse) == 0);
    REQUIRE(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, forward) == 0);
    kernel = fuse[0];
    libfuse = forward[1];
    memset(answers, 0, sizeof answers);
    atomic_store(&answered, 0);
    gate = barfs_gate_new(fuse[1], forward[0]);
    REQUIRE(gate);
    for (unsigned i = 0; i < NODES; i++) {
        entries[i] = (struct barfs_table_entry){.start = 0,
                                                .end = REGION,
                                                .kind = i ? BARFS_CALL : BARFS_MEMORY,
                                                .permission = 3,
                                                .widths = 7,
                                                .base = ram,
                                                .call = access_ram,
                                                .context = i == 1 ? ram : NULL};
        tables[i] = (struct barfs_table){.inflight = &inflights[i],
                                         .size = REGION,
                                         .width = 4,
                                         .timeout_ns = i == 1 ? TIMEOUT_NS : 0,
                                         .entry_count = 1,
                                         .entries = &entries[i]};
        lanes[i] = barfs_gate_add_device(gate);
        REQUIRE(lanes[i]);
        /* Node 1 has memory of its own; the others share theirs under a lock. */
        if (i == 0)
            entries[i].base = calloc(1, REGION);
        REQUIRE(barfs_gate_add_region(gate, 1 + i, &tables[i], 3, lanes[i]) == 0);
        REQUIRE(barfs_gate_add_region(gate, 1 + i, &tables[i], 3, lanes[i]) == -EEXIST);
    }
    REQUIRE(pthread_create(&collector, NULL, collect, NULL) == 0);
    REQUIRE(pthread_create(&peer, NULL, libfuse_loop, NULL) == 0);
    for (unsigned i = 0; i < LOOPS; i++)
        REQUIRE(pthread_create(&threads[i], NULL, loops[i], NULL) == 0);
    for (uint64_t unique = 1; unique <= REQUESTS; unique++) {
        send_request(unique, &seed);
        if (unique == REQUESTS / 2) {
            barfs_inflight_close(&inflights[2]);
            barfs_gate_remove_region(gate, 3);
            barfs_lanes_stop(lanes[2]);
        }
    }
    if (round % 2) { /* else stop in the middle of the requests */
        for (int64_t end = barfs_now_ns() + 30000000000; atomic_load(&answered) < REQUESTS;) {
            REQUIRE(barfs_now_ns() < end);
            usleep(1000);
        }
    }
    REQUIRE(barfs_gate_stop(gate, 10000000000));
    barfs_gate_abandon(gate);
    for (unsigned i = 0; i < LOOPS; i++)
        pthread_join(threads[i], NULL);
    pthread_join(peer, NULL);
    shutdown(kernel, SHUT_RDWR);
    pthread_join(collector, NULL);
    barfs_gate_free(gate);
    free((void *)(uintptr_t)entries[0].base);
    for (unsigned i = 0; i < 2; i++) {
        close(fuse[i]);
        close(forward[i]);
    }
}

int main(void)
{
    for (unsigned round = 0; round < ROUNDS; round++)
        run(round);
    return 0;
}
