/* SPDX-License-Identifier: MIT */
#include "engine/forks.h"

#include <pthread.h>

unsigned barfs_forks;

static void count(void)
{
    barfs_forks++;
}

__attribute__((constructor)) static void watch(void)
{
    pthread_atfork(NULL, NULL, count);
}
