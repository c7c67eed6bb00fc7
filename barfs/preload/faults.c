/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "preload/faults.h"

#include <signal.h>
#include <stddef.h>

#include "preload/calls.h"
#include "preload/mappings.h"
#include "preload/tell.h"

enum { WIDTH = 4 /* what barfs md reads at once */ };

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

static void on_fault(int signum, siginfo_t *info, void *context)
{
    int saved = errno;
    struct sigaction action = {.sa_handler = SIG_DFL};
    uintptr_t address = (uintptr_t)info->si_addr;
    const struct barfs_mapping *mapping;

    (void)context;
    sigaction(signum, &action, NULL);
    if (is_fault(signum, info)) {
        mapping = barfs_mapping_find(address, address + 1);
        if (mapping != NULL)
            tell(signum, mapping, address);
        /* The access will fault again, now with the default action. */
    } else {
        raise(signum);
    }
    errno = saved;
}

void barfs_faults_watch(void)
{
    static const int signals[] = {SIGSEGV, SIGBUS};
    struct sigaction ours = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    struct sigaction found;

    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
        if (sigaction(signals[i], NULL, &found) == 0 && !(found.sa_flags & SA_SIGINFO) &&
            found.sa_handler == SIG_DFL)
            sigaction(signals[i], &ours, NULL);
}
