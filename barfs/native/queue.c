/* SPDX-License-Identifier: MIT
 *
 * The lock is held for list surgery and for answers that come early; never during a transfer.
 */
#define _GNU_SOURCE
#include "queue.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

static const unsigned MOST_SPARE = 4;
static const int64_t TICK_NS = 100000000;

/* How long after its deadline a request that runs is given up: it may just be about to notice. */
static const int64_t SLACK_NS = 200000000;

static int init_condition(pthread_cond_t *condition)
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

int barfs_queue_init(struct barfs_queue *queue, barfs_answer_fn *answer, void *context)
{
    int error;

    memset(queue, 0, sizeof *queue);
    queue->answer = answer;
    queue->context = context;
    error = -pthread_mutex_init(&queue->lock, NULL);
    if (!error)
        error = init_condition(&queue->watch);
    if (!error)
        error = init_condition(&queue->spawn);
    return error;
}

static void free_request(struct barfs_request *request)
{
    munmap(request, sizeof *request);
}

void barfs_queue_destroy(struct barfs_queue *queue)
{
    while (queue->spare) {
        struct barfs_request *request = queue->spare;

        queue->spare = request->next;
        free_request(request);
    }
    for (struct barfs_lane *lane = queue->lanes; lane; lane = lane->next)
        pthread_cond_destroy(&lane->wake);
    pthread_cond_destroy(&queue->spawn);
    pthread_cond_destroy(&queue->watch);
    pthread_mutex_destroy(&queue->lock);
}

static int init_lane(struct barfs_lane *lane, struct barfs_queue *queue)
{
    int error;

    memset(lane, 0, sizeof *lane);
    lane->queue = queue;
    error = init_condition(&lane->wake);
    if (error)
        return error;
    pthread_mutex_lock(&queue->lock);
    lane->next = queue->lanes;
    queue->lanes = lane;
    pthread_mutex_unlock(&queue->lock);
    return 0;
}

int barfs_lanes_init(struct barfs_lanes *lanes, struct barfs_queue *queue)
{
    int error = init_lane(&lanes->quick, queue);

    return error ? error : init_lane(&lanes->slow, queue);
}

/* With the lock held. */
static void stop_lane(struct barfs_lane *lane)
{
    lane->stopping = true;
    pthread_cond_broadcast(&lane->wake);
}

void barfs_lanes_stop(struct barfs_lanes *lanes)
{
    pthread_mutex_lock(&lanes->quick.queue->lock);
    stop_lane(&lanes->quick);
    stop_lane(&lanes->slow);
    pthread_mutex_unlock(&lanes->quick.queue->lock);
}

struct barfs_request *barfs_queue_take(struct barfs_queue *queue)
{
    struct barfs_request *request;

