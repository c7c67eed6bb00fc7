/* SPDX-License-Identifier: MIT
 *
 * Requests that take long, off the thread that reads requests.
 *
 * Rule 1: a request is answered exactly once.  Who moves its state to ANSWERED answers it: the lane
 *         that ran it, the reader that got an interrupt for it, the watch when it is late, or whoever
 *         stops the lane.
 * Rule 2: a device has three lanes, each with a thread of its own: for short requests whose accesses
 *         are calls, for long transfers, and for long transfers that call.  Nothing that one device
 *         does delays another, and a long transfer delays a short one by no more than an access.  The
 *         third is SCHED_BATCH, and nice: it goes to sleep and is woken for each of its accesses, and would come
 *         before a short request every time.
 * Rule 3: the deadline is the device's, not the request's: it counts from the last access that was
 *         completed in the lane, and from arrival where that was later.  So what waits behind a
 *         transfer that progresses is never late.  The watch answers for one that hangs inside an
 *         access, and for those that wait behind it; what another lane does cures neither, unless
 *         the access waits for its turn (struct barfs_turns).
 *
 *     reader -> push() -> lane -> barfs_lane_run(): barfs_transfer() -> answer
 *                           |
 *     interrupt, watch -----+---> answer first; what the lane brings back is then dropped
 *
 * A lane's thread is made when its first request comes: barfs_workers_next_lane() tells whoever makes
 * threads which lane wants one.  Nobody wakes up while nothing is queued.
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

/* Where the data of a WRITE request and of a READ reply stands in a message: behind the longest
 * header that comes before data, so that one buffer serves both. */
#define BARFS_PAYLOAD 80u
#define BARFS_MOST_DATA (1u << 20)
#define BARFS_MESSAGE_SIZE (BARFS_MOST_DATA + 4096u)

enum barfs_request_state { BARFS_QUEUED, BARFS_RUNNING, BARFS_ANSWERED };

/* A message, and the request that it holds.  It is read into in place, and answered from. */
struct barfs_request {
    STAILQ_ENTRY(barfs_request) next_in_lane;
    TAILQ_ENTRY(barfs_request) next_pending; /* in order of arrival */
    SLIST_ENTRY(barfs_request) next_spare;
    _Atomic(enum barfs_request_state) state;
    bool kept; /* and not given back to the kernel */
    struct barfs_control control;
    const struct barfs_table *table;
    struct barfs_lane *lane; /* that it was given to */
    uint64_t unique;         /* the kernel's name for it */
    uint64_t offset, count;
    enum barfs_direction direction;
    size_t length; /* of the message as it came */
    /* The data begins a page: the kernel copies page by page, and would touch each twice. */
    _Alignas(4096) unsigned char unused[4096 - BARFS_PAYLOAD];
    unsigned char message[BARFS_MESSAGE_SIZE];
};

/* Answer a request: `result` is the bytes done, or -errno; a read's data stands at BARFS_PAYLOAD. */
typedef void barfs_answer_fn(void *context, struct barfs_request *request, int64_t result);

struct barfs_lane {
    struct barfs_workers *workers;
    pthread_cond_t wake;
    STAILQ_HEAD(, barfs_request) requests; /* that wait */
    struct barfs_request *running;
    int64_t answered_ns; /* when what has run completed its last access */
    SLIST_ENTRY(barfs_lane) next, next_wanting;
    bool has_thread, patient;
    atomic_bool stopping; /* written with the lock held */
};

/* The lanes of one device. */
struct barfs_lanes {
    struct barfs_lane quick; /* short requests that call */
    struct barfs_lane slow;  /* long transfers */
    /* long transfers that call: thousands of messages, each worth a switch */
    struct barfs_lane patient;
};

struct barfs_workers {
    barfs_answer_fn *answer;
    void *context;
    pthread_mutex_t lock; /* of all that follows, and of all lanes */
    pthread_cond_t watch, spawn;
    bool stopping, watching;
    TAILQ_HEAD(, barfs_request) pending; /* not done, in order of arrival */
    SLIST_HEAD(, barfs_request) spare;   /* of those that are kept */
    unsigned kept;
    SLIST_HEAD(, barfs_lane) lanes, wanting;
};

int barfs_workers_init(struct barfs_workers *workers, barfs_answer_fn *answer, void *context);

/* Free what is left.  No thread is inside any function of the queue. */
void barfs_workers_destroy(struct barfs_workers *workers);

/* The lanes live as long as the queue. */
int barfs_lanes_init(struct barfs_lanes *lanes, struct barfs_workers *workers);

/* Make the threads of a device's lanes leave: what waits is answered -ENODEV, what runs stops before
 * its next access (a short count, else -ENODEV), and what comes later is answered -ENODEV. */
void barfs_lanes_stop(struct barfs_lanes *lanes);

/* A request to read a message into; NULL when there is no memory. */
struct barfs_request *barfs_workers_get_request(struct barfs_workers *workers);

/* A request that was taken and is not needed. */
void barfs_workers_put_request(struct barfs_workers *workers, struct barfs_request *request);

/* Give a request to a lane, which answers it and keeps it.  Its table, unique, offset, count and
 * direction are set. */
void barfs_lane_push(struct barfs_lane *lane, struct barfs_request *request);

/* End a request early: one that waits is answered -EINTR, one that runs stops before its next access.
 * One that is not here was answered already. */
void barfs_workers_interrupt(struct barfs_workers *workers, uint64_t unique);

/* The threads' functions; each returns once the queue is stopped. */
void barfs_lane_run(struct barfs_lane *lane);
void barfs_workers_watch(struct barfs_workers *workers);

/* Wait until a lane wants a thread for barfs_lane_run(); NULL once the queue is stopped. */
struct barfs_lane *barfs_workers_next_lane(struct barfs_workers *workers);

/* The thread could not be made: what waits is answered -ENOMEM, the next request asks again. */
void barfs_lane_fail(struct barfs_lane *lane);

/* Make every thread leave, as barfs_lanes_stop() of every device. */
void barfs_workers_stop(struct barfs_workers *workers);

/* After stop: answer what still runs with -ENODEV.  No lane answers anything from here on. */
void barfs_workers_abandon(struct barfs_workers *workers);

#pragma GCC visibility pop

#endif
