/*
 * same - part of shim.so, at a restore. A forked task begins with its parent's pages, and CRIU compares each page that it
 * reads for the task with the one that is there: pread() of one page into a buffer of its own, memcmp(), and memcpy() where
 * they differ. The numbers of both are known (pages.c). Where they are the same, neither is read.
 *
 * So a page is put into CRIU's buffer only when it is compared, and differs. That this buffer is used for nothing else is
 * seen first: memcmp() has been called with it after a page was read into it. If it ever is not, the restore ends.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "shim.h"

#define PAGE 4096
#define REGION (1UL << 22) /* pages: 16 GiB */
#define REGIONS (1UL << 13) /* all addresses of a task */

static uint32_t *regions[REGIONS]; /* a page's number, see noted(), at each address, 0 = not known */

static struct {
	uintptr_t buffer; /* CRIU's, with the page that it read last */
	uint32_t number;
	int empty; /* the page is not in it */
} last;
static uintptr_t compared; /* a buffer that CRIU has compared after it read a page into it */

/* Of a whole page. NULL if there is none, and none is to be made or can be. */
static uint32_t *entry(uintptr_t at, int make)
{
	size_t page = at / PAGE;
	if (at % PAGE || page / REGION >= REGIONS)
		return NULL;
	uint32_t **region = &regions[page / REGION];
	if (!*region) {
		void *got = !make ? MAP_FAILED : (void *)syscall(SYS_mmap, NULL, REGION * sizeof **region, PROT_READ | PROT_WRITE,
								 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (got == MAP_FAILED)
			return NULL;
		*region = got;
	}
	return *region + page % REGION;
}

static uint32_t noted(uint32_t number)
{
	return number + 1 ? number + 1 : number;
}

void same_filled(uintptr_t at, uint32_t number)
{
	uint32_t *known = entry(at, 1);
	if (known)
		*known = noted(number);
}

/* Whether this page is there. */
int same_is(uintptr_t at, uint32_t number)
{
	const uint32_t *known = entry(at, 0);
	return known && *known == noted(number);
}

/* Whether any page is known to be there. */
int same_knows(uintptr_t at, size_t size)
{
	for (uintptr_t page = at; page < at + size;) {
		const uint32_t *known = entry(page, 0);
		if (known && *known)
			return 1;
		page = known ? page + PAGE : (page / PAGE / REGION + 1) * REGION * PAGE;
	}
	return 0;
}

void same_moved(uintptr_t from, size_t size, uintptr_t to)
{
	for (size_t done = 0; done < size; done += PAGE) {
		uint32_t *known = entry(from + done, 0), *new = entry(to + done, known && *known);
		if (new)
			*new = known ? *known : 0;
		if (known)
			*known = 0;
	}
}

/* Other memory is there now, or none. */
void same_replaced(uintptr_t at, size_t size)
{
	for (uintptr_t page = at & -PAGE; page < at + size;) {
		uint32_t *known = entry(page, 0);
		if (!known)
			page = (page / PAGE / REGION + 1) * REGION * PAGE;
		else {
			if (*known)
				*known = 0;
			page += PAGE;
		}
	}
}

/* What CRIU read before has been compared, or was never missing. */
static void settled(void)
{
	static const char why[] = "a page was read and not compared\n";
	if (last.buffer && last.empty) {
		ssize_t ignored = syscall(SYS_write, STDERR_FILENO, why, sizeof why - 1);
		(void)ignored;
		abort();
	}
}

/* CRIU reads one page. Returns 1 if it need not be put into the buffer. */
int same_read(uintptr_t buffer, uint32_t number)
{
	settled();
	last.buffer = buffer;
	last.number = number;
	return last.empty = buffer == compared;
}

/* CRIU reads something else: what comes into that buffer now is not a page of ours. */
void same_left(void)
{
	settled();
	last.buffer = 0;
}

void same_closed(void)
{
	same_left();
	compared = 0;
}

int memcmp(const void *one, const void *other, size_t size)
{
	static int (*real)(const void *, const void *, size_t);
	uintptr_t at = (uintptr_t)one, buffer = (uintptr_t)other;
	if (!real)
		real = dlsym(RTLD_NEXT, "memcmp");
	if (size != PAGE || buffer != last.buffer)
		return real(one, other, size);
	uint32_t *known = entry(at, 1), number = noted(last.number);
	int same = known && *known == number && last.empty;
	int missing = last.empty && !same;
	/* Another page is there, or none: not looked at, as the kernel would find memory for a look at none. */
	int differs = missing && last.number != PAGE_OF_ZEROS;
	if (missing)
		pages_copy((void *)buffer, last.number, 0, PAGE);
	if (known && *known != number)
		*known = number; /* CRIU copies it there if it is not there yet */
	if (at % PAGE == 0) /* as it is with CRIU */
		compared = buffer;
	last.buffer = 0;
	return same ? 0 : differs ? 1 : real(one, other, size);
}

int madvise(void *at, size_t size, int advice)
{
	same_replaced((uintptr_t)at, size);
	return syscall(SYS_madvise, at, size, advice);
}
