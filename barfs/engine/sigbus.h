/* SPDX-License-Identifier: MIT
 *
 * The SIGBUS guard: a load or store on a mapping whose page the device (or a peer) took away ends
 * that transfer, not the process.
 *
 * Rule 1: only the fault of a guarded access is taken: this thread is armed, the kernel raised the
 *         signal for an access, and its address lies in the armed range.  Every other SIGBUS goes to
 *         whoever handled it before, or kills the process as if barfs were not there.
 * Rule 2: armed code does nothing but volatile accesses and plain copies: no call, no lock, no
 *         allocation.  siglongjmp() over any of those would leave it half done.
 * Rule 3: the caller owns the frame, so guards nest (a Python entry that reads another table).
 *
 * How to use it (the whole pattern, once per transfer):
 *
 *     struct barfs_sigbus_frame guard;
 *     barfs_sigbus_prepare_thread();
 *     if (sigsetjmp(guard.env, 0) == 0) {
 *         barfs_sigbus_arm(&guard, base, size);
 *         ... volatile accesses in ascending order, in a noinline function ...
 *         barfs_sigbus_disarm();
 *     } else {
 *         ... barfs_sigbus_done(&guard) bytes were done before the one that faulted; disarmed ...
 *     }
 *
 * What is guaranteed.  barfs_sigbus_install() puts the handler in force.  It stays in force unless
 * other code in the process installs a SIGBUS handler later, which nothing can forbid:
 *   - a handler that, like faulthandler.enable(), reports, puts ours back and raises the signal
 *     again: the fault is survived, at the price of its report, and ours is in force again;
 *   - faulthandler.disable(), when enabled before barfs_sigbus_install(), removes ours without a
 *     trace, and any other sigaction() may: the next fault is fatal unless barfs_sigbus_install() is
 *     called again.  The Python face does so before the next access when faulthandler's state has
 *     changed; other code that touches SIGBUS calls it itself.
 * SIGBUS is unblocked once per thread, at its first transfer; a thread that blocks it later and
 * faults is killed by the kernel.
 */
#ifndef BARFS_SIGBUS_H
#define BARFS_SIGBUS_H

#include <setjmp.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#pragma GCC visibility push(hidden)

struct barfs_sigbus_frame {
    sigjmp_buf env;
    uintptr_t base;       /* of the accesses */
    uintptr_t start, end; /* the pages they lie in */
    volatile uintptr_t fault;
};

/* The handler may only touch thread-local storage that needs no allocation: initial-exec. */
#define BARFS_THREAD_LOCAL _Thread_local __attribute__((tls_model("initial-exec")))

extern BARFS_THREAD_LOCAL struct barfs_sigbus_frame *volatile barfs_sigbus_current;
extern BARFS_THREAD_LOCAL bool barfs_sigbus_unblocked;
extern uintptr_t barfs_sigbus_page_mask; /* page size - 1; set by install */

/* Put the handler in force, on top of whatever is there now.  Idempotent and thread-safe; one
 * system call when there is nothing to do.  Returns 0, or -errno. */
int barfs_sigbus_install(void);

/* Unblock SIGBUS in the calling thread. */
void barfs_sigbus_unblock(void);

/* Make the calling thread ready for guarded accesses; free after the first call. */
static inline void barfs_sigbus_prepare_thread(void)
{
    if (!barfs_sigbus_unblocked)
        barfs_sigbus_unblock();
}

/* Take faults in [base, base + size), rounded out to pages, until disarmed.  guard->env is set. */
static inline void barfs_sigbus_arm(struct barfs_sigbus_frame *frame, const volatile void *base,
                                    size_t size)
{
    frame->base = (uintptr_t)base;
    frame->start = (uintptr_t)base & ~barfs_sigbus_page_mask;
    frame->end = ((uintptr_t)base + size + barfs_sigbus_page_mask) & ~barfs_sigbus_page_mask;
    atomic_signal_fence(memory_order_seq_cst);
    barfs_sigbus_current = frame;
    atomic_signal_fence(memory_order_seq_cst);
}

static inline void barfs_sigbus_disarm(void)
{
    atomic_signal_fence(memory_order_seq_cst);
    barfs_sigbus_current = NULL;
    atomic_signal_fence(memory_order_seq_cst);
}

/* After a fault: how far from `base` it was.  A counter kept up to date by a store beside each access
 * says the same and halves the speed of RAM.  The kernel gives the address of the access; only for a
 * memory error (BUS_MCEERR_AR) may it give that of the page, which says too little, never too much. */
static inline uint64_t barfs_sigbus_done(const struct barfs_sigbus_frame *frame)
{
    return frame->fault > frame->base ? frame->fault - frame->base : 0;
}

#pragma GCC visibility pop

#endif
