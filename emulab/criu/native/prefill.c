/*
 * prefill - part of shim.so, at a restore. To fill a gigabyte of memory takes a second, several where the machine's own host
 * has to find it first, and a frozen guest would wait for that. So large tasks' pages are put into memory of this CRIU while
 * it waits at its gate and the guest runs elsewhere. The tasks are forked from CRIU and have that memory, too; where CRIU makes
 * a mapping, the memory that was filled for it is moved there. CRIU then reads each page as always, and where the one that it
 * wants is there (same.c), nothing is copied.
 *
 * Only numbers decide what is there: whatever was put in too early, CRIU would replace. Pages that the final images do not
 * name would stay, and those that they have anew would be there twice: both are removed before the first task is forked.
 *
 * A mapping has to stay one. So what stands for a stretch of a task's addresses can be written from its lowest to its highest
 * address, with what is between.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "image.h"
#include "shim.h"

#define PAGE 4096
#define SEGMENT (1UL << 36)
#define SEGMENTS 32
#define ALIGNED (1UL << 30)   /* page tables can be moved as a whole */
#define SOMEWHERE (1UL << 45) /* where programs have nothing */
#define FARTHEST (1UL << 30)

/* CRIU's images/pagemap.proto: content is in an earlier image, or here */
#define IN_PARENT 1
#define PRESENT 4

/* The addresses of one task from ``first`` on; what is put there goes to ``at``. Can be written: from ``low`` to ``high``. */
static struct segment {
	int pid, settled;
	uintptr_t first, low, high;
	char *at;
} segments[SEGMENTS];
static int segment_count;

static int distinct = -1;
static pid_t filler;         /* this CRIU */
static int *taken, settled;  /* tasks: in memory that all share; in total */

static uintptr_t place(const struct segment *segment, uintptr_t address)
{
	return (uintptr_t)segment->at + (address - segment->first);
}

static struct segment *find(int pid, uintptr_t address)
{
	for (int i = 0; i < segment_count; i++)
		if (segments[i].pid == pid && segments[i].first == (address & -SEGMENT))
			return &segments[i];
	return NULL;
}

static void drop(const struct segment *segment, uintptr_t start, uintptr_t end)
{
	uintptr_t at = place(segment, start);
	if (start >= end)
		return;
	syscall(SYS_madvise, at, end - start, MADV_DONTNEED);
	same_replaced(at, end - start);
}

static void discard(struct segment *segment)
{
	same_replaced(place(segment, segment->low), segment->high - segment->low);
	syscall(SYS_munmap, segment->at, SEGMENT);
	*segment = segments[--segment_count];
}

