/* A disk that fails, forgets or is full, put before the C library of one process (LD_PRELOAD).
 *
 * Only files below E2EKS_DISK_ROOT are concerned, and calls are counted in this process, over all threads.
 *
 *   E2EKS_DISK_FAIL=k    the k-th fsync or fdatasync returns EIO; E2EKS_DISK_STRUCK then names a file that is made
 *   E2EKS_DISK_KILL=k    the process gets SIGKILL at the k-th, before anything is synced
 *   E2EKS_DISK_KEEP=DIR  what is synced is kept in DIR, on the same file system, for a test to rewind to:
 *                        DIR/<inode> the contents of a file at its last sync, DIR/<inode>.held a link to the file,
 *                        DIR/names "<inode> <path below the root>" of every file, as of the last sync of any
 *   E2EKS_DISK_SPACE=F   the files may have as many bytes as the file F says; beyond it is ENOSPC
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PATH 4096
#define BLOCK 4096

static char root[PATH];
static size_t root_length;
static const char *keep_folder, *space_file, *struck_file;
static long fail_at, kill_at, syncs;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

typedef void visitor(const char *path, const struct stat *found, void *context);

static void give_up(const char *what) {
    dprintf(2, "faulty_disk: %s: %s\n", what, strerror(errno));
    abort();
}

static void walk(const char *folder, visitor *visit, void *context) {
    DIR *open_folder = opendir(folder);
    if (!open_folder) return;
    for (struct dirent *entry; (entry = readdir(open_folder));) {
        char path[PATH];
        struct stat found;
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        if (snprintf(path, sizeof path, "%s/%s", folder, entry->d_name) >= (int)sizeof path) continue;
        if (lstat(path, &found)) continue; /* gone meanwhile */
        if (S_ISDIR(found.st_mode)) walk(path, visit, context);
        if (S_ISREG(found.st_mode)) visit(path, &found, context);
    }
    closedir(open_folder);
}

/* Whether an open file lies below the root. */
static int is_ours(int fd) {
    char link[64], path[PATH];
    if (!root_length) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
}

/* Keeping what is synced. Every file of it appears whole, by a rename, before the sync returns. */

static void put_in_place(const char *draft, const char *name) {
    if (rename(draft, name)) give_up(name);
}

static void keep_contents(int fd, const struct stat *found, off_t size) {
    char draft[PATH], name[PATH], held[PATH], link[64];
    static char block[1 << 16];
    snprintf(name, sizeof name, "%s/%lu", keep_folder, (unsigned long)found->st_ino);
    snprintf(held, sizeof held, "%s/%lu.held", keep_folder, (unsigned long)found->st_ino);
    snprintf(draft, sizeof draft, "%s/draft", keep_folder);
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    /* Held, the file keeps its inode number for itself, also after it is deleted. */
    if (linkat(AT_FDCWD, link, AT_FDCWD, held, AT_SYMLINK_FOLLOW) && errno != EEXIST) give_up(held);
    int in = open(link, O_RDONLY | O_CLOEXEC), out = open(draft, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (in < 0 || out < 0) give_up(draft);
    while (size > 0) {
        ssize_t got = read(in, block, size < (off_t)sizeof block ? (size_t)size : sizeof block);
        if (got <= 0) break;
        if (syscall(SYS_write, out, block, (size_t)got) != got) give_up(draft);
        size -= got;
    }
    close(in);
    close(out);
    put_in_place(draft, name);
}

static void print_name(const char *path, const struct stat *found, void *context) {
    fprintf(context, "%lu %s\n", (unsigned long)found->st_ino, path + root_length + 1);
}

static void keep_names(void) {
    char draft[PATH], name[PATH];
    snprintf(draft, sizeof draft, "%s/draft", keep_folder);
    snprintf(name, sizeof name, "%s/names", keep_folder);
    FILE *file = fopen(draft, "we");
    if (!file) give_up(draft);
    walk(root, print_name, file);
    if (fclose(file)) give_up(draft);
    put_in_place(draft, name);
}

static void keep_found(const char *path, const struct stat *found, void *context) {
    (void)context;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) give_up(path);
    keep_contents(fd, found, found->st_size);
    close(fd);
}

