/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "engine/exchange.h"
#include "engine/common.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

struct barfs_exchanger *barfs_exchanger_new(int fd, uint32_t head, uint32_t id_at,
                                            uint32_t offset_at)
{
    struct barfs_exchanger *exchanger = calloc(1, sizeof *exchanger);
    int error;

    if (!exchanger)
        return NULL;
    exchanger->fd = fd;
    exchanger->head = head;
    exchanger->id_at = id_at;
    exchanger->offset_at = offset_at;
    error = -pthread_mutex_init(&exchanger->lock, NULL);
    if (error)
        goto free_exchanger;
    error = barfs_cond_init(&exchanger->left);
    if (error)
        goto destroy_lock;
    return exchanger;

destroy_lock:
    pthread_mutex_destroy(&exchanger->lock);
free_exchanger:
    free(exchanger);
    errno = -error;
    return NULL;
}

void barfs_exchanger_free(struct barfs_exchanger *exchanger)
{
    pthread_cond_destroy(&exchanger->left);
    pthread_mutex_destroy(&exchanger->lock);
    free(exchanger);
}

/* ---- Who uses it ----------------------------------------------------------------------------- */

static uintptr_t this_thread(void)
{
    return (uintptr_t)pthread_self();
}

static bool is_mine(struct barfs_exchanger *exchanger)
{
    return atomic_load_explicit(&exchanger->owner, memory_order_relaxed) == this_thread();
}

/* With the lock held. */
static void take(struct barfs_exchanger *exchanger)
{
    exchanger->busy = true;
    exchanger->passed_on = false;
    exchanger->depth = 1;
    atomic_store_explicit(&exchanger->owner, this_thread(), memory_order_relaxed);
}

static bool try_to_take(struct barfs_exchanger *exchanger)
{
    bool taken;

    pthread_mutex_lock(&exchanger->lock);
    taken = !exchanger->busy && !exchanger->passed_on;
    if (taken)
        take(exchanger);
    pthread_mutex_unlock(&exchanger->lock);
    return taken;
}

/* One that comes while it is passed on waits for those before it. */
static bool wait_to_take(struct barfs_exchanger *exchanger, int64_t timeout_ns)
{
    struct timespec until = barfs_timespec(barfs_now_ns() + timeout_ns);
    bool wait, taken;
    int error = 0;

    pthread_mutex_lock(&exchanger->lock);
    exchanger->waiting++;
    wait = exchanger->busy || exchanger->passed_on;
    while (wait && error == 0) {
        error = pthread_cond_timedwait(&exchanger->left, &exchanger->lock, &until);
        wait = exchanger->busy;
    }
    exchanger->waiting--;
    taken = !exchanger->busy;
    if (taken)
        take(exchanger);
    pthread_mutex_unlock(&exchanger->lock);
    return taken;
}

enum barfs_entered barfs_exchanger_enter(struct barfs_exchanger *exchanger, int64_t timeout_ns)
{
    if (is_mine(exchanger)) {
        exchanger->depth++;
        return exchanger->handed.set ? BARFS_ENTERED_HANDED : BARFS_ENTERED;
    }
    if (!try_to_take(exchanger) && (timeout_ns <= 0 || !wait_to_take(exchanger, timeout_ns)))
        return BARFS_BUSY;
    exchanger->at_rest = false;
    return BARFS_ENTERED;
}

void barfs_exchanger_leave(struct barfs_exchanger *exchanger)
{
    bool wake;

    if (!is_mine(exchanger) || --exchanger->depth > 0)
        return;
    pthread_mutex_lock(&exchanger->lock);
    atomic_store_explicit(&exchanger->owner, 0, memory_order_relaxed);
    exchanger->busy = false;
    wake = exchanger->passed_on = exchanger->waiting > 0;
    pthread_mutex_unlock(&exchanger->lock);
    if (wake)
        pthread_cond_signal(&exchanger->left);
}

int64_t barfs_exchanger_answered(struct barfs_exchanger *exchanger)
{
    return atomic_load_explicit(&exchanger->answered_ns, memory_order_relaxed);
}