static struct segment *make(int pid, uintptr_t address)
{
	static uintptr_t next = SOMEWHERE;
	if (segment_count == SEGMENTS)
		return NULL;
	void *at = (void *)syscall(SYS_mmap, next, SEGMENT, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	if (at == MAP_FAILED)
		return NULL;
	if ((uintptr_t)at % ALIGNED) { /* a kernel that takes the address for a hint */
		syscall(SYS_munmap, at, SEGMENT);
		return NULL;
	}
	next += SEGMENT + ALIGNED; /* neighbours would become one */
	segments[segment_count] = (struct segment){ .pid = pid, .first = address & -SEGMENT, .at = at };
	return &segments[segment_count++];
}

static int writable(const struct segment *segment, uintptr_t start, uintptr_t end)
{
	return start >= end || !syscall(SYS_mprotect, place(segment, start), end - start, PROT_READ | PROT_WRITE) ? 0 : -1;
}

static int widen(struct segment *segment, uintptr_t start, uintptr_t end)
{
	if (end > segment->first + SEGMENT)
		return -1;
	if (segment->low == segment->high)
		segment->low = segment->high = start;
	if (start < segment->low) {
		if (writable(segment, start, segment->low))
			return -1;
		segment->low = start;
	}
	if (end > segment->high) {
		if (writable(segment, segment->high, end))
			return -1;
		segment->high = end;
	}
	return 0;
}

/* Returns how many pages there were none of before, or -1. */
static int put(struct segment *segment, const struct prefill_order *order)
{
	size_t size = (size_t)order->count * PAGE, done = 0;
	int new = 0;
	if (segment && (segment->low > order->address + FARTHEST || order->address > segment->high + FARTHEST))
		return 0; /* too much between */
	if ((!segment && !(segment = make(order->pid, order->address))) || widen(segment, order->address, order->address + size))
		return -1;
	char *to = (char *)place(segment, order->address);
	for (size_t at = 0; at < size; at += PAGE)
		new += !same_knows((uintptr_t)to + at, PAGE);
	same_replaced((uintptr_t)to, size);
	while (done < size) {
		ssize_t got = syscall(SYS_pread64, distinct, to + done, size - done, (off_t)order->number * PAGE + done);
		if (got <= 0)
			return -1;
		done += got;
	}
	for (uint32_t i = 0; i < order->count; i++)
		same_filled((uintptr_t)to + (size_t)i * PAGE, order->number + i);
	return new;
}

static int replace(struct segment *segment, struct prefill_order order)
{
	uint32_t left = order.count;
	for (order.count = 1; left--; order.address += PAGE, order.number++)
		if (order.address >= segment->low && order.address < segment->high && same_knows(place(segment, order.address), PAGE) &&
		    put(segment, &order) < 0)
			return -1;
	return 0;
}

/* As put(). */
static int obey(const struct prefill_order *order)
{
	if (!order->count || order->address % PAGE || order->address >= 1UL << 47)
		return -1;
	struct segment *segment = find(order->pid, order->address);
	if (order->kind == PREFILL_PUT)
		return put(segment, order);
	if (!segment)
		return 0;
	if (order->kind == PREFILL_REPLACE)
		return replace(segment, *order);
	uintptr_t start = order->address, end = start + (size_t)order->count * PAGE;
	drop(segment, start > segment->low ? start : segment->low, end < segment->high ? end : segment->high);
	return 0;
}

/* CRIU does where the kernel lets it choose their numbers; that is how they are told from helpers. */
static int makes_tasks_by_clone3(void)
{
	struct clone_args arguments = { .set_tid_size = 1 };
	return syscall(SYS_clone3, &arguments, sizeof arguments) == -1 && errno == EINVAL;
}

/* Returns how many pages have become part of this memory, or -1 if something could not be put there. */
int prefill_put(const void *orders, size_t size)
{
	const struct prefill_order *order = orders;
	int sum = 0, new;
	if (distinct < 0) {
		const char *path = getenv("EMULAB_SHIM_PAGES");
		distinct = path && makes_tasks_by_clone3() ? syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0) : -1;
		filler = getpid();
	}
	for (; size >= sizeof *order; order++, size -= sizeof *order) {
		if (distinct < 0 || (new = obey(order)) < 0)
			return -1;
		sum += new;
	}
	return size ? -1 : sum;
}

/* ---- the final images are there, no task is ------------------------------------------------------------------------- */

/*
 * Address and end of a run of pages that are as earlier images have them. Those that the last ones have CRIU reads in the task: there
 * they would be copied first, as the page is still CRIU's too, and the guest has no memory for both.
 */
static int parse(const uint8_t *at, const uint8_t *end, uintptr_t *start, uintptr_t *stop)
{
	uint64_t value, address = 0, pages = 0, flags = PRESENT;
	const uint8_t *data;
	unsigned number;
	while (at < end) {
		if (!(at = image_field(at, end, &number, &value, &data)))
			return -1;
		if (number == 1)
			address = value;
		else if (number == 5 || (number == 2 && !pages))
			pages = value;
		else if (number == 4)
			flags = value;
	}
	*start = address;
	*stop = address + (flags & PRESENT || !(flags & IN_PARENT) ? 0 : pages * PAGE);
	return 0;
}

