/* SPDX-License-Identifier: MIT
 *
 * The lock is held for list operations and for early answers, never during a transfer.
 */
#define _GNU_SOURCE
#include "fuse/workers.h"
#include "engine/common.h"
#include "engine/exchange.h"

#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

static const unsigned MOST_KEPT = 6;
enum { HUGE_PAGE = 2 << 20 };
_Static_assert(sizeof(struct barfs_request) <= HUGE_PAGE, "a request fits in a huge page");
/* At 10, a lane gets a tenth of a CPU that others want. */
static const int NICE[BARFS_LANE_KINDS] = {
    [BARFS_LONG_CALLS] = 19, [BARFS_SINGLE_SLOW] = 10, [BARFS_SEVERAL_SLOW] = 10};
static const uint64_t QUICK_FROM_THE_START = UINT64_MAX / 2;
static const int64_t TICK_NS = 100000000;

/* The time that a running request gets after its deadline: its access may have a limit of its own,
 * or be about to return. */
static const int64_t SLACK_NS = 200000000;

int barfs_workers_init(struct barfs_workers *workers, barfs_answer_fn *answer, void *context)
{
    int error;

    memset(workers, 0, sizeof *workers);
    workers->answer = answer;
    workers->context = context;
    TAILQ_INIT(&workers->pending);
    SLIST_INIT(&workers->spare);
    SLIST_INIT(&workers->lanes);
    SLIST_INIT(&workers->wanting);
    error = -pthread_mutex_init(&workers->lock, NULL);
    if (error)
        return error;
    error = barfs_cond_init(&workers->watch);
    if (error)
        goto destroy_lock;
    error = barfs_cond_init(&workers->spawn);
    if (error)
        goto destroy_watch;
    return 0;

destroy_watch:
    pthread_cond_destroy(&workers->watch);
destroy_lock:
    pthread_mutex_destroy(&workers->lock);
    return error;
}

/* A request has a mapping of its own, so that freeing it returns its pages to the kernel.  The
 * first ones are in huge pages, and kept: with small pages a long transfer takes a third longer.
 * Their number is bounded, since touching one byte of a huge page allocates all of it. */
static struct barfs_request *make_request(bool huge)
{
    const size_t size = huge ? HUGE_PAGE : sizeof(struct barfs_request);
    const size_t room = huge ? 2 * HUGE_PAGE : size;
    unsigned char *start =
        mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    size_t before;

    if (start == MAP_FAILED)
        return NULL;
    before = huge ? -(uintptr_t)start & (HUGE_PAGE - 1) : 0;
    if (before)
        munmap(start, before);
    if (room - before > size)
        munmap(start + before + size, room - before - size);
    if (huge)
        madvise(start + before, size, MADV_HUGEPAGE);
    return (void *)(start + before);
}

static void free_request(struct barfs_request *request)
{
    munmap(request, request->kept ? HUGE_PAGE : sizeof *request);
}

void barfs_workers_destroy(struct barfs_workers *workers)
{
    struct barfs_request *request;
    struct barfs_lane *lane;

    while ((request = SLIST_FIRST(&workers->spare)) != NULL) {
        SLIST_REMOVE_HEAD(&workers->spare, next_spare);
        free_request(request);
    }
    /* These were answered, but their lane never got a thread. */
    while ((request = TAILQ_FIRST(&workers->pending)) != NULL) {
        TAILQ_REMOVE(&workers->pending, request, next_pending);
        free_request(request);
    }
    SLIST_FOREACH (lane, &workers->lanes, next)
        pthread_cond_destroy(&lane->wake);
    pthread_cond_destroy(&workers->spawn);
    pthread_cond_destroy(&workers->watch);
    pthread_mutex_destroy(&workers->lock);
}

int barfs_lanes_init(struct barfs_lanes *lanes, struct barfs_workers *workers)
{
    size_t made;
    int error = 0;

    memset(lanes, 0, sizeof *lanes);
    atomic_store(&lanes->pace.quick, QUICK_FROM_THE_START);
    for (made = 0; made < BARFS_LANE_KINDS; made++) {
        struct barfs_lane *lane = &lanes->each[made];

        error = barfs_cond_init(&lane->wake);
        if (error)
            goto destroy_made;
        lane->workers = workers;
        lane->pace = &lanes->pace;
        lane->nice = NICE[made];
        STAILQ_INIT(&lane->requests);
    }
    pthread_mutex_lock(&workers->lock);
    for (size_t i = 0; i < BARFS_LANE_KINDS; i++)
        SLIST_INSERT_HEAD(&workers->lanes, &lanes->each[i], next);
    pthread_mutex_unlock(&workers->lock);
    return 0;

destroy_made:
    while (made-- > 0)
        pthread_cond_destroy(&lanes->each[made].wake);
    return error;
}

