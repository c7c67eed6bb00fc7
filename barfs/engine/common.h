/* SPDX-License-Identifier: MIT
 *
 * Time, conditions and arithmetic that several files use.
 *
 * Every header puts its declarations between `#pragma GCC visibility push(hidden)` and `pop`.  The
 * option -fvisibility=hidden covers definitions only; without the pragma, calls from one file to
 * another would go through the PLT.
 */
#ifndef BARFS_COMMON_H
#define BARFS_COMMON_H

#include <pthread.h>
#include <stdint.h>
#include <time.h>

#if __SIZEOF_POINTER__ != 8
#error "barfs needs a 64-bit processor: a register of 8 bytes must be one access"
#endif
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "barfs needs a little-endian processor: PCI is little-endian, and barfs swaps no bytes"
#endif

#define BARFS_NS_PER_S INT64_C(1000000000)

/* CLOCK_MONOTONIC; all deadlines are measured on it. */
static inline int64_t barfs_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * BARFS_NS_PER_S + now.tv_nsec;
}

static inline struct timespec barfs_timespec(int64_t ns)
{
    return (struct timespec){.tv_sec = ns / BARFS_NS_PER_S, .tv_nsec = ns % BARFS_NS_PER_S};
}

/* Initialise a condition whose deadlines are on CLOCK_MONOTONIC.  Returns 0 or -errno. */
static inline int barfs_cond_init(pthread_cond_t *condition)
{
    pthread_condattr_t attributes;
    int error = pthread_condattr_init(&attributes);

    if (error)
        return -error;
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    error = pthread_cond_init(condition, &attributes);
    pthread_condattr_destroy(&attributes);
    return -error;
}

static inline uint64_t barfs_min(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

#endif
