/*
 * shim - preloaded into criu. Two independent jobs, chosen by environment variables:
 *
 * EMULAB_SHIM_WP=1     stand in for soft-dirty on kernels without it: what CRIU asks of soft-dirty is answered from
 *                      userfaultfd write-protect (armed by `tracker`) through PAGEMAP_SCAN. Pages that nobody protected
 *                      read as written, so the answer errs on the safe side by construction.
 * EMULAB_SHIM_FINAL=1  this is the final dump: nobody will ask for dirty pages again, so do not reset the tracking.
 *
 * Always: CRIU's wait for the freezer cgroup looks every millisecond, not every 100; what it asks about each task's
 * mappings is asked ahead by a second thread (prefetch.c); the connection tracking table of a network namespace that
 * tracks nothing is empty (the kernel would search the whole machine's: 13 ms each time, twice in every final dump).
 *
 * At a restore: pages files are put together from distinct pages (pages.c), mappings are made in their final place
 * (premap.c), and large tasks' memory is filled before the freeze (prefill.c).
 *
 * EMULAB_SHIM_STOCK=1  none of the latter: only what stands in for a missing kernel feature. For comparisons.
 * EMULAB_SHIM_GATE=FD  the program is loaded but does nothing before a message of one byte comes on this socket, other than what
 *                      longer ones ask of it (prefill.c); when the other end is closed it ends.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "scan.h"
#include "shim.h"

#define PME_SOFT_DIRTY (1ULL << 55)

static int stand_in, final_dump, stock;
static int untracked = -1; /* a socket on the connection tracking of a namespace that tracks nothing */

/* So that CRIU is started and loaded before the freeze, and begins at once when it is wanted: at a message of one byte. */
static void wait_at_gate(void)
{
	static char message[1 << 16];
	const char *gate = getenv("EMULAB_SHIM_GATE");
	if (!gate)
		return;
	int fd = atoi(gate);
	for (;;) {
		ssize_t got = syscall(SYS_read, fd, message, sizeof message);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			_exit(1);
		if (got == 1)
			break;
		int answer = prefill_put(message, got);
		if (syscall(SYS_write, fd, &answer, sizeof answer) != sizeof answer)
			_exit(1);
	}
	syscall(SYS_close, fd);
	unsetenv("EMULAB_SHIM_GATE"); /* not for the programs that CRIU starts */
}

__attribute__((constructor)) static void init(void)
{
	stock = getenv("EMULAB_SHIM_STOCK") != NULL;
	if (!stock && getenv("EMULAB_SHIM_TASKS"))
		prefetch_make_room();
	wait_at_gate();
	stand_in = getenv("EMULAB_SHIM_WP") != NULL;
	final_dump = getenv("EMULAB_SHIM_FINAL") != NULL;
	if (!stock) {
		premap_load();
		prefill_settled();
		pages_load();
	}
}

static int raw_ioctl(int fd, unsigned long request, void *arg)
{
	return syscall(SYS_ioctl, fd, request, arg);
}

/* CRIU's question about soft-dirty pages, put as one about written pages where it has to be. */
int scan_ask(int pagemap, struct pm_scan_arg_ *question)
{
	if (!stand_in || !(question->return_mask & IS_SOFT_DIRTY))
		return raw_ioctl(pagemap, PAGEMAP_SCAN_, question);
	struct pm_scan_arg_ mine = *question;
	mine.return_mask = (question->return_mask & ~(uint64_t)IS_SOFT_DIRTY) | IS_WRITTEN;
	int count = raw_ioctl(pagemap, PAGEMAP_SCAN_, &mine);
	question->walk_end = mine.walk_end;
	struct page_region_ *regions = (void *)(uintptr_t)question->vec;
	for (int i = 0; i < count; i++)
		if (regions[i].categories & IS_WRITTEN)
			regions[i].categories = (regions[i].categories & ~(uint64_t)IS_WRITTEN) | IS_SOFT_DIRTY;
	return count;
}

int ioctl(int fd, unsigned long request, ...)
{
	va_list list;
	int result;
	va_start(list, request);
	void *arg = va_arg(list, void *);
	va_end(list);
	if (request != PAGEMAP_SCAN_)
		return raw_ioctl(fd, request, arg);
	if (!stock && prefetch_scan(fd, arg, &result))
		return result;
	return scan_ask(fd, arg);
}

