/*
 * prefetch - part of shim.so. CRIU saves one task after another in one thread; half of that time the kernel formats
 * /proc/PID/smaps and looks up /proc/PID/map_files. Every task stands still meanwhile, so a second thread asks the same
 * questions ahead of CRIU and hands over the kernel's own answers: the text of smaps (range and VmFlags lines, the only
 * ones that CRIU reads), the result of each fstatat(), the open descriptors with their fdinfo, and which pages there are.
 * A private mapping that the task before had too, line for line, is not looked up again: tasks that were forked from one
 * another map the same files at the same addresses.
 *
 * It starts when CRIU opens its first smaps: by then every task has been stopped. What it has not reached, or does not
 * know, CRIU asks the kernel itself.
 *
 * EMULAB_SHIM_TASKS    file that lists the tasks in CRIU's order: the guest's cgroup.procs
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "shim.h"

#define MAX_FD 65536
#define ROOM 16000 /* descriptors */
#define AHEAD 48 /* tasks prepared and not yet asked for: bounds open descriptors to some thousand */

/* One mapping: what fstatat() and openat() of its map_files entry gave. Both fail with ENOENT for anonymous memory. */
struct area {
	unsigned long start, end;
	const char *line; /* of smaps, up to its newline */
	int original;     /* what the next task's descriptor is a duplicate of; -1 = none */
	struct stat64 status;
	int stat_errno;
	int fd;         /* open, not yet handed over; -1 = none */
	int open_flags; /* what it was opened with; -1 = it was not tried */
	int open_errno;
	char fdinfo[160];
};

enum state { WAITING, WORKING, READY, LEFT };

struct slot {
	int pid;
	_Atomic int state;
	char *smaps;
	size_t smaps_length;
	struct area *areas;
	int area_count;
	struct scanned *pages;
};

/* What a descriptor of CRIU's is, as far as we know it. */
struct known {
	int pid;             /* /proc/PID */
	int is_self;         /* /proc/self */
	struct slot *slot;   /* /proc/PID/map_files of a prepared task */
	struct slot *pages;  /* /proc/PID/pagemap of one */
	const char *text;    /* reads are answered from here */
	size_t length, at;
	const struct area *area; /* handed over: its fdinfo is known */
};

static struct known table[MAX_FD];
static struct slot *slots;
static int slot_count;
static _Atomic int prepared, consumed, stop;
static pthread_t thread;
static int started;

static struct known *of(int fd)
{
	return fd >= 0 && fd < MAX_FD ? &table[fd] : NULL;
}

void prefetch_forget(int fd)
{
	struct known *known = of(fd);
	if (known)
		memset(known, 0, sizeof *known);
}

/* ---- the second thread -------------------------------------------------------------------------------------------- */

static int number(const char *text)
{
	int value = 0;
	if (!*text)
		return 0;
	for (; *text; text++) {
		if (*text < '0' || *text > '9')
			return 0;
		value = value * 10 + (*text - '0');
	}
	return value;
}

/* The content of a file, in a buffer that the next call may use again. NULL if it cannot be read. */
static char *whole(int dir, const char *name, size_t *length)
{
	static char *text;
	static size_t room = 1 << 18;
	size_t size = 0;
	ssize_t got;
	int fd = syscall(SYS_openat, dir, name, O_RDONLY | O_CLOEXEC, 0);
	if (fd < 0)
		return NULL;
	if (!text)
		text = malloc(room + 1);
	while (text && (got = syscall(SYS_read, fd, text + size, room - size)) > 0) {
		size += got;
		if (size == room) {
			char *larger = realloc(text, 2 * room + 1);
			if (!larger)
				break;
			text = larger;
			room *= 2;
		}
	}
	syscall(SYS_close, fd);
	if (!text || got)
		return NULL;
	text[size] = 0;
	*length = size;
	return text;
}

