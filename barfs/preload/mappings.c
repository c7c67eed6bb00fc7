/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "preload/mappings.h"

#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>

#include "preload/calls.h"

static struct barfs_mapping *_Atomic first;

/* Held with all signals blocked. */
static _Atomic uint32_t lock;

static void acquire(sigset_t *before)
{
    int saved = errno;
    sigset_t all;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, before);
    while (atomic_exchange(&lock, 1) != 0)
        syscall(SYS_futex, &lock, FUTEX_WAIT_PRIVATE, 1, NULL, NULL, 0);
    errno = saved;
}

static void release(const sigset_t *before)
{
    atomic_store(&lock, 0);
    syscall(SYS_futex, &lock, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    pthread_sigmask(SIG_SETMASK, before, NULL);
}

/* Another thread may have held the lock when this process was forked. */
static void renew_lock(void)
{
    atomic_store(&lock, 0);
}

__attribute__((constructor)) static void watch_forks(void)
{
    pthread_atfork(NULL, NULL, renew_lock);
}

static struct barfs_mapping *take(void)
{
    struct barfs_mapping *mapping = atomic_load(&first);
    void *memory;

    while (mapping != NULL && mapping->taken)
        mapping = mapping->next;
    if (mapping == NULL) {
        memory = call_mmap(NULL, sizeof(*mapping), PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED)
            return NULL;
        mapping = memory;
        mapping->next = atomic_load(&first);
        atomic_store(&first, mapping);
    }
    mapping->taken = true;
    return mapping;
}

struct barfs_mapping *barfs_mapping_new(void)
{
    struct barfs_mapping *mapping;
    sigset_t before;

    acquire(&before);
    mapping = take();
    release(&before);
    return mapping;
}

void barfs_mapping_drop(struct barfs_mapping *mapping)
{
    sigset_t before;

    acquire(&before);
    mapping->taken = false;
    release(&before);
}

void barfs_mapping_publish(struct barfs_mapping *mapping, uintptr_t start, uintptr_t end)
{
    atomic_store(&mapping->start, start);
    atomic_store(&mapping->end, end);
}

struct barfs_mapping *barfs_mapping_find(uintptr_t start, uintptr_t end)
{
    struct barfs_mapping *mapping = atomic_load(&first);

    while (mapping != NULL &&
           (atomic_load(&mapping->end) <= start || end <= atomic_load(&mapping->start)))
        mapping = mapping->next;
    return mapping;
}

/* What is left of a mapping above a hole becomes one of its own.  Without memory, it is no longer
 * known, as if the program had mapped it itself.
 */
static void keep_above(const struct barfs_mapping *mapping, uintptr_t start, uintptr_t end)
{
    struct barfs_mapping *above = take();

    if (above == NULL)
        return;
    above->address = mapping->address;
    above->offset = mapping->offset;
    above->protection = mapping->protection;
    strcpy(above->path, mapping->path);
    memcpy(&above->reply, &mapping->reply,
           offsetof(struct barfs_map_reply, window) +
               mapping->reply.windows * sizeof(mapping->reply.window[0]));
    barfs_mapping_publish(above, start, end);
}

static void cut(struct barfs_mapping *mapping, uintptr_t start, uintptr_t end)
{
    uintptr_t from = atomic_load(&mapping->start), to = atomic_load(&mapping->end);

    if (start > from) {
        atomic_store(&mapping->end, start);
        if (end < to)
            keep_above(mapping, end, to);
    } else if (end < to) {
        atomic_store(&mapping->start, end);
    } else {
        atomic_store(&mapping->end, 0);
        mapping->taken = false;
    }
}

void barfs_mapping_forget(uintptr_t start, uintptr_t end)
{
    struct barfs_mapping *mapping;
    sigset_t before;

    /* Without a lock: almost nothing that a program unmaps is a region. */
    if (barfs_mapping_find(start, end) == NULL)
        return;
    acquire(&before);
    while ((mapping = barfs_mapping_find(start, end)) != NULL)
        cut(mapping, start, end);
    release(&before);
}