/* Path of a descriptor, or an empty string. */
static void path_of(int fd, char *path, size_t size)
{
	char link[64];
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	ssize_t length = readlink(link, path, size - 1);
	path[length > 0 ? length : 0] = 0;
}

static int ends_with(const char *text, const char *end)
{
	size_t a = strlen(text), b = strlen(end);
	return a >= b && !strcmp(text + a - b, end);
}

/*
 * Write-protect what is present or swapped, private and not the zero page. Protecting never-touched pages would leave
 * markers that look swapped, and CRIU would then miss them in the parent images.
 */
static int protect(const char *pagemap)
{
	static struct page_region_ regions[4096];
	int fd = syscall(SYS_openat, AT_FDCWD, pagemap, O_RDONLY | O_CLOEXEC, 0);
	if (fd < 0)
		return -1;
	struct pm_scan_arg_ scan = {
		.size = sizeof scan, .flags = WP_MATCHING, .start = 0, .end = ALL_ADDRESSES,
		.vec = (uintptr_t)regions, .vec_len = sizeof regions / sizeof *regions,
		.category_inverted = IS_FILE | IS_PFNZERO, .category_mask = IS_WRITTEN | IS_FILE | IS_PFNZERO,
		.category_anyof_mask = IS_PRESENT | IS_SWAPPED, .return_mask = IS_WRITTEN,
	};
	int result = 0;
	while (scan.start < scan.end) {
		if (raw_ioctl(fd, PAGEMAP_SCAN_, &scan) < 0) {
			result = -1;
			break;
		}
		if (scan.walk_end <= scan.start)
			break;
		scan.start = scan.walk_end;
	}
	syscall(SYS_close, fd);
	return result;
}

ssize_t write(int fd, const void *data, size_t size)
{
	if (stand_in && size == 2 && !memcmp(data, "4", 2)) {
		char path[256];
		path_of(fd, path, sizeof path);
		if (ends_with(path, "/clear_refs")) {
			if (!final_dump) {
				strcpy(path + strlen(path) - strlen("clear_refs"), "pagemap");
				if (protect(path)) {
					errno = EIO;
					return -1;
				}
			}
			return size;
		}
	}
	return syscall(SYS_write, fd, data, size);
}

/* Prepared answers first, then CRIU's feature probe: one entry of its own pagemap. */
ssize_t read(int fd, void *data, size_t size)
{
	ssize_t got;
	if (prefetch_read(fd, data, size, &got))
		return got;
	got = syscall(SYS_read, fd, data, size);
	if (stand_in && size == 8 && got == 8) {
		char path[256];
		path_of(fd, path, sizeof path);
		if (ends_with(path, "/pagemap"))
			*(uint64_t *)data |= PME_SOFT_DIRTY;
	}
	return got;
}

/* Ten numbers in the first line of a mapping; scanf needs 4 us for them, and a web server has 10 000 mappings. */
static const char *hexadecimal(const char *text, unsigned long *value)
{
	for (*value = 0;; text++) {
		if (*text >= '0' && *text <= '9')
			*value = *value << 4 | (unsigned long)(*text - '0');
		else if (*text >= 'a' && *text <= 'f')
			*value = *value << 4 | (unsigned long)(*text - 'a' + 10);
		else
			return text;
	}
}

static int scan_mapping(const char *text, va_list list)
{
	unsigned long *start = va_arg(list, unsigned long *), *end = va_arg(list, unsigned long *);
	char *flags[4];
	for (int i = 0; i < 4; i++)
		flags[i] = va_arg(list, char *);
	unsigned long *offset = va_arg(list, unsigned long *);
	unsigned *major = va_arg(list, unsigned *), *minor = va_arg(list, unsigned *);
	unsigned long *inode = va_arg(list, unsigned long *), number;
	int *at = va_arg(list, int *);
	const char *p = hexadecimal(text, start);
	if (*p++ != '-')
		return -1;
	p = hexadecimal(p, end);
	if (*p++ != ' ')
		return -1;
	for (int i = 0; i < 4; i++)
		if (!(*flags[i] = *p++))
			return -1;
	if (*p++ != ' ')
		return -1;
	p = hexadecimal(p, offset);
	if (*p++ != ' ')
		return -1;
	p = hexadecimal(p, &number);
	*major = number;
	if (*p++ != ':')
		return -1;
	p = hexadecimal(p, &number);
	*minor = number;
	if (*p++ != ' ' || *p < '0' || *p > '9')
		return -1;
	for (*inode = 0; *p >= '0' && *p <= '9'; p++)
		*inode = *inode * 10 + (unsigned long)(*p - '0');
	while (*p == ' ')
		p++;
	*at = p - text;
	return 10;
}