static int synced(int fd, const char *call) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, call);
    if (!is_ours(fd)) return real(fd);
    struct stat found;
    int result = 0;
    pthread_mutex_lock(&lock);
    long number = ++syncs;
    if (fstat(fd, &found)) give_up(call);
    if (number == kill_at) {
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
    if (number == fail_at) {
        int made = open(struck_file, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        if (made < 0) give_up(struck_file);
        close(made);
        errno = EIO;
        result = -1;
    } else if (keep_folder) {
        if (S_ISREG(found.st_mode)) keep_contents(fd, &found, found.st_size);
        keep_names();
    } else {
        result = real(fd);
    }
    int why = errno;
    pthread_mutex_unlock(&lock);
    errno = why;
    return result;
}

int fsync(int fd) { return synced(fd, "fsync"); }
int fdatasync(int fd) { return synced(fd, "fdatasync"); }

/* A small disk. */

static void add_size(const char *path, const struct stat *found, void *context) {
    (void)path;
    *(long long *)context += (found->st_size + BLOCK - 1) / BLOCK * BLOCK;
}

static long long room(void) {
    long long used = 0, size = 0;
    FILE *file = fopen(space_file, "re");
    if (!file || fscanf(file, "%lld", &size) != 1) give_up(space_file);
    fclose(file);
    walk(root, add_size, &used);
    return size > used ? size - used : 0;
}

static int is_too_much(int fd, off_t end) {
    struct stat found;
    if (!space_file || !is_ours(fd) || fstat(fd, &found) || end <= found.st_size) return 0;
    off_t more = (end + BLOCK - 1) / BLOCK * BLOCK - (found.st_size + BLOCK - 1) / BLOCK * BLOCK;
    return more > 0 && more > room();
}

ssize_t write(int fd, const void *data, size_t size) {
    if (space_file && is_ours(fd)) {
        struct stat found;
        if (!fstat(fd, &found) && is_too_much(fd, found.st_size + (off_t)size)) {
            errno = ENOSPC;
            return -1;
        }
    }
    return syscall(SYS_write, fd, data, size);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
    if (is_too_much(fd, offset + (off_t)size)) {
        errno = ENOSPC;
        return -1;
    }
    return syscall(SYS_pwrite64, fd, data, size, offset);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return pwrite64(fd, data, size, offset); }

int posix_fallocate64(int fd, off64_t offset, off64_t size) {
    if (is_too_much(fd, offset + size)) return ENOSPC;
    int (*real)(int, off64_t, off64_t) = (int (*)(int, off64_t, off64_t))dlsym(RTLD_NEXT, "posix_fallocate64");
    return real(fd, offset, size);
}

int posix_fallocate(int fd, off_t offset, off_t size) { return posix_fallocate64(fd, offset, size); }

int statvfs64(const char *path, struct statvfs64 *found) {
    int (*real)(const char *, struct statvfs64 *) =
        (int (*)(const char *, struct statvfs64 *))dlsym(RTLD_NEXT, "statvfs64");
    int result = real(path, found);
    if (!result && space_file && !strncmp(path, root, root_length)) {
        found->f_frsize = found->f_bsize = BLOCK;
        found->f_bfree = found->f_bavail = (fsblkcnt64_t)(room() / BLOCK);
    }
    return result;
}

int statvfs(const char *path, struct statvfs *found) { return statvfs64(path, (struct statvfs64 *)found); }

__attribute__((constructor)) static void start(void) {
    const char *given = getenv("E2EKS_DISK_ROOT"), *number;
    if (!given) return;
    if (!realpath(given, root)) give_up(given);
    keep_folder = getenv("E2EKS_DISK_KEEP");
    space_file = getenv("E2EKS_DISK_SPACE");
    struck_file = getenv("E2EKS_DISK_STRUCK");
    if ((number = getenv("E2EKS_DISK_FAIL"))) fail_at = atol(number);
    if ((number = getenv("E2EKS_DISK_KILL"))) kill_at = atol(number);
    root_length = strlen(root);
    if (keep_folder) { /* what a process finds at its start is on the disk */
        walk(root, keep_found, NULL);
        keep_names();
    }
}