/* Keep the lines CRIU reads, in place; returns the number of mappings. */
static int strip(char *text, size_t *length)
{
	char *out = text, *end = text + *length;
	int count = 0;
	for (char *line = text, *next; line < end; line = next) {
		char *stop_at = memchr(line, '\n', end - line);
		next = stop_at ? stop_at + 1 : end;
		int range = (*line >= '0' && *line <= '9') || (*line >= 'a' && *line <= 'f');
		if (range || !strncmp(line, "VmFlags: ", 9)) {
			memmove(out, line, next - line);
			out += next - line;
			count += range;
		}
	}
	*length = out - text;
	*out = 0;
	return count;
}

static struct area *find_range(struct slot *slot, unsigned long start, unsigned long end)
{
	int low = 0, high = slot->area_count - 1;
	while (low <= high) {
		int middle = (low + high) / 2;
		struct area *area = &slot->areas[middle];
		if (area->start == start)
			return area->end == end ? area : NULL;
		if (area->start < start)
			low = middle + 1;
		else
			high = middle - 1;
	}
	return NULL;
}

static int same_line(const char *a, const char *b)
{
	while (*a == *b && *a && *a != '\n')
		a++, b++;
	return *a == *b;
}

/*
 * The answers about a mapping that the task before had too: its descriptor is handed on from task to task, each gets a
 * duplicate. Not for shared ones: how their file was opened decides what they may do, and the line does not tell it.
 */
static int copied(struct area *area, struct slot *before, int flags)
{
	struct area *twin = before && strchr(area->line, ' ')[4] == 'p' ? find_range(before, area->start, area->end) : NULL;
	if (!twin || twin->open_flags != flags || !same_line(area->line, twin->line))
		return 0;
	int fd = -1;
	if (flags >= 0 && twin->open_errno != ENOENT && (twin->original < 0 || (fd = fcntl(twin->original, F_DUPFD, 0)) < 0))
		return 0;
	area->status = twin->status;
	area->stat_errno = twin->stat_errno;
	area->open_flags = flags;
	area->open_errno = twin->open_errno;
	area->fd = fd;
	area->original = twin->original;
	twin->original = -1;
	strcpy(area->fdinfo, twin->fdinfo);
	return 1;
}

static void look_up(int map_files, struct area *area, int flags)
{
	char name[40];
	snprintf(name, sizeof name, "%lx-%lx", area->start, area->end);
	if (syscall(SYS_newfstatat, map_files, name, &area->status, AT_SYMLINK_NOFOLLOW))
		area->stat_errno = errno;
	if (flags < 0)
		return;
	area->open_flags = flags;
	area->fd = syscall(SYS_openat, map_files, name, flags, 0);
	if (area->fd < 0) {
		area->open_errno = errno;
		return;
	}
	area->original = fcntl(area->fd, F_DUPFD_CLOEXEC, 0);
	char path[40];
	snprintf(path, sizeof path, "/proc/self/fdinfo/%d", area->fd);
	int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
	if (fd < 0)
		return;
	ssize_t got = syscall(SYS_read, fd, area->fdinfo, sizeof area->fdinfo - 1);
	/* An answer that does not fit is none. */
	area->fdinfo[got > 0 && got < (ssize_t)sizeof area->fdinfo - 1 ? got : 0] = 0;
	syscall(SYS_close, fd);
}

