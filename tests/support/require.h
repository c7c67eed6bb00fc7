/* SPDX-License-Identifier: MIT
 *
 * What must hold in a test that is a C program, or it ends there.
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