static bool claim(struct barfs_request *request, enum barfs_request_state from,
                  enum barfs_request_state to)
{
    return atomic_compare_exchange_strong(&request->state, &from, to);
}

/* Claim one that waits, to answer it. */
static bool claim_waiting(struct barfs_request *request)
{
    if (!claim(request, BARFS_QUEUED, BARFS_ANSWERED))
        return false;
    barfs_exchange_drop(&request->control);
    return true;
}

/* Answer a request that is not finished: with what the reader did of it, else with the error. */
static void answer_early(struct barfs_workers *workers, struct barfs_request *request, int error)
{
    uint64_t done = request->control.done;

    workers->answer(workers->context, request, done != 0 ? (int64_t)done : error);
}

/* With the lock held: whether it waits in the middle of an access, which its lane will end. */
static bool is_under_way(const struct barfs_request *request)
{
    return atomic_load(&request->state) == BARFS_QUEUED && request->control.carried &&
           (request->lane->runs || !request->lane->workers->stopping);
}

/* With the lock held: answer a waiting request, stop a running one. */
static void end_early(struct barfs_workers *workers, struct barfs_request *request, int error)
{
    if (!is_under_way(request) && claim_waiting(request))
        answer_early(workers, request, error);
    else
        barfs_control_stop(&request->control);
}

/* With the lock held. */
static void stop_lane(struct barfs_lane *lane)
{
    struct barfs_request *request;

    atomic_store(&lane->stopping, true);
    TAILQ_FOREACH (request, &lane->workers->pending, next_pending) {
        if (request->lane == lane)
            end_early(lane->workers, request, -ENODEV);
    }
    pthread_cond_broadcast(&lane->wake);
}

void barfs_lanes_stop(struct barfs_lanes *lanes)
{
    struct barfs_workers *workers = lanes->each[0].workers;

    pthread_mutex_lock(&workers->lock);
    for (size_t i = 0; i < BARFS_LANE_KINDS; i++)
        stop_lane(&lanes->each[i]);
    pthread_mutex_unlock(&workers->lock);
}

struct barfs_request *barfs_workers_get_request(struct barfs_workers *workers)
{
    struct barfs_request *request;
    bool keep = false;

    pthread_mutex_lock(&workers->lock);
    request = SLIST_FIRST(&workers->spare);
    if (request)
        SLIST_REMOVE_HEAD(&workers->spare, next_spare);
    else if (workers->kept < MOST_KEPT)
        keep = ++workers->kept;
    pthread_mutex_unlock(&workers->lock);
    if (!request) {
        request = make_request(keep);
        if (!request)
            return NULL;
        request->kept = keep;
    }
    atomic_store_explicit(&request->control.stop, 0, memory_order_relaxed);
    atomic_store_explicit(&request->state, BARFS_QUEUED, memory_order_relaxed);
    return request;
}

/* With the lock held: release a request. */
static void spare(struct barfs_workers *workers, struct barfs_request *request)
{
    barfs_exchange_drop(&request->control);
    if (request->kept)
        SLIST_INSERT_HEAD(&workers->spare, request, next_spare);
    else
        free_request(request);
}

void barfs_workers_put_request(struct barfs_workers *workers, struct barfs_request *request)
{
    pthread_mutex_lock(&workers->lock);
    spare(workers, request);
    pthread_mutex_unlock(&workers->lock);
}

