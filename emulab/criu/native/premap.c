/*
 * premap - part of shim.so, at a restore. CRIU fills a task's private mappings in an area of its own, one beside the other,
 * and moves each to its place at the end; a forked task first moves those that it has from its parent into such an area of
 * its own. For a web server of 65 tasks with 160 mappings these 20 000 moves were a third of the restore.
 *
 * The area may lie anywhere. So it is put where most mappings are in their final place at once, and a forked task goes on
 * using its parent's. A mapping that is in its place is not moved: CRIU's restorer compares, and mremap() below does.
 *
 * What CRIU does, in each task, before it has children: mmap(NULL, size, PROT_NONE, ..., 0, 0) reserves the area; then, in
 * ascending order, each mapping that the parent has too is moved behind the one before it, any other is mapped there. Those
 * of the parent that are still to be moved lie higher, as a rule. Where the rule would be broken they are put aside first.
 *
 * EMULAB_SHIM_PREMAP   folder of the images that are restored
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "shim.h"

/* CRIU's images/vma.proto and include/image.h */
#define REGULAR (1 << 0)
#define FILE_PRIVATE (1 << 6)
#define ANON_PRIVATE (1 << 9)
#define HEADER 12 /* two magic numbers, size of the entry */

struct range { uintptr_t start, end; };

struct ranges {
	int count;
	struct range *all;
};

struct task {
	int pid;
	struct ranges mappings; /* private ones, ascending */
};

static struct task *tasks;
static int task_count;
static int incremental; /* the images have a parent */

/* Of this task, or still of the nearest ancestor: a forked process begins with what its parent has. */
static const struct task *owner;
static uintptr_t area, area_end;
static struct ranges placed; /* where CRIU has put mappings, ascending */

static struct ranges older; /* the parent's, in the same area; empty = this area began empty */
static int taken;           /* so many of them have been dealt with */
static intptr_t aside;      /* they have been moved away by so much */

static int append(struct ranges *ranges, uintptr_t start, uintptr_t end)
{
	if (ranges->count % 64 == 0) {
		struct range *larger = realloc(ranges->all, (ranges->count + 64) * sizeof *larger);
		if (!larger)
			return -1;
		ranges->all = larger;
	}
	ranges->all[ranges->count++] = (struct range){ start, end };
	return 0;
}

/* ---- the images --------------------------------------------------------------------------------------------------- */

static const uint8_t *varint(const uint8_t *at, const uint8_t *end, uint64_t *value)
{
	*value = 0;
	for (int shift = 0; at < end && shift < 64; shift += 7) {
		*value |= (uint64_t)(*at & 0x7f) << shift;
		if (!(*at++ & 0x80))
			return at;
	}
	return NULL;
}

/* One field of a message; returns what follows it. ``value`` is a number or, for kind 2, the length of the bytes at ``data``. */
static const uint8_t *field(const uint8_t *at, const uint8_t *end, unsigned *number, uint64_t *value, const uint8_t **data)
{
	uint64_t key;
	*data = NULL;
	if (!(at = varint(at, end, &key)))
		return NULL;
	*number = key >> 3;
	switch (key & 7) {
	case 0:
		return varint(at, end, value);
	case 1:
		return end - at < 8 ? NULL : at + 8;
	case 5:
		return end - at < 4 ? NULL : at + 4;
	case 2:
		if (!(at = varint(at, end, value)) || *value > (uint64_t)(end - at))
			return NULL;
		*data = at;
		return at + *value;
	}
	return NULL;
}

static int parse(struct task *task, const uint8_t *at, const uint8_t *end)
{
	const uint8_t *data, *inner;
	unsigned number;
	uint64_t value;
	while (at < end) {
		if (!(at = field(at, end, &number, &value, &data)))
			return -1;
		if (number != 14 || !data)
			continue;
		uint64_t start = 0, stop = 0, status = 0;
		for (const uint8_t *p = data, *last = data + value; p < last;) {
			if (!(p = field(p, last, &number, &value, &inner)))
				return -1;
			if (number == 1)
				start = value;
			else if (number == 2)
				stop = value;
			else if (number == 7)
				status = value;
		}
		if (status & REGULAR && status & (FILE_PRIVATE | ANON_PRIVATE) && append(&task->mappings, start, stop))
			return -1;
	}
	return 0;
}

