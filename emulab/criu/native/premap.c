/*
 * premap - part of shim.so, at a restore. CRIU fills a task's private mappings in an area of its own, one beside the other,
 * and moves each to its place at the end; a forked task first moves those that it has from its parent into such an area of
 * its own. For a web server of 65 tasks with 160 mappings these 20 000 moves were half of the restore.
 *
 * The area may lie anywhere, and a mapping that is in its place is not moved: CRIU's restorer compares, and mremap() below
 * does. So the area becomes a window on the task's final addresses, its libraries as a rule. What belongs inside is made
 * there, what belongs elsewhere waits behind it, and a forked task goes on in its parent's window.
 *
 * What CRIU does (prepare_mappings), in each task, before it has children: mmap(NULL, size, PROT_NONE, ..., 0, 0) reserves
 * the area, whose address and size it notes in memory that all tasks share; a variable says where the next mapping goes; in
 * ascending order each mapping that the parent has too is moved there by mremap, any other is mapped there, and the variable
 * advances by its size. In the end the area is cut off at the variable. The restorer then removes everything outside the area
 * and moves, ascending, what has to go down until it meets one that has to go up, and then, descending, those.
 *
 * So a mapping can be put elsewhere if the variable is changed, and the area be larger than CRIU thought if the note is. Both
 * are found by what they hold: the note is the one place with address and size; the variable is in the one register of CRIU's
 * that held the first address at the first mapping and holds the second at the second. Where they are not found, or a task
 * does not fit, CRIU's way is taken.
 *
 * EMULAB_SHIM_PREMAP   folder of the images that are restored
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "image.h"
#include "shim.h"

/* CRIU's images/vma.proto and include/image.h */
#define REGULAR (1 << 0)
#define FILE_PRIVATE (1 << 6)
#define ANON_PRIVATE (1 << 9)
#define HEADER 12 /* two magic numbers, size of the entry */

#define PAGE 4096
#define REGISTERS 6
#define FAR (1UL << 30) /* mappings farther apart do not share a window */
#define SPARE (64UL << 20) /* below the lowest: the kernel puts new mappings there, and forked tasks have some */
#define CHUNKS 2048

struct ranges {
	int count;
	struct range *all;
};

struct task {
	int pid;
	struct ranges mappings; /* private ones, ascending */
};

/* In place: what belongs between ``start`` and ``middle``. At the very start, or from ``middle`` on: what belongs elsewhere. */
struct window {
	uintptr_t start, middle, end;
	uintptr_t *at; /* where each mapping of the task is, or is to be */
	char *made;    /* CRIU has asked for it */
};

static struct task *tasks;
static int task_count;

/* Of this process, or still of the one that it was forked from. ``window.at`` is NULL where CRIU's way was taken. */
static const struct task *owner;
static struct window window;
static size_t wanted;        /* by CRIU, for its area */
static int window_pid, next; /* mappings before ``next`` have had their turn */

/* The parent's, while a task takes over from it; else NULL. */
static const struct task *elder;
static struct window elders;

/* What CRIU has in registers that a called function leaves as they are. */
struct caller { uintptr_t registers[REGISTERS]; };

/* Which register is CRIU's variable: one of ``guesses`` (bits). ``found``: 1 = it is known, -1 = it never will be. */
static int found, variable, guesses;
static uintptr_t *note;

static struct range chunks[CHUNKS]; /* memory that tasks share */
static int chunk_count;

static intptr_t aside; /* the parent's mappings have been moved away by so much */

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

static size_t length(const struct range *range)
{
	return range->end - range->start;
}

/* ---- the images --------------------------------------------------------------------------------------------------- */

