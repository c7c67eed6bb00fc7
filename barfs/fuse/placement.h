/* SPDX-License-Identifier: MIT
 *
 * Keeps the reader on the CPU where its client runs: the scheduler may leave them on two, and then
 * each request wakes a CPU that sleeps.
 *
 * Rule 1: the reader follows clients that all run on one CPU.  With clients on several CPUs, it
 *         runs wherever it may.
 * Rule 2: it stays within the CPUs that it had at first.  If anything else changes them, these are
 *         the CPUs that it has from then on.
 */
#ifndef BARFS_PLACEMENT_H
#define BARFS_PLACEMENT_H

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>

#pragma GCC visibility push(hidden)

enum { BARFS_MOST_FOLLOWED = 4, BARFS_REQUESTS_BETWEEN_MOVES = 256 };

struct barfs_placement {
    bool active; /* there is a choice of CPUs */
    cpu_set_t allowed, chosen;
    unsigned requests;                    /* since the last move */
    unsigned client_count;                /* BARFS_MOST_FOLLOWED + 1: too many */
    int32_t clients[BARFS_MOST_FOLLOWED]; /* threads */
};

/* The calling thread is the reader. */
void barfs_placement_begin(struct barfs_placement *placement);

/* Let it run anywhere again. */
void barfs_placement_end(struct barfs_placement *placement);

/* Follow the clients noted since the last move. */
void barfs_placement_move(struct barfs_placement *placement);

/* A request of the thread `client`; 0: the kernel does not tell. */
static inline void barfs_placement_note(struct barfs_placement *placement, int32_t client)
{
    if (!placement->active || client <= 0)
        return;
    for (unsigned i = 0;; i++) {
        if (i == placement->client_count || i == BARFS_MOST_FOLLOWED) {
            if (placement->client_count <= BARFS_MOST_FOLLOWED)
                placement->client_count++;
            if (i < BARFS_MOST_FOLLOWED)
                placement->clients[i] = client;
            break;
        }
        if (placement->clients[i] == client)
            break;
    }
    if (++placement->requests == BARFS_REQUESTS_BETWEEN_MOVES)
        barfs_placement_move(placement);
}

#pragma GCC visibility pop

#endif
