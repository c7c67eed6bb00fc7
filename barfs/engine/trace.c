/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "engine/trace.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { LINE = 256, WORD = 24 };

/* The errors of an access (transfer.h). */
static const char *name_of(int error)
{
    switch (-error) {
    case ENODEV:
        return "ENODEV";
    case ETIMEDOUT:
        return "ETIMEDOUT";
    case EACCES:
        return "EACCES";
    case EINVAL:
        return "EINVAL";
    case EINTR:
        return "EINTR";
    default:
        return "EIO";
    }
}

/* Remove a partial line, unless something has been written after it. */
static void take_back(int fd, size_t written)
{
    off_t end = lseek(fd, 0, SEEK_CUR);
    struct stat status;

    if (written > 0 && fstat(fd, &status) == 0 && status.st_size == end &&
        ftruncate(fd, end - (off_t)written) != 0)
        return; /* nothing else can be tried */
}

/* 0, or an errno if no part of the line was written. */
static int put(int fd, const char *line, size_t length)
{
    size_t done = 0;

    while (done < length) {
        ssize_t written = write(fd, line + done, length - done);
        int error = written < 0 ? errno : ENOSPC;

        if (written > 0) {
            done += (size_t)written;
        } else if (error != EINTR) {
            take_back(fd, done);
            return error;
        }
    }
    return 0;
}

static void end(struct barfs_trace_file *file, int error, bool unmoved)
{
    char line[LINE], text[LINE / 2];
    int none = 0;

    if (!atomic_compare_exchange_strong(&file->error, &none, error))
        return;
    snprintf(line, sizeof line, "# the trace ends: %s%s\n",
             unmoved ? "it has reached its limit and cannot be moved: " : "",
             strerror_r(error, text, sizeof text));
    put(file->fd, line, strlen(line));
    atomic_store(&file->unmoved, unmoved);
    eventfd_write(file->told, 1);
}

static bool is_same(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/* Rename the file, unless another writer has done so already.  Returns 0 or an errno. */
static int move_away(const struct barfs_trace_file *file, const struct stat *ours)
{
    struct stat found;

    if (lstat(file->path, &found) != 0)
        return errno == ENOENT ? 0 : errno;
    if (!is_same(&found, ours))
        return 0;
    /* rename() onto another link of the same file does nothing. */
    if (lstat(file->older, &found) == 0 && (!S_ISREG(found.st_mode) || is_same(&found, ours)))
        return EEXIST;
    return rename(file->path, file->older) == 0 ? 0 : errno;
}

/* Returns 0 or an errno. */
static int begin_anew(struct barfs_trace_file *file)
{
    const int flags = O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;
    struct stat ours, status;
    int fd, error = 0;

    if (fstat(file->fd, &ours) != 0)
        return errno;
    error = move_away(file, &ours);
    if (error)
        return error;
    fd = open(file->path, flags, 0600);
    if (fd < 0)
        return errno;
    if (fstat(fd, &status) != 0) {
        error = errno;
    } else if (!S_ISREG(status.st_mode)) {
        error = EEXIST;
    } else if (status.st_size == 0) {
        /* A process that may not change the owner remains the owner. */
        if (fchown(fd, ours.st_uid, ours.st_gid) == 0)
            fchmod(fd, ours.st_mode & 07777);
        error = put(fd, file->header, strlen(file->header));
    }
    if (!error) {
        flock(file->fd, LOCK_UN); /* a forked child may keep the file open */
        if (dup3(fd, file->fd, O_CLOEXEC) < 0)
            error = errno;
    }
    close(fd);
    return error;
}

/* The file has reached its limit.  One thread or process renames it; the others go on. */
static void move_on(struct barfs_trace_file *file)
{
    if (atomic_flag_test_and_set(&file->moving))
        return;
    if (flock(file->fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) {
        int error = begin_anew(file);

        if (error) {
            flock(file->fd, LOCK_UN);
            end(file, error, true);
        }
    }
    atomic_flag_clear(&file->moving);
}

static void format_value(char value[WORD], const struct barfs_traced *access)
{
    uint64_t little = 0;

    if (access->error != 0) {
        snprintf(value, WORD, "%s", name_of(access->error));
        return;
    }
    memcpy(&little, access->data, access->width);
    snprintf(value, WORD, "0x%0*" PRIx64, (int)(2 * access->width), le64toh(little));
}

void barfs_trace_access(struct barfs_trace *trace, const struct barfs_traced *access)
{
    struct barfs_trace_file *file = trace->file;
    char line[LINE], value[WORD], pid[WORD] = "-";
    struct timespec now;
    int length, error;

    if (atomic_load(&file->error) != 0) {
        atomic_fetch_add(&file->missed, 1);
        return;
    }
    clock_gettime(CLOCK_REALTIME, &now);
    if (access->pid != BARFS_PID_UNKNOWN)
        snprintf(pid, sizeof pid, "%d", access->pid ? access->pid : getpid());
    format_value(value, access);
    length = snprintf(line, sizeof line, "%lld.%06ld %s %s %c 0x%08" PRIx64 " %" PRIu32 " %s %s\n",
                      (long long)now.tv_sec, now.tv_nsec / 1000, pid, trace->name,
                      access->direction == BARFS_READ ? 'r' : 'w', access->offset, access->width,
                      value, access->kind == BARFS_MEMORY ? "mmap" : "pread");
    error = put(file->fd, line, (size_t)length);
    if (error) {
        atomic_fetch_add(&file->missed, 1);
        end(file, error, false);
    } else if ((uint64_t)lseek(file->fd, 0, SEEK_CUR) >= file->limit) {
        move_on(file);
    }
}

int barfs_trace_error(struct barfs_trace_file *file)
{
    return atomic_load(&file->error);
}

bool barfs_trace_unmoved(struct barfs_trace_file *file)
{
    return atomic_load(&file->unmoved);
}

uint64_t barfs_trace_missed(struct barfs_trace_file *file)
{
    return atomic_load(&file->missed);
}