static int load(struct task *task, int folder, const char *name)
{
	static uint8_t content[1 << 20];
	int fd = syscall(SYS_openat, folder, name, O_RDONLY | O_CLOEXEC, 0);
	if (fd < 0)
		return -1;
	ssize_t got = syscall(SYS_read, fd, content, sizeof content);
	syscall(SYS_close, fd);
	uint32_t size;
	if (got < HEADER || got == sizeof content)
		return -1;
	memcpy(&size, content + 8, sizeof size);
	return size > got - HEADER ? -1 : parse(task, content + HEADER, content + HEADER + size);
}

/* A task whose image cannot be read gets its area where the kernel likes. */
void premap_load(void)
{
	const char *path = getenv("EMULAB_SHIM_PREMAP");
	DIR *folder = path ? opendir(path) : NULL;
	if (!folder)
		return;
	unsetenv("EMULAB_SHIM_PREMAP"); /* not for the programs that CRIU starts */
	incremental = !faccessat(dirfd(folder), "parent", F_OK, AT_SYMLINK_NOFOLLOW);
	for (struct dirent *entry; (entry = readdir(folder));) {
		struct task task = { 0 };
		char rest;
		if (sscanf(entry->d_name, "mm-%d.im%c", &task.pid, &rest) != 2 || load(&task, dirfd(folder), entry->d_name))
			continue;
		struct task *larger = realloc(tasks, (task_count + 1) * sizeof *larger);
		if (!larger)
			break;
		tasks = larger;
		tasks[task_count++] = task;
	}
	closedir(folder);
}

/* ---- where an area is to be --------------------------------------------------------------------------------------- */

static const struct task *find(int pid)
{
	for (int i = 0; i < task_count; i++)
		if (tasks[i].pid == pid)
			return &tasks[i];
	return NULL;
}

static int has(const struct task *task, const struct range *range)
{
	int low = 0, high = task->mappings.count - 1;
	while (low <= high) {
		int middle = (low + high) / 2;
		const struct range *other = &task->mappings.all[middle];
		if (other->start == range->start)
			return other->end == range->end;
		if (other->start < range->start)
			low = middle + 1;
		else
			high = middle - 1;
	}
	return 0;
}

static int common(const struct task *task, const struct task *parent)
{
	for (int i = 0; i < task->mappings.count; i++)
		if (has(parent, &task->mappings.all[i]))
			return 1;
	return 0;
}

/* CRIU puts it into the area, as far as one can tell: all, if some pages are in earlier images; else what tasks share. */
static int premapped(const struct task *task, const struct range *range)
{
	if (incremental)
		return 1;
	for (int i = 0; i < task_count; i++)
		if (&tasks[i] != task && has(&tasks[i], range))
			return 1;
	return 0;
}

/*
 * The address at which most mappings, one beside the other, are in place; 0 = none. Between neighbours without a gap that
 * address stays the same, and it never decreases: the longest run wins.
 */
static uintptr_t best(const struct task *task)
{
	uintptr_t found = 0, run = 0, offset = 0;
	int longest = 0, length = 0;
	for (int i = 0; i < task->mappings.count; i++) {
		const struct range *range = &task->mappings.all[i];
		if (!premapped(task, range))
			continue;
		length = range->start - offset == run ? length + 1 : 1;
		run = range->start - offset;
		if (length > longest && range->start > offset) {
			longest = length;
			found = run;
		}
		offset += range->end - range->start;
	}
	return found;
}

static void *plain(void *at, size_t size, int protection, int flags, int fd, off_t offset)
{
	return (void *)syscall(SYS_mmap, at, size, protection, flags, fd, offset);
}