void barfs_lane_push(struct barfs_lane *lane, struct barfs_request *request)
{
    struct barfs_workers *workers = lane->workers;
    int64_t timeout = request->table->timeout_ns;
    bool wake_watch;

    request->lane = lane;
    request->control.timeout_ns = timeout;
    request->control.until_ns = 0;
    request->control.await = NULL;
    request->control.paused = false;
    request->control.pace = lane->pace;
    atomic_store_explicit(&request->control.since_ns, barfs_now_ns(), memory_order_relaxed);
    atomic_store_explicit(&request->control.turns, NULL, memory_order_relaxed);
    pthread_mutex_lock(&workers->lock);
    if (atomic_load(&lane->stopping)) {
        answer_early(workers, request, -ENODEV);
        spare(workers, request);
        pthread_mutex_unlock(&workers->lock);
        return;
    }
    atomic_fetch_add(&lane->unfinished, 1);
    TAILQ_INSERT_TAIL(&workers->pending, request, next_pending);
    STAILQ_INSERT_TAIL(&lane->requests, request, next_in_lane);
    if (!lane->has_thread) {
        lane->has_thread = true;
        SLIST_INSERT_HEAD(&workers->wanting, lane, next_wanting);
        pthread_cond_signal(&workers->spawn);
    }
    wake_watch = !workers->watching;
    workers->watching = true;
    pthread_mutex_unlock(&workers->lock);
    /* Signal after unlocking, so that the woken thread finds the lock free.  Lanes outlive us. */
    pthread_cond_signal(&lane->wake);
    if (wake_watch)
        pthread_cond_signal(&workers->watch);
}

/* With the lock held: remove and release a finished request. */
static void retire(struct barfs_workers *workers, struct barfs_request *request)
{
    TAILQ_REMOVE(&workers->pending, request, next_pending);
    spare(workers, request);
}

static inline int64_t later(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* With the lock held: when the device began to owe this request an answer. */
static int64_t owed_since(const struct barfs_request *request)
{
    const struct barfs_lane *lane = request->lane;
    int64_t since = later(atomic_load_explicit(&request->control.since_ns, memory_order_relaxed),
                          lane->answered_ns);

    if (lane->running) {
        const struct barfs_control *control = &lane->running->control;
        const struct barfs_turns *turns =
            atomic_load_explicit(&control->turns, memory_order_relaxed);

        since = later(since, atomic_load_explicit(&control->since_ns, memory_order_relaxed));
        if (turns)
            since = later(since, atomic_load_explicit(&turns->answered_ns, memory_order_relaxed));
    }
    return since;
}

/* With the lock held: whether the device has exceeded the timeout by `slack_ns`. */
static bool is_late(const struct barfs_request *request, int64_t now, int64_t slack_ns)
{
    int64_t timeout = request->control.timeout_ns;

    return timeout != 0 && now - owed_since(request) >= timeout + slack_ns;
}

/* With the lock held: begin a claimed request; false if its device has already used up its time. */
static bool begin(struct barfs_lane *lane, struct barfs_request *request)
{
    if (is_late(request, barfs_now_ns(), 0))
        return false;
    atomic_store_explicit(&request->control.since_ns, owed_since(request), memory_order_relaxed);
    lane->running = request;
    return true;
}

/* With the lock held. */
static void end(struct barfs_lane *lane, const struct barfs_request *request)
{
    lane->running = NULL;
    lane->answered_ns = later(
        lane->answered_ns, atomic_load_explicit(&request->control.since_ns, memory_order_relaxed));
}

/* The thread's wake-ups are to preempt no other: its clients wait long anyhow.  Not SCHED_IDLE: on
 * a busy machine, a thread that holds the interpreter's lock, or the device's, could take seconds
 * to release it.  Any process may set both; if a sandbox forbids it, these requests cost the short
 * ones some time. */
static void step_back(int nice)
{
    const struct sched_param none = {0};

    pthread_setschedparam(pthread_self(), SCHED_BATCH, &none);
    setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), getpriority(PRIO_PROCESS, 0) + nice);
}

void barfs_lane_run(struct barfs_lane *lane)
{
    struct barfs_workers *workers = lane->workers;

    if (lane->nice)
        step_back(lane->nice);
    pthread_mutex_lock(&workers->lock);
    lane->runs = true;
    for (;;) {
        struct barfs_request *request = STAILQ_FIRST(&lane->requests);

        if (!request) {
            if (atomic_load(&lane->stopping))
                break;
            pthread_cond_wait(&lane->wake, &workers->lock);
            continue;
        }
        STAILQ_REMOVE_HEAD(&lane->requests, next_in_lane);
        if (claim(request, BARFS_QUEUED, BARFS_RUNNING)) {
            uint64_t done = request->control.done;
            int64_t result = done != 0 ? (int64_t)done : -ETIMEDOUT;
            bool begun = begin(lane, request);

            pthread_mutex_unlock(&workers->lock);
            request->control.looked_ns = barfs_now_ns();
            if (begun)
                result = barfs_transfer(request->table, request->offset,
                                        request->message + BARFS_PAYLOAD, request->count,
                                        request->direction, &request->control);
            if (result == -EINTR && atomic_load(&lane->stopping))
                result = -ENODEV; /* EINTR would make the client retry in vain */
            /* Before the client can send its next one. */
            atomic_fetch_sub(&lane->unfinished, 1);
            if (claim(request, BARFS_RUNNING, BARFS_ANSWERED))
                workers->answer(workers->context, request, result);
            pthread_mutex_lock(&workers->lock);
            end(lane, request);
        } else {
            atomic_fetch_sub(&lane->unfinished, 1);
        }
        retire(workers, request);
    }
    pthread_mutex_unlock(&workers->lock);
}