static void prepare(struct slot *slot, struct slot *before)
{
	char path[40];
	snprintf(path, sizeof path, "/proc/%d/map_files", slot->pid);
	int map_files = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
	snprintf(path, sizeof path, "/proc/%d/smaps", slot->pid);
	char *text = map_files < 0 ? NULL : whole(AT_FDCWD, path, &slot->smaps_length);
	int count = text ? strip(text, &slot->smaps_length) : 0;
	slot->smaps = text ? strdup(text) : NULL;
	if (slot->smaps) {
		slot->areas = calloc(count + 1, sizeof *slot->areas);
		unsigned major = 0, minor = 0, last_major = 0, last_minor = 0;
		unsigned long inode = 0, last_inode = 0;
		for (char *line = slot->smaps; slot->areas && slot->area_count < count && *line; line = strchrnul(line, '\n') + 1) {
			struct area *area = &slot->areas[slot->area_count];
			if (sscanf(line, "%lx-%lx %*s %*x %x:%x %lu", &area->start, &area->end, &major, &minor, &inode) != 5)
				continue;
			area->line = line;
			area->fd = area->open_flags = area->original = -1;
			/* CRIU opens the first of neighbours that map the same file. */
			int same = slot->area_count && major == last_major && minor == last_minor && inode == last_inode;
			int flags = same ? -1 : major ? O_PATH : O_RDONLY;
			if (!copied(area, before, flags))
				look_up(map_files, area, flags);
			last_major = major, last_minor = minor, last_inode = inode;
			slot->area_count++;
		}
	}
	if (map_files >= 0)
		syscall(SYS_close, map_files);
	snprintf(path, sizeof path, "/proc/%d/pagemap", slot->pid);
	int pagemap = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
	if (pagemap >= 0) {
		slot->pages = scan_all(pagemap);
		syscall(SYS_close, pagemap);
	}
	for (int i = 0; before && i < before->area_count; i++)
		if (before->areas[i].original >= 0)
			syscall(SYS_close, before->areas[i].original);
}

static void *work(void *unused)
{
	(void)unused;
	/* CRIU enters mount namespaces, which the kernel allows only to a thread that shares its filesystem state with none. */
	if (syscall(SYS_unshare, CLONE_FS))
		return NULL;
	/* CRIU shares a CPU with the tasks it talks to; this thread is to have another. */
	cpu_set_t any;
	memset(&any, 0xff, sizeof any);
	sched_setaffinity(0, sizeof any, &any);
	struct slot *before = NULL;
	for (int i = 0; i < slot_count && !stop; i++) {
		while (prepared - consumed >= AHEAD && !stop)
			usleep(200);
		int expected = WAITING;
		if (!atomic_compare_exchange_strong(&slots[i].state, &expected, WORKING))
			continue;
		prepare(&slots[i], before);
		before = &slots[i];
		prepared++;
		slots[i].state = READY;
	}
	return NULL;
}

/*
 * Room for the descriptors, made while this is the only thread: a process of several threads waits for all CPUs (10 ms, as
 * long as the kernel's grace period) each time that its table of descriptors grows, and that it would five times in a dump.
 */
void prefetch_make_room(void)
{
	struct rlimit limit;
	int highest = getrlimit(RLIMIT_NOFILE, &limit) || limit.rlim_cur > ROOM ? ROOM : (int)limit.rlim_cur - 1;
	int fd = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, highest);
	if (fd >= 0)
		syscall(SYS_close, fd);
}

