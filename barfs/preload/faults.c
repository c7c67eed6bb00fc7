/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "preload/faults.h"

#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>

#include "preload/calls.h"
#include "preload/mappings.h"
#include "preload/tell.h"

enum { WIDTH = 4 /* what barfs md reads at once */ };

/* What was installed when the first region was mapped, for SIGSEGV and SIGBUS. */
static struct sigaction before[2];

static bool in_window(const struct barfs_mapping *mapping, uint64_t offset)
{
    const struct barfs_map_reply *reply = &mapping->reply;
    uint32_t i = 0;

    while (i < reply->windows && offset >= reply->window[i].offset + reply->window[i].size)
        i++;
    return i < reply->windows && offset >= reply->window[i].offset;
}

static void tell(int signum, const struct barfs_mapping *mapping, uintptr_t address)
{
    uint64_t offset = mapping->offset + (address - mapping->address);
    const char *name = signum == SIGBUS ? "SIGBUS" : "SIGSEGV";

    if (offset >= mapping->reply.size) {
        barfs_tell("%s: %n+%x is past the end of the region, %x", name, mapping->path, offset,
                   mapping->reply.size);
    } else if (!in_window(mapping, offset)) {
        barfs_tell("%s: %n+%x is in a gap, which cannot be mapped; read it with: barfs md %w %x",
                   name, mapping->path, offset, mapping->path, offset - offset % WIDTH);
    } else if (signum == SIGBUS) {
        barfs_tell("%s: the device did not answer at %n+%x; for the reason: barfs md %w %x", name,
                   mapping->path, offset, mapping->path, offset - offset % WIDTH);
    }
}

static bool is_fault(int signum, const siginfo_t *info)
{
    return info->si_code > 0 && info->si_code != SI_KERNEL &&
           !(signum == SIGBUS && info->si_code == BUS_MCEERR_AO);
}

/* Whether the program has given up: the next fault will end it. */
static bool is_default(int signum)
{
    struct sigaction found;

    return sigaction(signum, NULL, &found) == 0 && !(found.sa_flags & SA_SIGINFO) &&
           found.sa_handler == SIG_DFL;
}

static void on_fault(int signum, siginfo_t *info, void *context)
{
    const struct sigaction *theirs = &before[signum == SIGBUS];
    struct sigaction action = {.sa_handler = SIG_DFL};
    uintptr_t address = (uintptr_t)info->si_addr;
    bool fault = is_fault(signum, info), own = true;
    const struct barfs_mapping *mapping;
    int saved;

    if (theirs->sa_flags & SA_SIGINFO)
        theirs->sa_sigaction(signum, info, context);
    else if (theirs->sa_handler != SIG_DFL)
        theirs->sa_handler(signum);
    else
        own = false;
    saved = errno;
    if (fault && (!own || is_default(signum))) {
        mapping = barfs_mapping_find(address, address + 1);
        if (mapping != NULL)
            tell(signum, mapping, address);
    }
    if (!own) {
        sigaction(signum, &action, NULL);
        if (!fault)
            raise(signum); /* a fault comes again by itself */
    }
    errno = saved;
}

/* Put our handler in front of what is there, with the same flags and mask. */
static void watch(int signum)
{
    struct sigaction *theirs = &before[signum == SIGBUS];
    struct sigaction ours;

    if (sigaction(signum, NULL, theirs) != 0 || theirs->sa_flags & (int)SA_RESETHAND ||
        (!(theirs->sa_flags & SA_SIGINFO) && theirs->sa_handler == SIG_IGN))
        return;
    ours = *theirs;
    ours.sa_sigaction = on_fault;
    ours.sa_flags |= SA_SIGINFO;
    if (is_default(signum))
        ours.sa_flags |= SA_ONSTACK;
    sigaction(signum, &ours, NULL);
}

void barfs_faults_watch(void)
{
    static atomic_flag done = ATOMIC_FLAG_INIT;

    if (atomic_flag_test_and_set(&done))
        return;
    watch(SIGSEGV);
    watch(SIGBUS);
}
