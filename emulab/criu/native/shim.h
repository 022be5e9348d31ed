/* What the parts of shim.so know of each other. */
#ifndef EMULAB_SHIM_H
#define EMULAB_SHIM_H
#include <stddef.h>
#include <sys/stat.h>
#include <sys/types.h>

/* prefetch.c: each returns 1 if it has answered in place of the kernel. */
int prefetch_openat(int dir, const char *path, int flags, int *result);
int prefetch_fstatat(int dir, const char *path, struct stat64 *status, int flags, int *result);
int prefetch_read(int fd, void *data, size_t size, ssize_t *result);
void prefetch_opened(int fd, int dir, const char *path);
void prefetch_forget(int fd);

/* premap.c */
void premap_load(void);

/* pages.c */
void pages_load(void);
void pages_opened(int fd, int dir, const char *path);
void pages_forget(int fd);

#endif