static void *reserve_at(uintptr_t at, size_t size)
{
	void *got = plain((void *)at, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	if (got != MAP_FAILED && got != (void *)at) { /* a kernel that takes the address for a hint */
		syscall(SYS_munmap, got, size);
		return MAP_FAILED;
	}
	return got;
}

/*
 * The parent's area, begun a little lower if the task has mappings of its own between those of its parent; or one at the
 * best address. MAP_FAILED = the kernel shall choose.
 */
static void *reserve(const struct task *task, const struct task *parent, size_t size)
{
	uintptr_t wanted = best(task), start = area;
	if (!parent || !common(task, parent))
		return wanted ? reserve_at(wanted, size) : MAP_FAILED;
	if (wanted && wanted < area && area - wanted < size && reserve_at(wanted, area - wanted) != MAP_FAILED)
		start = wanted;
	if (start + size > area_end && reserve_at(area_end, start + size - area_end) == MAP_FAILED) {
		syscall(SYS_munmap, start, area - start);
		return MAP_FAILED;
	}
	older = placed;
	return (void *)start;
}

/* Something is to be mapped up to ``end``: if the next of the parent's mappings lies there, they are put aside, all that are left. */
static int make_room(uintptr_t end)
{
	if (aside || taken == older.count || older.all[taken].start >= end)
		return 0;
	uintptr_t from = older.all[taken].start;
	size_t size = older.all[older.count - 1].end - from;
	char *to = plain(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (to == MAP_FAILED)
		return -1;
	aside = (intptr_t)to - (intptr_t)from;
	for (const struct range *range = older.all + taken; range < older.all + older.count; range++) {
		size_t length = range->end - range->start;
		if (syscall(SYS_mremap, range->start, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, range->start + aside) == -1)
			return -1;
	}
	return 0;
}

static int inside(uintptr_t start, size_t size)
{
	return owner && start < area_end && start + size > area;
}

/* ---- what CRIU calls ---------------------------------------------------------------------------------------------- */

static void *map(void *at, size_t size, int protection, int flags, int fd, off_t offset)
{
	if (task_count && !at && protection == PROT_NONE && flags == (MAP_PRIVATE | MAP_ANONYMOUS) && fd == 0) {
		const struct task *task = find(getpid()), *parent = owner;
		older.count = taken = aside = 0;
		void *got = task ? reserve(task, parent, size) : MAP_FAILED;
		if (got == MAP_FAILED)
			got = plain(at, size, protection, flags, fd, offset);
		owner = got == MAP_FAILED ? NULL : task;
		area = (uintptr_t)got;
		if (!older.count || area_end < area + size)
			area_end = area + size;
		placed = (struct ranges){ 0 };
		return got;
	}
	uintptr_t start = (uintptr_t)at;
	if (flags & MAP_FIXED && inside(start, size) && (make_room(start + size) || append(&placed, start, start + size)))
		return MAP_FAILED;
	return plain(at, size, protection, flags, fd, offset);
}

void *mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset)
{
	return map(at, size, protection, flags, fd, offset);
}

void *mmap64(void *at, size_t size, int protection, int flags, int fd, off_t offset)
{
	return map(at, size, protection, flags, fd, offset);
}

int munmap(void *at, size_t size)
{
	uintptr_t start = (uintptr_t)at;
	if (inside(start, size) && start > area)
		area_end = start; /* what CRIU did not use of it: another may get it now */
	return syscall(SYS_munmap, at, size);
}

/* A mapping that this task has from its parent, from where the parent has it to its place in this task's area. */
static void *inherit(uintptr_t from, size_t size, uintptr_t to)
{
	while (taken < older.count && older.all[taken].start < from)
		taken++; /* not wanted by this task */
	if (append(&placed, to, to + size) || (to > from && make_room(to + size)))
		return MAP_FAILED;
	taken += taken < older.count;
	if (to == from && !aside)
		return (void *)to;
	from += aside;
	if (to < from + size && from < to + size) { /* overlapping: by way of another place */
		void *between = plain(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (between == MAP_FAILED || syscall(SYS_mremap, from, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, between) == -1)
			return MAP_FAILED;
		from = (uintptr_t)between;
	}
	return (void *)syscall(SYS_mremap, from, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, to);
}

void *mremap(void *old, size_t old_size, size_t size, int flags, ...)
{
	uintptr_t to = 0;
	if (flags & MREMAP_FIXED) {
		__builtin_va_list list;
		__builtin_va_start(list, flags);
		to = (uintptr_t)__builtin_va_arg(list, void *);
		__builtin_va_end(list);
		if (inside(to, size) && size == old_size)
			return inherit((uintptr_t)old, size, to);
	}
	return (void *)syscall(SYS_mremap, old, old_size, size, flags, to);
}