    pthread_mutex_lock(&queue->lock);
    request = queue->spare;
    if (request) {
        queue->spare = request->next;
        queue->spare_count--;
    }
    pthread_mutex_unlock(&queue->lock);
    if (!request) {
        /* Its own mapping, so that pages of data go back to the kernel with it. */
        request = mmap(NULL, sizeof *request, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (request == MAP_FAILED)
            return NULL;
    }
    request->next = request->newer = request->older = NULL;
    atomic_store_explicit(&request->control.stop, 0, memory_order_relaxed);
    atomic_store_explicit(&request->state, BARFS_QUEUED, memory_order_relaxed);
    return request;
}

/* With the lock held: keep a request for the next one to come. */
static void spare(struct barfs_queue *queue, struct barfs_request *request)
{
    if (queue->spare_count < MOST_SPARE) {
        request->next = queue->spare;
        queue->spare = request;
        queue->spare_count++;
    } else {
        free_request(request);
    }
}

void barfs_queue_give_back(struct barfs_queue *queue, struct barfs_request *request)
{
    pthread_mutex_lock(&queue->lock);
    spare(queue, request);
    pthread_mutex_unlock(&queue->lock);
}

static bool claim(struct barfs_request *request, int from, int to)
{
    return atomic_compare_exchange_strong(&request->state, &from, to);
}

void barfs_queue_push(struct barfs_lane *lane, struct barfs_request *request)
{
    struct barfs_queue *queue = lane->queue;
    int64_t timeout = request->table->timeout_ns;

    request->control.deadline_ns = timeout ? barfs_now_ns() + timeout : 0;
    pthread_mutex_lock(&queue->lock);
    if (lane->stopping) {
        queue->answer(queue->context, request, -ENODEV);
        spare(queue, request);
        pthread_mutex_unlock(&queue->lock);
        return;
    }
    request->older = queue->newest;
    *(queue->newest ? &queue->newest->newer : &queue->oldest) = request;
    queue->newest = request;
    *(lane->last ? &lane->last->next : &lane->first) = request;
    lane->last = request;
    if (!lane->has_thread) {
        lane->has_thread = true;
        lane->next_wanting = queue->wanting;
        queue->wanting = lane;
        pthread_cond_signal(&queue->spawn);
    }
    if (!queue->watching) {
        queue->watching = true;
        pthread_cond_signal(&queue->watch);
    }
    pthread_cond_signal(&lane->wake);
    pthread_mutex_unlock(&queue->lock);
}

/* With the lock held: the request is done with. */
static void retire(struct barfs_queue *queue, struct barfs_request *request)
{
    *(request->older ? &request->older->newer : &queue->oldest) = request->newer;
    *(request->newer ? &request->newer->older : &queue->newest) = request->older;
    spare(queue, request);
}

void barfs_lane_run(struct barfs_lane *lane)
{
    struct barfs_queue *queue = lane->queue;

    pthread_mutex_lock(&queue->lock);
    for (;;) {
        struct barfs_request *request = lane->first;

        if (!request) {
            if (lane->stopping)
                break;
            pthread_cond_wait(&lane->wake, &queue->lock);
            continue;
        }
        lane->first = request->next;
        if (!lane->first)
            lane->last = NULL;
        if (claim(request, BARFS_QUEUED, BARFS_RUNNING)) {
            int64_t result;

            pthread_mutex_unlock(&queue->lock);
            result = barfs_transfer(request->table, request->offset, request->message + BARFS_PAYLOAD,
                                    request->count, request->direction, &request->control);
            if (claim(request, BARFS_RUNNING, BARFS_ANSWERED))
                queue->answer(queue->context, request, result);
            pthread_mutex_lock(&queue->lock);
        }
        retire(queue, request);
    }
    pthread_mutex_unlock(&queue->lock);
}

void barfs_queue_interrupt(struct barfs_queue *queue, uint64_t unique)
{
    pthread_mutex_lock(&queue->lock);
    for (struct barfs_request *request = queue->oldest; request; request = request->newer) {
        if (request->unique != unique)
            continue;
        if (claim(request, BARFS_QUEUED, BARFS_ANSWERED))
            queue->answer(queue->context, request, -EINTR);
        else
            barfs_control_stop(&request->control);
        break;
    }
    pthread_mutex_unlock(&queue->lock);
}

/* With the lock held: answer what is late.  One that runs notices by itself between accesses. */
static void answer_late(struct barfs_queue *queue)
{
    int64_t now = barfs_now_ns();

    for (struct barfs_request *request = queue->oldest; request; request = request->newer) {
        int64_t deadline = request->control.deadline_ns;

        if (!deadline || now < deadline)
            continue;
        if (claim(request, BARFS_QUEUED, BARFS_ANSWERED) ||
            (now >= deadline + SLACK_NS && claim(request, BARFS_RUNNING, BARFS_ANSWERED)))
            queue->answer(queue->context, request, -ETIMEDOUT);
    }
}

void barfs_queue_watch(struct barfs_queue *queue)
{
    bool was_busy = false;

    pthread_mutex_lock(&queue->lock);
    while (!queue->stopping) {
        /* One quiet tick before going to sleep: a stream of requests does not wake us for each. */
        if (queue->oldest || was_busy) {
            int64_t next = barfs_now_ns() + TICK_NS;
            struct timespec until = {.tv_sec = next / 1000000000, .tv_nsec = next % 1000000000};

            was_busy = queue->oldest != NULL;
            pthread_cond_timedwait(&queue->watch, &queue->lock, &until);
            answer_late(queue);
        } else {
            queue->watching = false;
            pthread_cond_wait(&queue->watch, &queue->lock);
        }
    }
    pthread_mutex_unlock(&queue->lock);
}

struct barfs_lane *barfs_queue_next_lane(struct barfs_queue *queue)
{
    struct barfs_lane *lane;

    pthread_mutex_lock(&queue->lock);
    while (!queue->stopping && !queue->wanting)
        pthread_cond_wait(&queue->spawn, &queue->lock);
    lane = queue->stopping ? NULL : queue->wanting;
    if (lane)
        queue->wanting = lane->next_wanting;
    pthread_mutex_unlock(&queue->lock);
    return lane;
}

void barfs_queue_stop(struct barfs_queue *queue)
{
    pthread_mutex_lock(&queue->lock);
    queue->stopping = true;
    for (struct barfs_request *request = queue->oldest; request; request = request->newer) {
        if (claim(request, BARFS_QUEUED, BARFS_ANSWERED))
            queue->answer(queue->context, request, -ENODEV);
        else
            barfs_control_stop(&request->control);
    }
    for (struct barfs_lane *lane = queue->lanes; lane; lane = lane->next)
        stop_lane(lane);
    pthread_cond_broadcast(&queue->watch);
    pthread_cond_broadcast(&queue->spawn);
    pthread_mutex_unlock(&queue->lock);
}
