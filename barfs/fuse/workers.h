/* SPDX-License-Identifier: MIT
 *
 * Runs long requests off the thread that reads requests.
 *
 * Rule 1: a request is answered exactly once.  The thread that moves its state to ANSWERED answers
 *         it: the lane that ran it, the reader with an interrupt for it, the watch if it is late,
 *         or the thread that stops the lane.
 * Rule 2: a device has a lane for each kind of request (enum barfs_lane_kind), each with a thread
 *         of its own, so that no device delays another, and a long transfer delays a short request
 *         by at most one access.  The threads of some have SCHED_BATCH and a nice value: they sleep
 *         and wake for each access, or keep a CPU busy that waits for the device, and would
 *         otherwise run before a short request of another device every time.
 *         A request that the reader began goes on there from where it stopped: what is done is
 *         never repeated, and an early end is a short count.
 * Rule 3: the deadline is the device's, not the request's: it counts from the last access completed
 *         in the lane, or from arrival if that was later.  So a request that waits behind a
 *         progressing transfer is never late.  The watch answers for a request that hangs inside an
 *         access, and for those behind it; progress in another lane helps neither, unless the
 *         access waits for its turn (struct barfs_turns).
 *
 *     reader -> barfs_lane_push() -> lane -> barfs_lane_run(): barfs_transfer() -> answer
 *                                     |
 *     interrupt, watch ---------------+---> answer first; the lane's result is then dropped
 *
 * A lane gets its thread with its first request: barfs_workers_next_lane() tells the thread that
 * creates threads which lane needs one.  No thread wakes up while nothing is queued.
 */
#ifndef BARFS_WORKERS_H
#define BARFS_WORKERS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#include "engine/transfer.h"

#pragma GCC visibility push(hidden)

/* The offset of the data in a message, of a WRITE request and of a READ reply: after the longest
 * header that precedes data, so that one buffer serves both. */
#define BARFS_PAYLOAD 80u
#define BARFS_MOST_DATA (1u << 20)
#define BARFS_MESSAGE_SIZE (BARFS_MOST_DATA + 4096u)

enum barfs_request_state { BARFS_QUEUED, BARFS_RUNNING, BARFS_ANSWERED };

/* A message and the request in it.  The reader receives into it, and replies are sent from it. */
struct barfs_request {
    STAILQ_ENTRY(barfs_request) next_in_lane;
    TAILQ_ENTRY(barfs_request) next_pending; /* in order of arrival */
    SLIST_ENTRY(barfs_request) next_spare;
    _Atomic(enum barfs_request_state) state;
    bool kept; /* in the pool, not unmapped after use */
    struct barfs_control control;
    const struct barfs_table *table;
    struct barfs_lane *lane; /* that took it */
    uint64_t unique;         /* the kernel's id of the request */
    uint64_t offset, count;
    enum barfs_direction direction;
    size_t length; /* of the received message */
    /* The data begins a page: the kernel copies page by page, and would touch each page twice. */
    _Alignas(4096) unsigned char unused[4096 - BARFS_PAYLOAD];
    unsigned char message[BARFS_MESSAGE_SIZE];
};

/* Answer a request: `result` is the bytes done or -errno; a read's data is at BARFS_PAYLOAD. */
typedef void barfs_answer_fn(void *context, struct barfs_request *request, int64_t result);

struct barfs_lane {
    struct barfs_workers *workers;
    struct barfs_pace *pace; /* its device's */
    pthread_cond_t wake;
    STAILQ_HEAD(, barfs_request) requests; /* that wait */
    struct barfs_request *running;
    int64_t answered_ns; /* when the lane last completed an access */
    SLIST_ENTRY(barfs_lane) next, next_wanting;
    bool has_thread;        /* or will get one */
    bool runs;              /* the thread takes requests */
    int nice;               /* more than that of the process; 0: the thread is as any other */
    atomic_bool stopping;   /* written under the lock */
    atomic_uint unfinished; /* its requests that have more to do */
};

enum barfs_lane_kind {
    BARFS_QUICK_CALLS,  /* short requests that call */
    BARFS_LONG,         /* long transfers */
    BARFS_LONG_CALLS,   /* long transfers that call: thousands of messages */
    BARFS_SINGLE_SLOW,  /* single accesses of a device that is slow */
    BARFS_SEVERAL_SLOW, /* its other short requests */
    BARFS_LANE_KINDS,
};

/* The lanes of one device. */
struct barfs_lanes {
    struct barfs_lane each[BARFS_LANE_KINDS];
    struct barfs_pace pace;
    /* The reader's alone: */
    int64_t held_ns;       /* when a slow access last held it up */
    int64_t debt_ns;       /* what such accesses cost the other devices, less what is paid off */
    int64_t slow_until_ns; /* the device is taken for slow even if it is quick */
};

struct barfs_workers {
    barfs_answer_fn *answer;
    void *context;
    pthread_mutex_t lock; /* of all members below, and of all lanes */
    pthread_cond_t watch, spawn;
    bool stopping, watching;
    TAILQ_HEAD(, barfs_request) pending; /* not done, in order of arrival */
    SLIST_HEAD(, barfs_request) spare;   /* kept, unused */
    unsigned kept;
    SLIST_HEAD(, barfs_lane) lanes, wanting;
};

int barfs_workers_init(struct barfs_workers *workers, barfs_answer_fn *answer, void *context);

/* Free the remaining requests.  No thread may be inside any function. */
void barfs_workers_destroy(struct barfs_workers *workers);

/* The lanes must outlive the workers. */
int barfs_lanes_init(struct barfs_lanes *lanes, struct barfs_workers *workers);

/* Make the threads of a device's lanes leave: a waiting request is answered -ENODEV, a running one
 * stops before its next access (a short count, else -ENODEV), later ones are answered -ENODEV. */
void barfs_lanes_stop(struct barfs_lanes *lanes);

/* A request to receive a message into; NULL if there is no memory. */
struct barfs_request *barfs_workers_get_request(struct barfs_workers *workers);

/* Return a request that is not needed. */
void barfs_workers_put_request(struct barfs_workers *workers, struct barfs_request *request);

/* Give a request to a lane, which answers and releases it.  Its table, unique, offset, count,
 * direction and control.done are set. */
void barfs_lane_push(struct barfs_lane *lane, struct barfs_request *request);

/* End a request early: a waiting one is answered -EINTR, a running one stops before its next
 * access. One that is not found was answered already. */
void barfs_workers_interrupt(struct barfs_workers *workers, uint64_t unique);

/* The threads' functions; each returns once the workers are stopped. */
void barfs_lane_run(struct barfs_lane *lane);
void barfs_workers_watch(struct barfs_workers *workers);

/* Wait until a lane needs a thread for barfs_lane_run(); NULL once the workers are stopped. */
struct barfs_lane *barfs_workers_next_lane(struct barfs_workers *workers);

/* Its thread could not be created: answer its requests -ENOMEM; the next request asks again. */
void barfs_lane_fail(struct barfs_lane *lane);

/* Make every thread leave: barfs_lanes_stop() for every device. */
void barfs_workers_stop(struct barfs_workers *workers);

/* After a stop: answer running requests with -ENODEV.  From here on no lane answers anything. */
void barfs_workers_abandon(struct barfs_workers *workers);

#pragma GCC visibility pop

#endif
