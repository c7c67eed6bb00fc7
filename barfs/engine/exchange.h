/* SPDX-License-Identifier: MIT
 *
 * An access that is a message and its reply on a stream socket, without the interpreter.
 *
 * Rule 1: no code here knows a protocol.  Python's codec makes the bytes of requests and of their
 *         plain replies, and tells where the id and the offset go.
 * Rule 2: what is not plain is Python's.  Unless the connection is at rest, nothing is sent here.
 *         A request whose plain reply does not arrive in one piece is handed to Python with what
 *         has arrived; it is the same thread that goes on there.  Nothing is sent twice.
 *         A thread that does not wait leaves the request under way, for itself or another.
 * Rule 3: one thread at a time uses the connection, here or in Python.  A thread that waits for it
 *         comes before one that has just used it.
 */
#ifndef BARFS_EXCHANGE_H
#define BARFS_EXCHANGE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/transfer.h"

#pragma GCC visibility push(hidden)

enum { BARFS_MOST_HEAD = 32, BARFS_MOST_REQUEST = BARFS_MOST_HEAD + 8, BARFS_MOST_RECEIVED = 4096 };

enum barfs_entered {
    BARFS_BUSY,
    BARFS_ENTERED,
    BARFS_ENTERED_HANDED, /* this thread has it from barfs_exchange(), with a request under way */
};

enum barfs_exchanged {
    BARFS_NOT_SENT,
    BARFS_EXCHANGED,
    BARFS_HANDED_OVER,
    BARFS_UNDER_WAY,
};

/* A request that was sent and is not finished. */
struct barfs_handed {
    bool set;
    int64_t since_ns; /* CLOCK_MONOTONIC: when it was begun */
    int error;        /* of the socket; 0: none */
    uint32_t size, sent, received;
    uint8_t request[BARFS_MOST_REQUEST];
    uint8_t reply[BARFS_MOST_RECEIVED];
};

/* A connection. */
struct barfs_exchanger {
    int fd;
    uint32_t head, id_at, offset_at; /* the bytes before the data, and places in them */
    pthread_mutex_t lock;            /* of the next five */
    pthread_cond_t left;
    bool busy, passed_on; /* passed on: to one of those who wait */
    unsigned waiting, depth;
    _Atomic uintptr_t owner; /* the thread that has entered; 0: none */
    /* Of the owner: */
    bool at_rest; /* no request is outstanding, no message is incomplete */
    uint16_t last_id;
    struct barfs_handed handed;
    _Atomic int64_t answered_ns; /* CLOCK_MONOTONIC: the last reply */
};

struct barfs_template {
    uint8_t request[BARFS_MOST_HEAD], reply[BARFS_MOST_HEAD];
};

/* The accesses of one region, by direction and by the logarithm of their width. */
struct barfs_exchange {
    struct barfs_exchanger *exchanger;
    struct barfs_template templates[2][4];
};

/* NULL, with errno, if there is no memory. */
struct barfs_exchanger *barfs_exchanger_new(int fd, uint32_t head, uint32_t id_at,
                                            uint32_t offset_at);
void barfs_exchanger_free(struct barfs_exchanger *exchanger);

/* Begin to use the connection, which is not at rest from then on; wait up to `timeout_ns`.  A
 * thread may enter again. */
enum barfs_entered barfs_exchanger_enter(struct barfs_exchanger *exchanger, int64_t timeout_ns);

/* Undo an enter; nothing happens in a thread that has not entered. */
void barfs_exchanger_leave(struct barfs_exchanger *exchanger);

/* When the peer last replied; and that it did so now. */
int64_t barfs_exchanger_answered(struct barfs_exchanger *exchanger);
void barfs_exchanger_answer(struct barfs_exchanger *exchanger);

/* One access, or the rest of the one that `control` carries.  If the request was not sent, or was
 * handed over, the caller asks Python, and calls barfs_exchange_end() after the latter.  If it is
 * under way, the control carries it. */
enum barfs_exchanged barfs_exchange(const struct barfs_exchange *exchange, uint64_t offset,
                                    uint32_t width, enum barfs_direction direction, void *data,
                                    struct barfs_control *control);
void barfs_exchange_end(const struct barfs_exchange *exchange);

/* Give up the request that a control carries, if any: Python takes it over. */
void barfs_exchange_drop(struct barfs_control *control);

#pragma GCC visibility pop

#endif