void barfs_exchanger_answer(struct barfs_exchanger *exchanger)
{
    atomic_store_explicit(&exchanger->answered_ns, barfs_now_ns(), memory_order_relaxed);
}

/* ---- An access ------------------------------------------------------------------------------- */

static void patch(const struct barfs_exchanger *exchanger, uint8_t *head, uint64_t offset)
{
    memcpy(head + exchanger->id_at, &exchanger->last_id, sizeof exchanger->last_id);
    memcpy(head + exchanger->offset_at, &offset, sizeof offset);
}

/* Send the request.  False if nothing of it was sent. */
static bool send_request(struct barfs_exchanger *exchanger)
{
    struct barfs_handed *handed = &exchanger->handed;
    ssize_t sent =
        send(exchanger->fd, handed->request, handed->size, MSG_NOSIGNAL | MSG_DONTWAIT);

    handed->sent = sent > 0 ? (uint32_t)sent : 0;
    return sent > 0;
}

/* Receive once; the socket has the limit of time. */
static void receive(struct barfs_exchanger *exchanger)
{
    struct barfs_handed *handed = &exchanger->handed;
    ssize_t received = recv(exchanger->fd, handed->reply, sizeof handed->reply, 0);

    handed->received = received > 0 ? (uint32_t)received : 0;
    handed->error = received < 0 && errno != EAGAIN && errno != EINTR ? errno : 0;
}

static bool is_plain(const struct barfs_exchanger *exchanger, const uint8_t *expected,
                     uint32_t size)
{
    const struct barfs_handed *handed = &exchanger->handed;

    return handed->sent == handed->size && handed->received == size &&
           memcmp(handed->reply, expected, exchanger->head) == 0;
}

static enum barfs_exchanged exchange_messages(struct barfs_exchanger *exchanger,
                                              const struct barfs_template *template,
                                              uint64_t offset, uint32_t width,
                                              enum barfs_direction direction, void *data)
{
    struct barfs_handed *handed = &exchanger->handed;
    uint8_t expected[BARFS_MOST_HEAD];
    uint32_t head = exchanger->head;

    exchanger->last_id++;
    memcpy(handed->request, template->request, sizeof template->request);
    patch(exchanger, handed->request, offset);
    memcpy(expected, template->reply, sizeof expected);
    patch(exchanger, expected, offset);
    handed->size = head;
    if (direction == BARFS_WRITE) {
        memcpy(handed->request + head, data, width);
        handed->size += width;
    }
    handed->since_ns = barfs_now_ns();
    if (!send_request(exchanger))
        return BARFS_NOT_SENT;
    handed->set = true;
    if (handed->sent == handed->size)
        receive(exchanger);
    if (!is_plain(exchanger, expected, direction == BARFS_READ ? head + width : head)) {
        exchanger->at_rest = false;
        return BARFS_HANDED_OVER;
    }
    if (direction == BARFS_READ)
        memcpy(data, handed->reply + head, width);
    handed->set = false;
    barfs_exchanger_answer(exchanger);
    return BARFS_EXCHANGED;
}

enum barfs_exchanged barfs_exchange(const struct barfs_exchange *exchange, uint64_t offset,
                                    uint32_t width, enum barfs_direction direction, void *data)
{
    struct barfs_exchanger *exchanger = exchange->exchanger;
    const struct barfs_template *template = &exchange->templates[direction][__builtin_ctz(width)];
    enum barfs_exchanged how = BARFS_NOT_SENT;

    if (is_mine(exchanger) || !try_to_take(exchanger))
        return BARFS_NOT_SENT;
    if (exchanger->at_rest)
        how = exchange_messages(exchanger, template, offset, width, direction, data);
    if (how != BARFS_HANDED_OVER)
        barfs_exchanger_leave(exchanger);
    return how;
}

/* If Python ended before it took the request over, the next thread there finds it. */
void barfs_exchange_end(const struct barfs_exchange *exchange)
{
    barfs_exchanger_leave(exchange->exchanger);
}
