/* SPDX-License-Identifier: MIT
 *
 * Asks as a program under `barfs run` does, and checks that no descriptor is left.
 *
 *     ask FOLDER COUNT
 *
 * For each question it prints the error, or 0 and the count of windows.
 */
#define _GNU_SOURCE
#include "preload/ask.h"
#include "../../support/require.h"

#include <fcntl.h>
#include <unistd.h>

static int lowest_free(void)
{
    int fd = dup(STDIN_FILENO);

    REQUIRE(fd >= 0 && close(fd) == 0);
    return fd;
}

int main(int count, char **words)
{
    static struct barfs_map_reply reply;
    static struct barfs_descriptors descriptors;
    int folder;

    REQUIRE(count == 3);
    folder = open(words[1], O_PATH | O_DIRECTORY);
    REQUIRE(folder >= 0);
    for (int left = atoi(words[2]); left > 0; left--) {
        int before = lowest_free();
        int error = barfs_ask(folder, 42, &reply, &descriptors);

        REQUIRE(error == 0 || descriptors.count == 0);
        for (uint32_t i = 0; i < descriptors.count; i++)
            REQUIRE(fcntl(descriptors.fd[i], F_GETFD) == FD_CLOEXEC);
        barfs_descriptors_close(&descriptors);
        REQUIRE(lowest_free() == before);
        printf("%d %u\n", error, error ? 0 : reply.windows);
        fflush(stdout);
    }
    return 0;
}