static int parse(struct task *task, const uint8_t *at, const uint8_t *end)
{
	const uint8_t *data, *inner;
	unsigned number;
	uint64_t value;
	while (at < end) {
		if (!(at = image_field(at, end, &number, &value, &data)))
			return -1;
		if (number != 14 || !data)
			continue;
		uint64_t start = 0, stop = 0, status = 0;
		for (const uint8_t *p = data, *last = data + value; p < last;) {
			if (!(p = image_field(p, last, &number, &value, &inner)))
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

/* If one image cannot be read, CRIU's way is taken with all tasks: nobody would know what its children have from it. */
void premap_load(void)
{
	const char *path = getenv("EMULAB_SHIM_PREMAP");
	DIR *folder = path ? opendir(path) : NULL;
	if (!folder)
		return;
	unsetenv("EMULAB_SHIM_PREMAP"); /* not for the programs that CRIU starts */
	if (faccessat(dirfd(folder), "parent", F_OK, AT_SYMLINK_NOFOLLOW)) {
		closedir(folder); /* CRIU fills its area with what tasks share only, and with all mappings if some pages are in earlier images */
		return;
	}
	for (struct dirent *entry; (entry = readdir(folder));) {
		struct task task = { 0 };
		char rest;
		if (sscanf(entry->d_name, "mm-%d.im%c", &task.pid, &rest) != 2)
			continue;
		struct task *larger = realloc(tasks, (task_count + 1) * sizeof *larger);
		if (!larger || load(&task, dirfd(folder), entry->d_name)) {
			task_count = 0;
			break;
		}
		tasks = larger;
		tasks[task_count++] = task;
	}
	for (int i = 0; i < task_count; i++)
		prefill_settle(dirfd(folder), tasks[i].pid, tasks[i].mappings.all, tasks[i].mappings.count);
	closedir(folder);
}

/* ---- where mappings are to be ------------------------------------------------------------------------------------- */

static const struct task *find(int pid)
{
	for (int i = 0; i < task_count; i++)
		if (tasks[i].pid == pid)
			return &tasks[i];
	return NULL;
}

static int index_of(const struct task *task, const struct range *range)
{
	int low = 0, high = task->mappings.count - 1;
	while (low <= high) {
		int middle = (low + high) / 2;
		const struct range *other = &task->mappings.all[middle];
		if (other->start == range->start)
			return other->end == range->end ? middle : -1;
		if (other->start < range->start)
			low = middle + 1;
		else
			high = middle - 1;
	}
	return -1;
}

static int common(const struct task *task, const struct task *parent)
{
	for (int i = 0; i < task->mappings.count; i++)
		if (index_of(parent, &task->mappings.all[i]) >= 0)
			return 1;
	return 0;
}

static void *plain(void *at, size_t size, int protection, int flags, int fd, off_t offset)
{
	return (void *)syscall(SYS_mmap, at, size, protection, flags, fd, offset);
}

static int reserve(uintptr_t at, size_t size)
{
	void *got = plain((void *)at, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	if (got == (void *)at)
		return 0;
	if (got != MAP_FAILED) /* a kernel that takes the address for a hint */
		syscall(SYS_munmap, got, size);
	return -1;
}

/*
 * What has no place yet gets one at the end, the last one at the very end. -1 if something is where another mapping belongs,
 * or has to go down after one that has to go up.
 */
static int let_wait(const struct task *task, struct window *new)
{
	const struct ranges *mappings = &task->mappings;
	int last = mappings->count - 1;
	size_t size = length(&mappings->all[last]);
	for (int i = 0; i < last; i++) {
		if (new->at[i])
			continue;
		new->at[i] = new->end;
		new->end += length(&mappings->all[i]);
	}
	if (new->at[last] + size != new->end) {
		new->at[last] = new->end;
		new->end += size;
	}
	for (int i = 0, up = 0; i < mappings->count; i++) {
		const struct range *own = &mappings->all[i];
		if (new->at[i] == own->start)
			continue;
		if (up && new->at[i] > own->start)
			return -1;
		up |= new->at[i] < own->start;
		for (int k = 0; k < mappings->count; k++) {
			const struct range *range = &mappings->all[k];
			if (range->start < new->at[i] + length(own) && new->at[i] < range->end)
				return -1;
		}
	}
	return 0;
}

/* A window for a task that has nothing from its parent: on most of its mappings. The first one waits at its beginning. */
static int choose(const struct task *task, struct window *new)
{
	const struct ranges *mappings = &task->mappings;
	int most = 0, from = 0;
	for (int i = 0, n; i < mappings->count; i += n) {
		for (n = 1; i + n < mappings->count && mappings->all[i + n].start - mappings->all[i + n - 1].end < FAR; n++)
			;
		if (n > most) {
			most = n;
			from = i;
		}
	}
	if (!most)
		return -1;
	size_t below = SPARE + length(&mappings->all[0]);
	if (mappings->count < 2 || mappings->all[from].start < 2 * below)
		return -1;
	new->start = mappings->all[from].start - below;
	new->middle = new->end = mappings->all[from + most - 1].end;
	for (int i = from; i < from + most; i++)
		new->at[i] = mappings->all[i].start;
	new->at[0] = new->start;
	return let_wait(task, new) || reserve(new->start, new->end - new->start) ? -1 : 0;
}

/* The parent's window, begun lower by some pages, so that each task notes another address, and longer if need be. */
static int go_on(const struct task *task, struct window *new)
{
	const struct ranges *mappings = &task->mappings;
	if (found < 1 || !elders.at || !mappings->count)
		return -1;
	new->start = elders.start - PAGE * (task - tasks + 1);
	new->middle = elders.middle;
	new->end = elders.end;
	for (int i = 0; i < mappings->count; i++) {
		const struct range *range = &mappings->all[i];
		int same = index_of(elder, range);
		if (same >= 0 && elders.made[same])
			new->at[i] = elders.at[same];
		else if (range->start >= elders.start && range->end <= new->middle)
			new->at[i] = range->start;
	}
	if (let_wait(task, new) || reserve(new->start, elders.start - new->start))
		return -1;
	return new->end > elders.end && reserve(elders.end, new->end - elders.end) ? -1 : 0;
}

/* ---- one task after another --------------------------------------------------------------------------------------- */

/* CRIU reserves its area. Returns where it is to be, 0 = where the kernel likes. */
static uintptr_t begin(size_t size)
{
	const struct task *task = find(getpid());
	struct window new = { 0 };
	size_t sum = 0;
	int failed = 1;
	elder = owner;
	elders = window;
	owner = task;
	window = new;
	window_pid = getpid();
	wanted = size;
	next = 0;
	aside = 0;
	note = NULL;
	if (!task || found < 0)
		return 0;
	for (int i = 0; i < task->mappings.count; i++)
		sum += length(&task->mappings.all[i]);
	new.at = calloc(task->mappings.count + 1, sizeof *new.at);
	new.made = calloc(task->mappings.count + 1, 1);
	if (new.at && new.made && sum == size) {
		if (elder && !common(task, elder))
			elder = NULL;
		failed = elder ? go_on(task, &new) : choose(task, &new);
	}
	if (failed)
		return 0;
	window = new;
	return window.start;
}

/* Where CRIU has noted its area: the only place with address and size. -1 if there is none or more. */
static int find_note(void)
{
	for (int i = 0; i < chunk_count; i++)
		for (uintptr_t *word = (uintptr_t *)chunks[i].start; word + 1 < (uintptr_t *)chunks[i].end; word++) {
			if (word[0] != window.start || word[1] != wanted)
				continue;
			if (note)
				return -1;
			note = word + 1;
		}
	return note ? 0 : -1;
}

/* Whether CRIU's variable, which holds ``to``, is the register that it is believed to be, or can be told from others. */
static int recognised(uintptr_t to, const struct caller *caller)
{
	int holding = 0;
	for (int i = 0; i < REGISTERS; i++)
		holding |= (caller->registers[i] == to) << i;
	if (found)
		return holding >> variable & 1;
	guesses = next ? guesses & holding : holding;
	if (!next)
		return guesses != 0;
	if (!guesses || guesses & (guesses - 1))
		return 0;
	variable = __builtin_ctz(guesses);
	return found = 1;
}

/* The mapping that CRIU is about to make, or to take over from where its parent has it. -1 = it is not the one whose turn it is. */
static int which(size_t size, uintptr_t from)
{
	const struct range *range = &owner->mappings.all[next];
	int same;
	if (next == owner->mappings.count || length(range) != size)
		return -1;
	if (from && ((same = elder ? index_of(elder, range) : -1) < 0 || elders.at[same] != from))
		return -1;
	return next;
}

/* Whether CRIU fills an area with the mappings of this process, and the address belongs to it. */
static int concerns(uintptr_t at)
{
	return window.at && at >= window.start && at <= window.end && window_pid == getpid();
}

/* CRIU's way from here on. What the parent has in the window would be in the way of what CRIU puts there: it is put aside. */
static uintptr_t give_up(uintptr_t to)
{
	size_t size = elders.end - elders.start;
	char *there = elder ? plain(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) : NULL;
	if (there == MAP_FAILED)
		return 0;
	if (elder)
		aside = (intptr_t)there - (intptr_t)elders.start;
	for (int i = 0; elder && i < elder->mappings.count; i++) {
		size_t each = length(&elder->mappings.all[i]);
		if (elders.made[i] && syscall(SYS_mremap, elders.at[i], each, each, MREMAP_MAYMOVE | MREMAP_FIXED, elders.at[i] + aside) == -1)
			return 0;
	}
	found = -1;
	window.at = NULL;
	return to;
}

/* Where CRIU's next mapping is to be made instead of at ``to``. 0 = it must not be made. */
static uintptr_t steer(uintptr_t to, size_t size, uintptr_t from, struct caller *caller)
{
	int index = which(size, from);
	if (index < 0 || (!note && find_note()) || !recognised(to, caller))
		return next && (elder || found > 0) ? 0 : give_up(to);
	next = index + 1;
	window.made[index] = 1;
	if (found) {
		*note = window.end - window.start;
		caller->registers[variable] = window.at[index];
	}
	return window.at[index];
}

static void *bring(uintptr_t from, size_t size, uintptr_t to)
{
	if (from == to)
		return (void *)to;
	same_replaced(to, size);
	if (to < from + size && from < to + size) { /* overlapping: by way of another place */
		void *between = plain(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (between == MAP_FAILED || syscall(SYS_mremap, from, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, between) == -1)
			return MAP_FAILED;
		from = (uintptr_t)between;
	}
	return (void *)syscall(SYS_mremap, from, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, to);
}

static int ascending(const void *one, const void *other)
{
	uintptr_t a = ((const struct range *)one)->start, b = ((const struct range *)other)->start;
	return (a > b) - (a < b);
}

/* The restorer keeps the whole window: what is none of this task's mappings in it has to go now. */
static void clear(void)
{
	struct ranges made = { 0 };
	uintptr_t at = window.start;
	for (int i = 0; i < owner->mappings.count; i++)
		if (window.made[i] && append(&made, window.at[i], window.at[i] + length(&owner->mappings.all[i])))
			return;
	qsort(made.all, made.count, sizeof *made.all, ascending);
	for (int i = 0; i < made.count; i++) {
		if (at < made.all[i].start)
			syscall(SYS_munmap, at, made.all[i].start - at);
		at = made.all[i].end;
	}
	if (at < window.end)
		syscall(SYS_munmap, at, window.end - at);
	free(made.all);
	window_pid = 0;
	prefill_taken(owner->pid);
}

/* ---- what CRIU calls ---------------------------------------------------------------------------------------------- */

/* With the caller's registers, which may be changed, as a seventh argument. */
#define WITH_REGISTERS(name, function)                                                                                          \
	__asm__(".globl " #name "\n.type " #name ", @function\n" #name ":\n"                                                      \
		"push %r15\npush %r14\npush %r13\npush %r12\npush %rbx\npush %rbp\n"                                                \
		"mov %rsp, %rax\npush %rax\ncall " #function "\nadd $8, %rsp\n"                                                     \
		"pop %rbp\npop %rbx\npop %r12\npop %r13\npop %r14\npop %r15\nret\n"                                                 \
		".size " #name ", . - " #name "\n")
#define HIDDEN __attribute__((visibility("hidden"), used))

HIDDEN void *map_steered(void *at, size_t size, int protection, int flags, int fd, off_t offset, struct caller *caller)
{
	const struct range *made = NULL; /* one of this task's */
	if (task_count && !at && protection == PROT_NONE && flags == (MAP_PRIVATE | MAP_ANONYMOUS) && fd == 0) {
		uintptr_t start = begin(size);
		if (start)
			return (void *)start;
	} else if (flags & MAP_FIXED && concerns((uintptr_t)at)) {
		if (!(at = (void *)steer((uintptr_t)at, size, 0, caller))) {
			errno = EINVAL;
			return MAP_FAILED;
		}
		if (window.at)
			made = &owner->mappings.all[next - 1];
	}
	void *got = plain(at, size, protection, flags, fd, offset);
	if (got != MAP_FAILED)
		same_replaced((uintptr_t)got, size);
	if (got != MAP_FAILED && made && prefill_take(owner->pid, made, (uintptr_t)got, protection, flags))
		return MAP_FAILED;
	if (got != MAP_FAILED && flags == (MAP_SHARED | MAP_ANONYMOUS) && task_count && chunk_count < CHUNKS)
		chunks[chunk_count++] = (struct range){ (uintptr_t)got, (uintptr_t)got + size };
	return got;
}
WITH_REGISTERS(mmap, map_steered);
WITH_REGISTERS(mmap64, map_steered);

HIDDEN void *remap_steered(void *old, size_t old_size, size_t size, int flags, uintptr_t to, long unused, struct caller *caller)
{
	(void)unused;
	if (flags & MREMAP_FIXED && concerns(to) && size == old_size) {
		if ((to = steer(to, size, (uintptr_t)old, caller)))
			return bring((uintptr_t)old + aside, size, to);
		errno = EINVAL;
		return MAP_FAILED;
	}
	if (aside && flags & MREMAP_FIXED && (uintptr_t)old >= elders.start && (uintptr_t)old < elders.end && window_pid == getpid())
		old = (char *)old + aside;
	else if (flags & MREMAP_FIXED && window.at && window_pid == getpid())
		clear(); /* the restorer and its arguments find their place */
	void *got = (void *)syscall(SYS_mremap, old, old_size, size, flags, to);
	if (got != MAP_FAILED)
		same_replaced((uintptr_t)got, size);
	return got;
}
WITH_REGISTERS(mremap, remap_steered);

int munmap(void *at, size_t size)
{
	/* CRIU cuts off what it has not used of its area: of a window, that would be what is in place. There is nothing to cut off. */
	if (found > 0 && concerns((uintptr_t)at) && (uintptr_t)at > window.start && (uintptr_t)at + size == window.end) {
		errno = EINVAL;
		return -1;
	}
	return syscall(SYS_munmap, at, size);
}
