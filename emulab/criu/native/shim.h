/* What the parts of shim.so know of each other. */
#ifndef EMULAB_SHIM_H
#define EMULAB_SHIM_H
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "scan.h"

/* scan.c */
struct scanned {
	uint64_t kinds; /* categories that were asked for */
	int count;
	struct page_region_ regions[];
};
struct scanned *scan_all(int pagemap);
int scan_answer(const struct scanned *all, struct pm_scan_arg_ *question, int *result);

/* shim.c */
int scan_ask(int pagemap, struct pm_scan_arg_ *question);

/* prefetch.c */
void prefetch_make_room(void);
/* Each returns 1 if it has answered in place of the kernel. */
int prefetch_openat(int dir, const char *path, int flags, int *result);
int prefetch_fstatat(int dir, const char *path, struct stat64 *status, int flags, int *result);
int prefetch_read(int fd, void *data, size_t size, ssize_t *result);
int prefetch_scan(int fd, struct pm_scan_arg_ *question, int *result);
void prefetch_opened(int fd, int dir, const char *path);
void prefetch_forget(int fd);

/* premap.c */
void premap_load(void);

/* pages.c */
void pages_load(void);
void pages_opened(int fd, int dir, const char *path);
void pages_forget(int fd);
void pages_copy(void *to, uint32_t number, size_t from, size_t size);

/* same.c */
void same_filled(uintptr_t at, uint32_t number);
void same_replaced(uintptr_t at, size_t size);
int same_read(uintptr_t buffer, uint32_t number);
void same_left(void);
void same_closed(void);

#endif
