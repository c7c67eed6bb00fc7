/* SPDX-License-Identifier: MIT
 *
 * Keeps the reader on the CPU where its client runs: the scheduler may leave them on two, and then
 * each request wakes a CPU that sleeps.
 *
 * Rule 1: the reader follows clients on one CPU that send nearly all requests.  With clients on
 *         several CPUs, it runs wherever it may.
 * Rule 2: it stays within the CPUs that it had at first.  If anything else changes them, or those
 *         of the process's main thread (taskset -ap, a cpuset), these are its CPUs from then on.
 * Rule 3: it looks less often while its client stays.
 */
#ifndef BARFS_PLACEMENT_H
#define BARFS_PLACEMENT_H

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>

#pragma GCC visibility push(hidden)

enum { BARFS_MOST_FOLLOWED = 4, BARFS_LEAST_BETWEEN_MOVES = 256 };

struct barfs_followed {
    int32_t thread;
    unsigned requests;
};

struct barfs_placement {
    bool active; /* there is a choice of CPUs */
    cpu_set_t allowed, chosen, main_thread;
    unsigned requests, between_moves; /* since the last move, and until the next */
    int32_t last;                     /* the first client before that */
    unsigned client_count;
    struct barfs_followed clients[BARFS_MOST_FOLLOWED];
};

/* The calling thread is the reader. */
void barfs_placement_begin(struct barfs_placement *placement);

/* Let it run anywhere again. */
void barfs_placement_end(struct barfs_placement *placement);

/* Follow the clients noted since the last move. */
void barfs_placement_move(struct barfs_placement *placement);

/* A request of the thread `client`; 0: the kernel does not tell.  Of further threads than the first
 * few, only the requests count. */
static inline void barfs_placement_note(struct barfs_placement *placement, int32_t client)
{
    unsigned i = 0;

    if (!placement->active || client <= 0)
        return;
    while (i < placement->client_count && placement->clients[i].thread != client)
        i++;
    if (i < BARFS_MOST_FOLLOWED) {
        if (i == placement->client_count) {
            placement->clients[placement->client_count++] = (struct barfs_followed){client, 0};
            if (client != placement->last)
                placement->between_moves = BARFS_LEAST_BETWEEN_MOVES;
        }
        placement->clients[i].requests++;
    }
    if (++placement->requests >= placement->between_moves)
        barfs_placement_move(placement);
}

#pragma GCC visibility pop

#endif
