/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "fuse/placement.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const unsigned MOST_BETWEEN_MOVES = 2048;

/* The CPU that a thread ran on last, of the allowed ones; -1: none of them, or it is not known. */
static int cpu_of(const struct barfs_placement *placement, int32_t thread)
{
    static const int PROCESSOR = 39, STATE = 3; /* fields: proc_pid_stat(5) */
    char path[32], text[1024], *at;
    ssize_t length;
    int fd, cpu;

    snprintf(path, sizeof path, "/proc/%d/stat", thread);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    length = read(fd, text, sizeof text - 1);
    close(fd);
    if (length <= 0)
        return -1;
    text[length] = '\0';
    at = strrchr(text, ')'); /* the name before it may hold anything */
    for (int field = STATE; at && field <= PROCESSOR; field++)
        at = strchr(at + 1, ' ');
    if (!at)
        return -1;
    cpu = atoi(at);
    return cpu >= 0 && cpu < CPU_SETSIZE && CPU_ISSET((size_t)cpu, &placement->allowed) ? cpu : -1;
}

/* The one CPU of nearly all requests, or -1. */
static int common_cpu(const struct barfs_placement *placement)
{
    unsigned elsewhere = placement->requests;
    int cpu = -1;

    for (unsigned i = 0; i < placement->client_count; i++) {
        const struct barfs_followed *client = &placement->clients[i];
        int other = cpu_of(placement, client->thread);

        if (cpu < 0 && client->requests > placement->requests / 2 / BARFS_MOST_FOLLOWED)
            cpu = other;
        if (other >= 0 && other == cpu)
            elsewhere -= client->requests;
    }
    return elsewhere <= placement->requests / 8 ? cpu : -1;
}

static void choose(struct barfs_placement *placement, const cpu_set_t *wanted)
{
    if (!CPU_EQUAL(wanted, &placement->chosen) && sched_setaffinity(0, sizeof *wanted, wanted) == 0)
        placement->chosen = *wanted;
}

/* Take up what another has set.  False if that leaves no choice. */
static bool look(struct barfs_placement *placement)
{
    cpu_set_t now, main_thread;

    if (sched_getaffinity(0, sizeof now, &now) < 0 ||
        sched_getaffinity(getpid(), sizeof main_thread, &main_thread) < 0)
        return false;
    if (!CPU_EQUAL(&now, &placement->chosen))
        placement->allowed = placement->chosen = now;
    else if (!CPU_EQUAL(&main_thread, &placement->main_thread))
        placement->allowed = main_thread;
    placement->main_thread = main_thread;
    return CPU_COUNT(&placement->allowed) > 1;
}

void barfs_placement_begin(struct barfs_placement *placement)
{
    memset(placement, 0, sizeof *placement);
    placement->between_moves = BARFS_LEAST_BETWEEN_MOVES;
    placement->active = look(placement);
    placement->allowed = placement->chosen;
}

void barfs_placement_end(struct barfs_placement *placement)
{
    if (placement->active && look(placement))
        choose(placement, &placement->allowed);
}

void barfs_placement_move(struct barfs_placement *placement)
{
    bool stays = false;

    if (look(placement)) {
        cpu_set_t wanted = placement->allowed;
        int cpu = common_cpu(placement);

        if (cpu >= 0) {
            CPU_ZERO(&wanted);
            CPU_SET((size_t)cpu, &wanted);
        }
        stays = CPU_EQUAL(&wanted, &placement->chosen);
        choose(placement, &wanted);
    }
    if (!stays)
        placement->between_moves = BARFS_LEAST_BETWEEN_MOVES;
    else if (placement->between_moves < MOST_BETWEEN_MOVES)
        placement->between_moves *= 2;
    placement->last = placement->client_count ? placement->clients[0].thread : 0;
    placement->requests = 0;
    placement->client_count = 0;
}
