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

/* Receive once, unless that was done; the socket has the limit of time. */
static void receive(struct barfs_exchanger *exchanger, int flags)
{
    struct barfs_handed *handed = &exchanger->handed;
    ssize_t received;

    if (handed->received > 0 || handed->error)
        return;
    received = recv(exchanger->fd, handed->reply, sizeof handed->reply, flags);
    handed->received = received > 0 ? (uint32_t)received : 0;
    handed->error = received < 0 && errno != EAGAIN && errno != EINTR ? errno : 0;
}

static void fill_in(const struct barfs_exchanger *exchanger, const uint8_t *template,
                    uint64_t offset, uint8_t *head)
{
    memcpy(head, template, exchanger->head);
    memcpy(head + exchanger->id_at, &exchanger->last_id, sizeof exchanger->last_id);
    memcpy(head + exchanger->offset_at, &offset, sizeof offset);
}

struct message {
    const struct barfs_template *template;
    uint64_t offset;
    uint32_t width;
    enum barfs_direction direction;
    void *data;
};

/* False if nothing was sent. */
static bool ask(struct barfs_exchanger *exchanger, const struct message *message)
{
    struct barfs_handed *handed = &exchanger->handed;
    ssize_t sent;

    exchanger->last_id++;
    fill_in(exchanger, message->template->request, message->offset, handed->request);
    handed->size = exchanger->head;
    if (message->direction == BARFS_WRITE) {
        memcpy(handed->request + exchanger->head, message->data, message->width);
        handed->size += message->width;
    }
    handed->since_ns = barfs_now_ns();
    sent = send(exchanger->fd, handed->request, handed->size, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent <= 0)
        return false;
    handed->sent = (uint32_t)sent;
    handed->received = 0;
    handed->error = 0;
    handed->set = true;
    return true;
}

/* Whether the plain reply is there; its data is copied then. */
static bool is_answered(struct barfs_exchanger *exchanger, const struct message *message)
{
    struct barfs_handed *handed = &exchanger->handed;
    uint32_t data_size = message->direction == BARFS_READ ? message->width : 0;
    uint8_t expected[BARFS_MOST_HEAD];

    fill_in(exchanger, message->template->reply, message->offset, expected);
    if (handed->sent != handed->size || handed->received != exchanger->head + data_size ||
        memcmp(handed->reply, expected, exchanger->head) != 0)
        return false;
    memcpy(message->data, handed->reply + exchanger->head, data_size);
    handed->set = false;
    barfs_exchanger_answer(exchanger);
    return true;
}

/* For the thread that goes on with it. */
static enum barfs_exchanged put_aside(const struct barfs_exchange *exchange,
                                      struct barfs_control *control)
{
    control->carried = exchange;
    atomic_store_explicit(&exchange->exchanger->owner, 0, memory_order_relaxed);
    return BARFS_UNDER_WAY;
}

static void pick_up(struct barfs_control *control)
{
    atomic_store_explicit(&control->carried->exchanger->owner, this_thread(), memory_order_relaxed);
    control->carried = NULL;
}

enum barfs_exchanged barfs_exchange(const struct barfs_exchange *exchange, uint64_t offset,
                                    uint32_t width, enum barfs_direction direction, void *data,
                                    struct barfs_control *control)
{
    struct barfs_exchanger *exchanger = exchange->exchanger;
    const struct message message = {&exchange->templates[direction][__builtin_ctz(width)], offset,
                                    width, direction, data};

    if (control->carried) {
        pick_up(control);
    } else {
        if (is_mine(exchanger) || !try_to_take(exchanger))
            return BARFS_NOT_SENT;
        if (!exchanger->at_rest || !ask(exchanger, &message)) {
            barfs_exchanger_leave(exchanger);
            return BARFS_NOT_SENT;
        }
        if (control->await && !control->await(control->await_context, exchanger->fd))
            return put_aside(exchange, control);
    }
    if (exchanger->handed.sent == exchanger->handed.size)
        receive(exchanger, control->await ? MSG_DONTWAIT : 0);
    if (is_answered(exchanger, &message)) {
        barfs_exchanger_leave(exchanger);
        return BARFS_EXCHANGED;
    }
    if (control->await)
        return put_aside(exchange, control);
    exchanger->at_rest = false;
    return BARFS_HANDED_OVER;
}

/* If Python ended before it took the request over, the next thread there finds it. */
void barfs_exchange_end(const struct barfs_exchange *exchange)
{
    barfs_exchanger_leave(exchange->exchanger);
}

void barfs_exchange_drop(struct barfs_control *control)
{
    struct barfs_exchanger *exchanger;

    if (!control->carried)
        return;
    exchanger = control->carried->exchanger;
    pick_up(control);
    exchanger->at_rest = false;
    barfs_exchanger_leave(exchanger);
}
