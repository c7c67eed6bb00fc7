/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "preload/ask.h"

#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>

#include "preload/calls.h"
#include "preload/reply.h"

enum { SECONDS = 5 };

static int64_t now_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

/* Let the next call on the socket wait until `deadline`.  It is set again for each: a call that a
 * signal interrupts starts its timeout anew.
 */
static bool limit(int fd, int64_t deadline)
{
    int64_t left = deadline - now_us();
    struct timeval time = {.tv_sec = (time_t)(left / 1000000),
                           .tv_usec = (suseconds_t)(left % 1000000)};

    return left > 0 && setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &time, sizeof(time)) == 0 &&
           setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof(time)) == 0;
}

static bool again(int fd, int64_t deadline, long result)
{
    return result < 0 && errno == EINTR && limit(fd, deadline);
}

/* Whether the mount has a socket, wherever that is. */
static bool has_socket(int root)
{
    char target[1];

    return syscall(SYS_readlinkat, root, BARFS_MAP_NAME, target, sizeof(target)) > 0;
}

/* Connect through the link in the root: the path of the socket may be too long for sun_path. */
static int call_connect(int fd, int root, int64_t deadline)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length;
    long result;

    length = fd_link(address.sun_path, root);
    memcpy(address.sun_path + length, "/" BARFS_MAP_NAME, sizeof("/" BARFS_MAP_NAME));
    if (!limit(fd, deadline))
        return ETIMEDOUT;
    do
        result = syscall(SYS_connect, fd, &address, sizeof(address));
    while (again(fd, deadline, result));
    if (result == 0)
        return 0;
    switch (errno) {
    case EAGAIN:
    case EINTR:
        return ETIMEDOUT;
    case EACCES: /* the socket's directory is its owner's */
        return EPERM;
    case ENOENT:
        return has_socket(root) ? EHOSTUNREACH : ENXIO;
    case ECONNREFUSED:
        return EHOSTUNREACH;
    default:
        return errno;
    }
}

/* Anyone may mount something with such a link in it. */
static int check_server(int fd)
{
    struct ucred server;
    socklen_t size = sizeof(server);
    uid_t user = geteuid();

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &server, &size) != 0)
        return errno;
    return user == 0 || server.uid == 0 || server.uid == user ? 0 : EPERM;
}

static int send_request(int fd, uint64_t inode, int64_t deadline)
{
    struct barfs_map_request request = {.version = BARFS_MAP_VERSION, .inode = inode};
    long result;

    memcpy(request.magic, BARFS_MAP_MAGIC, sizeof(request.magic));
    do
        result = syscall(SYS_sendto, fd, &request, sizeof(request), MSG_NOSIGNAL, NULL, 0);
    while (again(fd, deadline, result));
    if (result == (long)sizeof(request))
        return 0;
    /* It closes the connection of a process that it does not answer. */
    return errno == EAGAIN || errno == EINTR ? ETIMEDOUT : EPERM;
}

static void take_descriptors(struct msghdr *message, struct barfs_descriptors *descriptors)
{
    for (struct cmsghdr *part = CMSG_FIRSTHDR(message); part != NULL;
         part = CMSG_NXTHDR(message, part)) {
        size_t size = part->cmsg_len - CMSG_LEN(0);

        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
            continue;
        memcpy(descriptors->fd, CMSG_DATA(part), size);
        descriptors->count = (uint32_t)(size / sizeof(int));
    }
}

static int receive_reply(int fd, struct barfs_map_reply *reply,
                         struct barfs_descriptors *descriptors, int64_t deadline)
{
    /* Room for one SCM_RIGHTS with the kernel's largest number of descriptors. */
    union {
        struct cmsghdr aligned;
        char bytes[CMSG_SPACE(sizeof(descriptors->fd))];
    } control;
    struct iovec data = {.iov_base = reply, .iov_len = sizeof(*reply)};
    struct msghdr message = {.msg_iov = &data,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof(control)};
    long result;

    do
        result = syscall(SYS_recvmsg, fd, &message, MSG_CMSG_CLOEXEC);
    while (again(fd, deadline, result));
    if (result < 0)
        return errno == EAGAIN || errno == EINTR ? ETIMEDOUT : EPERM;
    take_descriptors(&message, descriptors);
    if (result == 0)
        return EPERM;
    if (message.msg_flags & MSG_CTRUNC)
        return EMFILE;
    if (message.msg_flags & MSG_TRUNC)
        return EPROTO;
    return barfs_reply_check(reply, (size_t)result, descriptors->count,
                             (uint64_t)sysconf(_SC_PAGESIZE));
}

int barfs_ask(int root, uint64_t inode, struct barfs_map_reply *reply,
              struct barfs_descriptors *descriptors)
{
    int64_t deadline = now_us() + SECONDS * INT64_C(1000000);
    int fd = (int)syscall(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    int error;

    descriptors->count = 0;
    if (fd < 0)
        return errno;
    error = call_connect(fd, root, deadline);
    if (error == 0)
        error = check_server(fd);
    if (error == 0)
        error = send_request(fd, inode, deadline);
    if (error == 0)
        error = receive_reply(fd, reply, descriptors, deadline);
    call_close(fd);
    if (error)
        barfs_descriptors_close(descriptors);
    return error;
}

void barfs_descriptors_close(struct barfs_descriptors *descriptors)
{
    for (uint32_t i = 0; i < descriptors->count; i++)
        call_close(descriptors->fd[i]);
    descriptors->count = 0;
}
