/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "engine/sigbus.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

BARFS_THREAD_LOCAL struct barfs_sigbus_frame *volatile barfs_sigbus_current;
BARFS_THREAD_LOCAL bool barfs_sigbus_unblocked;
uintptr_t barfs_sigbus_page_mask;

/* The handler before ours.  Two slots, so that a handler running while another thread installs
 * never sees a half-written one. */
static struct sigaction previous_slots[2];
static struct sigaction *_Atomic previous = &previous_slots[0];
static pthread_mutex_t install_lock = PTHREAD_MUTEX_INITIALIZER;

/* If a handler returns from a fault without mending it, the access faults again, endlessly:
 * faulthandler's returns once disabled, and any handler of Python's signal.signal() does.  After
 * this many calls in a row the fault gets the default action. */
enum { FRUITLESS_CALLS = 1000 };

static BARFS_THREAD_LOCAL struct {
    const void *address; /* of the last fault passed on */
    unsigned times;      /* in a row */
    bool inside;         /* the previous handler is running */
} passed_on;

static void default_action(int signum, const siginfo_t *info)
{
    struct sigaction action = {.sa_handler = SIG_DFL};

    sigaction(signum, &action, NULL);
    if (info->si_code <= 0)
        raise(signum); /* sent, not a fault: returning would not repeat it */
}

static void pass_on(int signum, siginfo_t *info, void *context)
{
    const struct sigaction *action = atomic_load(&previous);
    bool sent = info->si_code <= 0;

    if (!sent) {
        if (info->si_addr != passed_on.address)
            passed_on.times = 0;
        passed_on.address = info->si_addr;
        passed_on.times++;
    }
    if (passed_on.times > FRUITLESS_CALLS || (sent && passed_on.inside)) {
        /* The second case: faulthandler is above and below us, restored us, and raised. */
        default_action(signum, info);
    } else if (action->sa_flags & SA_SIGINFO) {
        passed_on.inside = true;
        action->sa_sigaction(signum, info, context);
        passed_on.inside = false;
    } else if (action->sa_handler == SIG_IGN && sent) {
        return;
    } else if (action->sa_handler == SIG_DFL || action->sa_handler == SIG_IGN) {
        default_action(signum, info); /* as the kernel does for an ignored fault */
    } else {
        passed_on.inside = true;
        action->sa_handler(signum);
        passed_on.inside = false;
    }
}

static bool takes(const struct barfs_sigbus_frame *frame, int code, uintptr_t address)
{
    /* An external abort whose FAR is not valid: do_sea() in arch/arm64/mm/fault.c. */
    if (code == BUS_OBJERR && address == 0)
        return true;
    return code != BUS_MCEERR_AO && address >= frame->start && address < frame->end;
}

static void on_sigbus(int signum, siginfo_t *info, void *context)
{
    int saved_errno = errno;
    struct barfs_sigbus_frame *frame = barfs_sigbus_current;
    uintptr_t address = (uintptr_t)info->si_addr;

    if (frame != NULL) {
        if (info->si_code <= 0)
            return; /* raised by a handler above ours: the access will fault again */
        if (takes(frame, info->si_code, address)) {
            barfs_sigbus_current = NULL;
            frame->fault = address;
            siglongjmp(frame->env, 1);
        }
    }
    pass_on(signum, info, context);
    errno = saved_errno;
}

/* Another thread may have held the lock when this process was forked. */
static void renew_lock(void)
{
    pthread_mutex_init(&install_lock, NULL);
}

__attribute__((constructor)) static void watch_forks(void)
{
    pthread_atfork(NULL, NULL, renew_lock);
}

int barfs_sigbus_install(void)
{
    /* SA_NODEFER and an empty mask: siglongjmp() out of the handler has no mask to restore. */
    struct sigaction ours = {
        .sa_sigaction = on_sigbus,
        .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER,
    };
    struct sigaction found;
    int result = 0;

    pthread_mutex_lock(&install_lock);
    barfs_sigbus_page_mask = (uintptr_t)sysconf(_SC_PAGESIZE) - 1;
    if (sigaction(SIGBUS, NULL, &found) != 0) {
        result = -errno;
    } else if (!(found.sa_flags & SA_SIGINFO) || found.sa_sigaction != on_sigbus) {
        struct sigaction *slot = &previous_slots[atomic_load(&previous) == &previous_slots[0]];

        *slot = found;
        atomic_store(&previous, slot);
        if (sigaction(SIGBUS, &ours, NULL) != 0)
            result = -errno;
    }
    pthread_mutex_unlock(&install_lock);
    return result;
}

void barfs_sigbus_unblock(void)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGBUS);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    barfs_sigbus_unblocked = true;
}
