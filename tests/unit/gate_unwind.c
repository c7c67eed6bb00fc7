/* SPDX-License-Identifier: MIT
 *
 * A constructor of the gate that fails undoes what it did: each call that it makes fails in turn.
 * Linked with --wrap for each of those calls by test_engine_c.py.
 */
#define _GNU_SOURCE
#include "../support/require.h"
#include "fuse/gate.h"

#include <errno.h>
#include <pthread.h>

static unsigned until_failure; /* the number of the call that fails; 0: none */
static int balance;            /* objects made and not destroyed */

void *__real_calloc(size_t count, size_t size);
void __real_free(void *memory);
int __real_pthread_mutex_init(pthread_mutex_t *mutex, const pthread_mutexattr_t *attributes);
int __real_pthread_mutex_destroy(pthread_mutex_t *mutex);
int __real_pthread_cond_init(pthread_cond_t *condition, const pthread_condattr_t *attributes);
int __real_pthread_cond_destroy(pthread_cond_t *condition);

void *__wrap_calloc(size_t count, size_t size);
void __wrap_free(void *memory);
int __wrap_pthread_mutex_init(pthread_mutex_t *mutex, const pthread_mutexattr_t *attributes);
int __wrap_pthread_mutex_destroy(pthread_mutex_t *mutex);
int __wrap_pthread_cond_init(pthread_cond_t *condition, const pthread_condattr_t *attributes);
int __wrap_pthread_cond_destroy(pthread_cond_t *condition);

static bool fails(void)
{
    if (until_failure && --until_failure == 0)
        return true;
    balance++;
    return false;
}

void *__wrap_calloc(size_t count, size_t size)
{
    if (fails()) {
        errno = ENOMEM;
        return NULL;
    }
    return __real_calloc(count, size);
}

void __wrap_free(void *memory)
{
    balance -= memory != NULL;
    __real_free(memory);
}

int __wrap_pthread_mutex_init(pthread_mutex_t *mutex, const pthread_mutexattr_t *attributes)
{
    return fails() ? ENOMEM : __real_pthread_mutex_init(mutex, attributes);
}

int __wrap_pthread_mutex_destroy(pthread_mutex_t *mutex)
{
    balance--;
    return __real_pthread_mutex_destroy(mutex);
}

int __wrap_pthread_cond_init(pthread_cond_t *condition, const pthread_condattr_t *attributes)
{
    return fails() ? ENOMEM : __real_pthread_cond_init(condition, attributes);
}

int __wrap_pthread_cond_destroy(pthread_cond_t *condition)
{
    balance--;
    return __real_pthread_cond_destroy(condition);
}

/* NULL while the gate's constructor makes a `failing`th call, which fails. */
static struct barfs_gate *make_gate(unsigned failing)
{
    struct barfs_gate *gate;

    until_failure = failing;
    errno = 0;
    gate = barfs_gate_new(-1, -1);
    until_failure = 0;
    if (!gate)
        REQUIRE(errno == ENOMEM && balance == 0);
    return gate;
}

static struct barfs_lanes *add_device(struct barfs_gate *gate, unsigned failing)
{
    int before = balance;
    struct barfs_lanes *lanes;

    until_failure = failing;
    errno = 0;
    lanes = barfs_gate_add_device(gate);
    until_failure = 0;
    if (!lanes)
        REQUIRE(errno == ENOMEM && balance == before);
    return lanes;
}

int main(void)
{
    struct barfs_gate *gate;
    unsigned gate_calls = 1, device_calls = 1;

    while ((gate = make_gate(gate_calls)) == NULL)
        gate_calls++;
    while (add_device(gate, device_calls) == NULL)
        device_calls++;
    REQUIRE(gate_calls > 7 && device_calls > 3);
    barfs_gate_free(gate);
    REQUIRE(balance == 0);
    return 0;
}
