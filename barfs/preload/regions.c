/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "preload/regions.h"

#include "preload/calls.h"
#include "preload/faults.h"
#include "preload/hints.h"
#include "preload/mappings.h"
#include "preload/mounts.h"

#ifndef MFD_NOEXEC_SEAL /* since 6.3, which may insist on it (vm.memfd_noexec) */
#define MFD_NOEXEC_SEAL 0x8U
#endif

/* A window's part of a request, at `start` from its beginning; `size` is 0 if there is none. */
struct part {
    uint64_t start, size, fd_offset;
};

static struct part part_of(const struct barfs_map_window *window,
                           const struct barfs_request *request)
{
    uint64_t end = request->offset + request->length;
    uint64_t window_end = whole_pages(window->offset + window->size);
    uint64_t from = window->offset > request->offset ? window->offset : request->offset;
    uint64_t to = window_end < end ? window_end : end;

    if (from >= to)
        return (struct part){0};
    return (struct part){
        .start = from - request->offset,
        .size = to - from,
        .fd_offset = window->fd_offset + (from - window->offset),
    };
}

/* Whether a part of a window is asked for, and may be accessed like this: 0, ENODEV or EACCES. */
static int check(const struct barfs_map_reply *reply, const struct barfs_request *request)
{
    uint32_t wanted = (request->protection & PROT_READ ? BARFS_MAP_READ : 0U) |
                      (request->protection & PROT_WRITE ? BARFS_MAP_WRITE : 0U);
    int error = ENODEV;

    for (uint32_t i = 0; i < reply->windows; i++) {
        if (part_of(&reply->window[i], request).size == 0)
            continue;
        if (wanted & ~reply->window[i].access)
            return EACCES;
        error = 0;
    }
    return error;
}

/* A file that ends at 0, and always will: a touch of its mapping is a SIGBUS, whatever mprotect()
 * allows.
 */
static int open_gap(void)
{
    unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
    int fd = (int)syscall(SYS_memfd_create, "barfs-gap", flags | MFD_NOEXEC_SEAL);

    if (fd < 0 && errno == EINVAL)
        fd = (int)syscall(SYS_memfd_create, "barfs-gap", flags);
    if (fd >= 0)
        syscall(SYS_fcntl, fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SEAL);
    return fd;
}

static void *reserve(const struct barfs_request *request)
{
    int fd = open_gap();
    void *base;

    if (fd < 0)
        return MAP_FAILED;
    base = call_mmap(request->address, request->length, PROT_NONE,
                     MAP_SHARED | MAP_NORESERVE | (request->flags & PLACING), fd, 0);
    call_close(fd);
    return base;
}

static bool map_windows(char *base, const struct barfs_mapping *mapping,
                        const struct barfs_request *request)
{
    int flags = MAP_SHARED | MAP_FIXED | (request->flags & ~(MAP_TYPE | PLACING));

    for (uint32_t i = 0; i < mapping->reply.windows; i++) {
        const struct barfs_map_window *window = &mapping->reply.window[i];
        struct part part = part_of(window, request);

        if (part.size > 0 &&
            call_mmap(base + part.start, (size_t)part.size, request->protection, flags,
                      mapping->descriptors.fd[window->fd], (int64_t)part.fd_offset) == MAP_FAILED)
            return false;
    }
    return true;
}

static void *map_parts(const struct barfs_mapping *mapping, const struct barfs_request *request)
{
    char *base = reserve(request);
    int error;

    if (base == MAP_FAILED)
        return base;
    if (map_windows(base, mapping, request))
        return base;
    error = errno;
    call_munmap(base, request->length);
    barfs_mapping_forget((uintptr_t)base, (uintptr_t)base + request->length);
    errno = error;
    return MAP_FAILED;
}

static void find_path(int fd, char path[PATH_MAX])
{
    char link[FD_LINK_SIZE];
    long length;

    fd_link(link, fd);
    length = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    path[length > 0 ? length : 0] = 0;
}

/* What the kernel allows for mappings of the file, and mprotect() may not exceed. */
static int allowed(int fd)
{
    long flags = syscall(SYS_fcntl, fd, F_GETFL);

    return (flags & O_ACCMODE) == O_RDWR ? PROT_READ | PROT_WRITE : PROT_READ;
}

/* Whether the program lacks something that mapping takes. */
static bool is_shortage(int error)
{
    return error == EMFILE || error == ENFILE || error == ENOMEM;
}

/* Fill in a mapping, and make it.  Returns MAP_FAILED and sets errno if that is impossible. */
static void *map_region(struct barfs_mapping *mapping, const struct barfs_request *request,
                        int root, uint64_t inode)
{
    void *base = MAP_FAILED;
    int error;

    find_path(request->fd, mapping->path);
    if (root < 0)
        error = is_shortage(-root) ? -root : EHOSTUNREACH;
    else
        error = barfs_ask(root, inode, &mapping->reply, &mapping->descriptors);
    if (error == 0)
        error = check(&mapping->reply, request);
    if (error == 0)
        base = map_parts(mapping, request);
    barfs_descriptors_close(&mapping->descriptors);
    if (error) {
        barfs_hint(error, mapping->path, request->offset);
        errno = error == EACCES || is_shortage(error) ? error : ENODEV;
    }
    if (base == MAP_FAILED)
        return base;
    mapping->address = (uintptr_t)base;
    mapping->offset = request->offset;
    mapping->protection = allowed(request->fd);
    return base;
}

void *barfs_region_map(const struct barfs_request *request, const struct statx *file)
{
    struct barfs_found_mount mount = barfs_find_mount(file->stx_dev_major, file->stx_dev_minor);
    struct barfs_mapping *mapping;
    uintptr_t start, end;
    void *base = MAP_FAILED;

    if (!mount.is_barfs) {
        errno = ENODEV;
        return MAP_FAILED;
    }
    mapping = barfs_mapping_new();
    if (mapping != NULL)
        base = map_region(mapping, request, mount.root, file->stx_ino);
    if (mount.root >= 0)
        call_close(mount.root);
    if (base == MAP_FAILED) {
        if (mapping != NULL)
            barfs_mapping_drop(mapping);
        return MAP_FAILED;
    }
    start = (uintptr_t)base;
    end = start + request->length;
    barfs_mapping_forget(start, end);
    barfs_mapping_publish(mapping, start, end);
    barfs_faults_watch();
    return base;
}