/* Remove all other pages. -1 if the page map cannot be read. */
static int keep_earlier(const struct segment *segment, const uint8_t *at, const uint8_t *end)
{
	uintptr_t reached = segment->low, start, stop;
	uint32_t size;
	for (int first = 1; at < end; first = 0, at += size) {
		if ((size_t)(end - at) < sizeof size)
			return -1;
		memcpy(&size, at, sizeof size);
		at += sizeof size;
		if (size > end - at)
			return -1;
		if (first)
			continue;
		if (parse(at, at + size, &start, &stop))
			return -1;
		if (stop <= reached)
			continue;
		drop(segment, reached, start < segment->high ? start : segment->high);
		reached = stop;
	}
	drop(segment, reached, segment->high);
	return 0;
}

static int keep(const struct segment *segment, int folder)
{
	char name[64];
	struct stat status;
	int result = -1;
	sprintf(name, "pagemap-%d.img", segment->pid);
	int fd = syscall(SYS_openat, folder, name, O_RDONLY | O_CLOEXEC, 0);
	if (fd < 0)
		return -1;
	uint8_t *content = syscall(SYS_fstat, fd, &status) ? NULL : malloc(status.st_size + 1);
	if (content && status.st_size > IMAGE_MAGICS && syscall(SYS_read, fd, content, status.st_size) == status.st_size)
		result = keep_earlier(segment, content + IMAGE_MAGICS, content + status.st_size);
	free(content);
	syscall(SYS_close, fd);
	return result;
}

/* A task as the images in ``folder`` have it. */
void prefill_settle(int folder, int pid, const struct range *mappings, int count)
{
	int any = 0;
	for (int i = 0; i < segment_count; i++) {
		struct segment *segment = &segments[i];
		if (segment->pid != pid || keep(segment, folder))
			continue;
		segment->settled = any = 1;
		for (int k = 0; k < count; k++)
			if (mappings[k].start < segment->high && segment->low < mappings[k].end && mappings[k].start >= segment->first)
				widen(segment, mappings[k].start, mappings[k].end);
	}
	settled += any;
}

/* What belongs to no task is not kept. */
void prefill_settled(void)
{
	for (int i = segment_count; i-- > 0;)
		if (!segments[i].settled)
			discard(&segments[i]);
	if (!segment_count)
		return;
	taken = (void *)syscall(SYS_mmap, NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (taken == MAP_FAILED)
		while (segment_count)
			discard(&segments[0]);
}

/* ---- in the tasks --------------------------------------------------------------------------------------------------- */

/* CRIU has made this mapping: what was filled for it takes its place. Returns -1 if there is no mapping any more. */
int prefill_take(int pid, const struct range *range, uintptr_t at, int protection, int flags)
{
	size_t size = range->end - range->start;
	struct segment *segment = find(pid, range->start);
	if (!segment || flags != (MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED) || range->start < segment->low || range->end > segment->high)
		return 0;
	uintptr_t from = place(segment, range->start);
	if (!same_knows(from, size))
		return 0;
	if (syscall(SYS_mremap, from, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, at) == -1)
		return -1;
	same_moved(from, size, at);
	return protection == (PROT_READ | PROT_WRITE) ? 0 : syscall(SYS_mprotect, at, size, protection);
}

/* This task has all its mappings. */
void prefill_taken(int pid)
{
	for (int i = 0; i < segment_count; i++)
		if (segments[i].pid == pid) {
			__atomic_add_fetch(taken, 1, __ATOMIC_SEQ_CST);
			return;
		}
}

/* ---- in CRIU itself ------------------------------------------------------------------------------------------------- */

/* Once every task has its own, it need not be shared with CRIU: the next write to each page would copy it. */
void prefill_release(void)
{
	if (!segment_count || !taken || __atomic_load_n(taken, __ATOMIC_SEQ_CST) < settled || getpid() != filler)
		return;
	while (segment_count)
		discard(&segments[0]);
}

/* Helpers that CRIU or a task makes have nothing to do with it. */
void prefill_share(int yes)
{
	prefill_release();
	for (int i = 0; i < segment_count; i++)
		syscall(SYS_madvise, segments[i].at, SEGMENT, yes ? MADV_DOFORK : MADV_DONTFORK);
}