int __isoc23_sscanf(const char *text, const char *format, ...)
{
	va_list list;
	int result = -1;
	va_start(list, format);
	if (!stock && !strcmp(format, "%lx-%lx %c%c%c%c %lx %x:%x %lu %n"))
		result = scan_mapping(text, list);
	va_end(list);
	if (result >= 0)
		return result;
	va_start(list, format);
	result = vsscanf(text, format, list);
	va_end(list);
	return result;
}

int nanosleep(const struct timespec *wanted, struct timespec *left)
{
	struct timespec brief = { 0, 1000000 };
	int poll_step = !stock && wanted->tv_sec == 0 && wanted->tv_nsec == 100000000;
	return syscall(SYS_nanosleep, poll_step ? &brief : wanted, left) ? -1 : 0;
}

int openat64(int dir, const char *path, int flags, ...)
{
	va_list list;
	va_start(list, flags);
	mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(list, mode_t) : 0;
	va_end(list);
	int fd;
	prefill_release();
	if (!stock && prefetch_openat(dir, path, flags, &fd))
		return fd;
	fd = syscall(SYS_openat, dir, path, flags, mode);
	if (!stock) {
		prefetch_opened(fd, dir, path);
		pages_opened(fd, dir, path);
	}
	return fd;
}

int fstatat64(int dir, const char *path, struct stat64 *status, int flags)
{
	int result;
	if (!stock && prefetch_fstatat(dir, path, status, flags, &result))
		return result;
	return syscall(SYS_newfstatat, dir, path, status, flags);
}

int close(int fd)
{
	prefill_release();
	prefetch_forget(fd);
	if (fd == untracked)
		untracked = -1;
	if (fd >= 0)
		pages_forget(fd);
	return syscall(SYS_close, fd);
}

static int tracks_nothing(void)
{
	char count[16];
	int fd = syscall(SYS_openat, AT_FDCWD, "/proc/sys/net/netfilter/nf_conntrack_count", O_RDONLY | O_CLOEXEC, 0);
	if (fd < 0)
		return 0;
	ssize_t got = syscall(SYS_read, fd, count, sizeof count);
	syscall(SYS_close, fd);
	return got >= 1 && count[0] == '0';
}

int socket(int domain, int type, int protocol)
{
	int fd = syscall(SYS_socket, domain, type, protocol);
	if (untracked == fd)
		untracked = -1;
	if (!stock && fd >= 0 && domain == AF_NETLINK && protocol == NETLINK_NETFILTER && tracks_nothing())
		untracked = fd;
	return fd;
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
	if (fd >= 0 && fd == untracked) {
		const struct nlmsghdr *request = message->msg_iov->iov_base;
		/* Subsystems 1 and 2: tracked and expected connections. */
		if ((request->nlmsg_flags & NLM_F_DUMP) == NLM_F_DUMP && (request->nlmsg_type >> 8 == 1 || request->nlmsg_type >> 8 == 2))
			return message->msg_iov->iov_len;
		untracked = -1;
	}
	return syscall(SYS_sendmsg, fd, message, flags);
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
	if (fd >= 0 && fd == untracked)
		return 0; /* the end of the answer */
	return syscall(SYS_recvmsg, fd, message, flags);
}

/* Tasks are made by clone3(), helpers in the following ways. */
pid_t fork(void)
{
	static pid_t (*real)(void);
	if (!real)
		real = dlsym(RTLD_NEXT, "fork");
	prefill_share(0);
	pid_t pid = real();
	if (pid)
		prefill_share(1);
	return pid;
}

int clone(int (*function)(void *), void *stack, int flags, void *argument, ...)
{
	static int (*real)(int (*)(void *), void *, int, void *, ...);
	if (!real)
		real = dlsym(RTLD_NEXT, "clone");
	prefill_share(0);
	int pid = real(function, stack, flags, argument);
	prefill_share(1);
	return pid;
}