static void start(void)
{
	const char *path = getenv("EMULAB_SHIM_TASKS");
	size_t length = 0;
	started = 1;
	char *text = path ? whole(AT_FDCWD, path, &length) : NULL;
	if (!text)
		return;
	int lines = 0;
	for (size_t i = 0; i < length; i++)
		lines += text[i] == '\n';
	slots = calloc(lines + 1, sizeof *slots);
	char *rest = text, *word;
	while (slots && slot_count < lines && (word = strsep(&rest, "\n")))
		if (number(word))
			slots[slot_count++].pid = number(word);
	/* CRIU's signal handlers belong to its own thread. */
	sigset_t all, before;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	if (slots && pthread_create(&thread, NULL, work, NULL))
		slot_count = 0;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* ---- CRIU's questions --------------------------------------------------------------------------------------------- */

/* The prepared answers about a task; NULL if CRIU has to ask by itself. */
static struct slot *take(int pid)
{
	for (int i = 0; i < slot_count; i++) {
		if (slots[i].pid != pid)
			continue;
		int expected = WAITING;
		if (atomic_compare_exchange_strong(&slots[i].state, &expected, LEFT))
			return NULL;
		while (slots[i].state == WORKING)
			sched_yield();
		if (slots[i].state != READY)
			return NULL;
		slots[i].state = LEFT; /* asked once: a second question is a new one */
		consumed++;
		return slots[i].smaps && slots[i].areas ? &slots[i] : NULL;
	}
	return NULL;
}

static void release(struct slot *slot)
{
	for (int i = 0; i < slot->area_count; i++)
		if (slot->areas[i].fd >= 0) {
			syscall(SYS_close, slot->areas[i].fd);
			slot->areas[i].fd = -1;
		}
	free(slot->pages);
	slot->pages = NULL;
}

static struct area *find(struct slot *slot, const char *name)
{
	unsigned long start, end;
	char rest;
	if (!slot || sscanf(name, "%lx-%lx%c", &start, &end, &rest) != 2)
		return NULL;
	return find_range(slot, start, end);
}

static struct slot *current; /* CRIU asks about one task at a time */

static int virtual_file(const char *text, size_t length)
{
	int fd = syscall(SYS_openat, AT_FDCWD, "/dev/null", O_RDONLY, 0);
	struct known *known = of(fd);
	if (!known) {
		syscall(SYS_close, fd);
		return -1;
	}
	memset(known, 0, sizeof *known);
	known->text = text;
	known->length = length;
	return fd;
}

/* Answer an openat() of CRIU's; 0 = it has to ask the kernel and to tell us what came of it (prefetch_opened). */
int prefetch_openat(int dir, const char *path, int flags, int *result)
{
	struct known *known = of(dir);
	if (!known)
		return 0;
	if (known->pid && !strcmp(path, "smaps")) {
		if (!started)
			start();
		if (current)
			release(current);
		current = take(known->pid);
		if (!current)
			return 0;
		*result = virtual_file(current->smaps, current->smaps_length);
		return *result >= 0;
	}
	if (known->is_self && !strncmp(path, "fdinfo/", 7)) {
		struct known *other = of(number(path + 7));
		if (!other || !other->area || !other->area->fdinfo[0])
			return 0;
		*result = virtual_file(other->area->fdinfo, strlen(other->area->fdinfo));
		return *result >= 0;
	}
	struct area *area = find(known->slot, path);
	if (!area || area->open_flags != (flags & ~O_LARGEFILE))
		return 0;
	if (area->fd < 0 && area->open_errno == ENOENT) {
		errno = ENOENT;
		*result = -1;
		return 1;
	}
	if (!of(area->fd))
		return 0;
	*result = area->fd;
	area->fd = -1;
	prefetch_forget(*result);
	table[*result].area = area;
	return 1;
}

/* CRIU has opened something by itself. */
void prefetch_opened(int fd, int dir, const char *path)
{
	struct known *known = of(fd), *parent = of(dir);
	if (!known)
		return;
	memset(known, 0, sizeof *known);
	if (!strcmp(path, "self"))
		known->is_self = 1;
	else if (number(path))
		known->pid = number(path);
	else if (parent && parent->pid && current && parent->pid == current->pid) {
		if (!strcmp(path, "map_files"))
			known->slot = current;
		else if (!strcmp(path, "pagemap"))
			known->pages = current;
	}
}

/* Answer an fstatat() of CRIU's; 0 = it has to ask the kernel. */
int prefetch_fstatat(int dir, const char *path, struct stat64 *status, int flags, int *result)
{
	struct known *known = of(dir);
	struct area *area = known && flags == AT_SYMLINK_NOFOLLOW ? find(known->slot, path) : NULL;
	if (!area)
		return 0;
	*result = area->stat_errno ? -1 : 0;
	errno = area->stat_errno ? area->stat_errno : errno;
	*status = area->status;
	return 1;
}

int prefetch_scan(int fd, struct pm_scan_arg_ *question, int *result)
{
	struct known *known = of(fd);
	return known && known->pages && known->pages == current && current->pages && scan_answer(current->pages, question, result);
}

int prefetch_read(int fd, void *data, size_t size, ssize_t *result)
{
	struct known *known = of(fd);
	if (!known || !known->text)
		return 0;
	size_t left = known->length - known->at;
	*result = size < left ? size : left;
	memcpy(data, known->text + known->at, *result);
	known->at += *result;
	return 1;
}