void barfs_workers_interrupt(struct barfs_workers *workers, uint64_t unique)
{
    struct barfs_request *request;

    pthread_mutex_lock(&workers->lock);
    TAILQ_FOREACH (request, &workers->pending, next_pending) {
        if (request->unique != unique)
            continue;
        end_early(workers, request, -EINTR);
        break;
    }
    pthread_mutex_unlock(&workers->lock);
}

/* With the lock held: answer late requests.  A running one checks by itself between accesses. */
static void answer_late(struct barfs_workers *workers)
{
    int64_t now = barfs_now_ns();
    struct barfs_request *request;

    TAILQ_FOREACH (request, &workers->pending, next_pending) {
        if (!is_late(request, now, 0))
            continue;
        if (claim_waiting(request) ||
            (is_late(request, now, SLACK_NS) && claim(request, BARFS_RUNNING, BARFS_ANSWERED)))
            answer_early(workers, request, -ETIMEDOUT);
    }
}

void barfs_workers_watch(struct barfs_workers *workers)
{
    bool was_busy = false;

    pthread_mutex_lock(&workers->lock);
    while (!workers->stopping) {
        /* Sleep only after a quiet tick, so that a stream of requests does not wake us for each. */
        bool busy = !TAILQ_EMPTY(&workers->pending);

        if (busy || was_busy) {
            struct timespec until = barfs_timespec(barfs_now_ns() + TICK_NS);

            was_busy = busy;
            pthread_cond_timedwait(&workers->watch, &workers->lock, &until);
            answer_late(workers);
        } else {
            workers->watching = false;
            pthread_cond_wait(&workers->watch, &workers->lock);
        }
    }
    pthread_mutex_unlock(&workers->lock);
}

struct barfs_lane *barfs_workers_next_lane(struct barfs_workers *workers)
{
    struct barfs_lane *lane;

    pthread_mutex_lock(&workers->lock);
    while (!workers->stopping && SLIST_EMPTY(&workers->wanting))
        pthread_cond_wait(&workers->spawn, &workers->lock);
    lane = workers->stopping ? NULL : SLIST_FIRST(&workers->wanting);
    if (lane)
        SLIST_REMOVE_HEAD(&workers->wanting, next_wanting);
    pthread_mutex_unlock(&workers->lock);
    return lane;
}

void barfs_lane_fail(struct barfs_lane *lane)
{
    struct barfs_workers *workers = lane->workers;
    struct barfs_request *request;

    pthread_mutex_lock(&workers->lock);
    lane->has_thread = false;
    while ((request = STAILQ_FIRST(&lane->requests)) != NULL) {
        STAILQ_REMOVE_HEAD(&lane->requests, next_in_lane);
        atomic_fetch_sub(&lane->unfinished, 1);
        if (claim_waiting(request))
            answer_early(workers, request, -ENOMEM);
        retire(workers, request);
    }
    pthread_mutex_unlock(&workers->lock);
}

void barfs_workers_stop(struct barfs_workers *workers)
{
    struct barfs_lane *lane;

    pthread_mutex_lock(&workers->lock);
    workers->stopping = true;
    SLIST_FOREACH (lane, &workers->lanes, next)
        stop_lane(lane);
    pthread_cond_broadcast(&workers->watch);
    pthread_cond_broadcast(&workers->spawn);
    pthread_mutex_unlock(&workers->lock);
}

void barfs_workers_abandon(struct barfs_workers *workers)
{
    struct barfs_request *request;

    pthread_mutex_lock(&workers->lock);
    TAILQ_FOREACH (request, &workers->pending, next_pending) {
        if (claim(request, BARFS_RUNNING, BARFS_ANSWERED))
            answer_early(workers, request, -ENODEV);
    }
    pthread_mutex_unlock(&workers->lock);
}
