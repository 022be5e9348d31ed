/* What the parts of shim.so know of each other. */
#ifndef EMULAB_SHIM_H
#define EMULAB_SHIM_H
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "scan.h"

struct range { uintptr_t start, end; };

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

/* prefill.c */
struct prefill_order {
	uint64_t address; /* of a task */
	uint32_t pid; /* its number inside the guest */
	uint32_t number, count; /* distinct pages: the first, and how many */
	uint32_t kind;
};
enum { PREFILL_PUT, PREFILL_REPLACE, PREFILL_DROP }; /* replace: only pages that are there; drop: no page is to be there */
int prefill_put(const void *orders, size_t size);
void prefill_settle(int folder, int pid, const struct range *mappings, int count);
void prefill_settled(void);
int prefill_take(int pid, const struct range *range, uintptr_t at, int protection, int flags);
void prefill_taken(int pid);
void prefill_release(void);
void prefill_share(int yes);

/* pages.c */
#define PAGE_OF_ZEROS 0xffffffffu /* its number */
void pages_load(void);
void pages_opened(int fd, int dir, const char *path);
void pages_forget(int fd);
void pages_copy(void *to, uint32_t number, size_t from, size_t size);

/* same.c */
void same_filled(uintptr_t at, uint32_t number);
void same_replaced(uintptr_t at, size_t size);
void same_moved(uintptr_t from, size_t size, uintptr_t to);
int same_knows(uintptr_t at, size_t size);
int same_is(uintptr_t at, uint32_t number);
int same_read(uintptr_t buffer, uint32_t number);
void same_left(void);
void same_closed(void);

#endif
