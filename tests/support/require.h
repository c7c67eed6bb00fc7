/* SPDX-License-Identifier: MIT
 *
 * REQUIRE() for tests that are C programs: abort unless a condition holds.
 */
#ifndef BARFS_TESTS_REQUIRE_H
#define BARFS_TESTS_REQUIRE_H

#include <stdio.h>
#include <stdlib.h>

#define REQUIRE(condition)                                          \
    do {                                                            \
        if (!(condition)) {                                         \
            fprintf(stderr, "line %d: %s\n", __LINE__, #condition); \
            abort();                                                \
        }                                                           \
    } while (0)

#endif
